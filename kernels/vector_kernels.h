// Rotation and encoding for every SIMD backend, written once with the compiler's vector
// extensions: each operation is elementwise, so the width of the registers cannot change a bit.
// A backend file defines TQ_VECTOR_BYTES (16, 32 or 64) and includes this.
// Internal linkage throughout; no standard library functions that a linker could share.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernel_table.h"
#include "kernels/tail.h"

namespace turboquant::kernels {
namespace {

constexpr std::size_t kBytes = TQ_VECTOR_BYTES;
constexpr std::size_t kWidth = kBytes / 4;  // floats in a register
constexpr std::size_t kHalf = kWidth / 2;   // doubles in a register

typedef float Floats __attribute__((vector_size(kBytes)));
typedef std::int32_t Ints __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef float HalfFloats __attribute__((vector_size(kBytes / 2)));
typedef std::int8_t Bytes __attribute__((vector_size(kWidth)));

template <typename V, typename T>
inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename V, typename T>
inline void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

inline Floats broadcast(float x) { return x - Floats{}; }
inline Floats abs_of(Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & 0x7fffffff);
}

// ---- rotation ----

double norm_squared(const float* x, std::size_t d) {
  Doubles sums[8 / kHalf] = {};
  std::size_t i = 0;
  for (; i + 8 <= d; i += 8) {
    for (std::size_t part = 0; part < 8 / kHalf; ++part) {
      const auto v = __builtin_convertvector(load<HalfFloats>(x + i + part * kHalf), Doubles);
      sums[part] += v * v;
    }
  }
  double lanes[8];
  std::memcpy(lanes, sums, sizeof lanes);
  for (; i < d; ++i) lanes[i % 8] += static_cast<double>(x[i]) * x[i];
  for (std::size_t half = 4; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

void scale(const float* x, std::size_t d, double factor, float* out) {
  std::size_t i = 0;
  for (; i + kHalf <= d; i += kHalf) {
    const auto v = __builtin_convertvector(load<HalfFloats>(x + i), Doubles) * factor;
    store(out + i, __builtin_convertvector(v, HalfFloats));
  }
  for (; i < d; ++i) out[i] = static_cast<float>(x[i] * factor);
}

void multiply(float* y, const float* factors, std::size_t n) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    store(y + i, load<Floats>(y + i) * load<Floats>(factors + i));
  }
  for (; i < n; ++i) y[i] *= factors[i];
}

// v with the lanes i and i ^ Span exchanged.
template <std::size_t Span>
inline Floats exchange(Floats v) {
#define TQ_X(i) ((i) ^ Span)
#if TQ_VECTOR_BYTES == 16
  return __builtin_shufflevector(v, v, TQ_X(0), TQ_X(1), TQ_X(2), TQ_X(3));
#elif TQ_VECTOR_BYTES == 32
  return __builtin_shufflevector(v, v, TQ_X(0), TQ_X(1), TQ_X(2), TQ_X(3), TQ_X(4), TQ_X(5),
                                 TQ_X(6), TQ_X(7));
#else
  return __builtin_shufflevector(v, v, TQ_X(0), TQ_X(1), TQ_X(2), TQ_X(3), TQ_X(4), TQ_X(5),
                                 TQ_X(6), TQ_X(7), TQ_X(8), TQ_X(9), TQ_X(10), TQ_X(11), TQ_X(12),
                                 TQ_X(13), TQ_X(14), TQ_X(15));
#endif
#undef TQ_X
}

// One stage inside a register: lanes with the bit Span set get partner - own, the others
// partner + own, which is a - b and a + b.
template <std::size_t Span>
inline Floats stage(Floats v) {
  if constexpr (Span < kWidth) {
    Ints sign{};
    for (std::size_t i = 0; i < kWidth; ++i) sign[i] = (i & Span) != 0 ? INT32_MIN : 0;
    return exchange<Span>(v) + reinterpret_cast<Floats>(reinterpret_cast<Ints>(v) ^ sign);
  } else {
    return v;
  }
}

// The first stages, over Count registers held at once: spans 1 to Count * kWidth / 2.
template <std::size_t Count>
inline void fwht_base(float* y) {
  Floats v[Count];
  for (std::size_t i = 0; i < Count; ++i) {
    v[i] = stage<8>(stage<4>(stage<2>(stage<1>(load<Floats>(y + i * kWidth)))));
  }
  for (std::size_t span = 1; span < Count; span *= 2) {
    for (std::size_t i = 0; i < Count; ++i) {
      if ((i & span) != 0) continue;
      const Floats a = v[i];
      const Floats b = v[i + span];
      v[i] = a + b;
      v[i + span] = a - b;
    }
  }
  for (std::size_t i = 0; i < Count; ++i) store(y + i * kWidth, v[i]);
}

void fwht_small(float* y, std::size_t n) {
  for (std::size_t span = 1; span < n; span *= 2) {
    for (std::size_t i = 0; i < n; i += 2 * span) {
      for (std::size_t j = i; j < i + span; ++j) {
        const float a = y[j];
        const float b = y[j + span];
        y[j] = a + b;
        y[j + span] = a - b;
      }
    }
  }
}

// Stages span and 2 * span together.
void fwht_two_stages(float* y, std::size_t n, std::size_t span) {
  for (std::size_t i = 0; i < n; i += 4 * span) {
    for (std::size_t j = i; j < i + span; j += kWidth) {
      const Floats a = load<Floats>(y + j);
      const Floats b = load<Floats>(y + j + span);
      const Floats c = load<Floats>(y + j + 2 * span);
      const Floats e = load<Floats>(y + j + 3 * span);
      const Floats ab = a + b;
      const Floats ba = a - b;
      const Floats ce = c + e;
      const Floats ec = c - e;
      store(y + j, ab + ce);
      store(y + j + span, ba + ec);
      store(y + j + 2 * span, ab - ce);
      store(y + j + 3 * span, ba - ec);
    }
  }
}

void fwht_one_stage(float* y, std::size_t n, std::size_t span) {
  for (std::size_t i = 0; i < n; i += 2 * span) {
    for (std::size_t j = i; j < i + span; j += kWidth) {
      const Floats a = load<Floats>(y + j);
      const Floats b = load<Floats>(y + j + span);
      store(y + j, a + b);
      store(y + j + span, a - b);
    }
  }
}

void fwht(float* y, std::size_t n) {
  if (n < kWidth) return fwht_small(y, n);
  if (n == kWidth) return fwht_base<1>(y);
  if (n == 2 * kWidth) return fwht_base<2>(y);
  if (n == 4 * kWidth) return fwht_base<4>(y);
  for (std::size_t i = 0; i < n; i += 8 * kWidth) fwht_base<8>(y + i);
  std::size_t span = 8 * kWidth;
  for (; 4 * span <= n; span *= 4) fwht_two_stages(y, n, span);
  if (span < n) fwht_one_stage(y, n, span);
}

// ---- encode ----

float quantize(const float* y, std::size_t d, const CodeTable& table, std::uint8_t* codes) {
  const int half = 1 << (table.bits - 1);
  Floats sums[16 / kWidth] = {};
  // Levels are small integers, so adding up their steps in float is exact.
  Floats steps[7];
  for (int t = 0; t < half - 1; ++t) {
    steps[t] = broadcast(static_cast<float>(table.levels[half + t + 1] - table.levels[half + t]));
  }
  const auto first_level = static_cast<float>(table.levels[half]);
  std::size_t i = 0;
  for (; i + 16 <= d; i += 16) {
    for (std::size_t part = 0; part < 16 / kWidth; ++part) {
      const auto v = load<Floats>(y + i + part * kWidth);
      const Floats magnitude = abs_of(v);
      Ints above{};
      Floats level = broadcast(first_level);
      for (int t = 0; t < half - 1; ++t) {
        const Ints passed = magnitude >= table.thresholds[t];
        above -= passed;
        level += reinterpret_cast<Floats>(passed & reinterpret_cast<Ints>(steps[t]));
      }
      const Ints code = half + (above ^ (v < 0.0f));
      store(codes + i + part * kWidth, __builtin_convertvector(code, Bytes));
      sums[part] += magnitude * level;
    }
  }
  float lanes[16];
  std::memcpy(lanes, sums, sizeof lanes);
  for (; i < d; ++i) {
    const float magnitude = __builtin_fabsf(y[i]);
    int above = 0;
    for (int t = 0; t < half - 1; ++t) above += table.thresholds[t] <= magnitude;
    codes[i] = static_cast<std::uint8_t>(y[i] >= 0 ? half + above : half - 1 - above);
    lanes[i % 16] += magnitude * static_cast<float>(table.levels[half + above]);
  }
  for (std::size_t n = 8; n > 0; n /= 2) {
    for (std::size_t j = 0; j < n; ++j) lanes[j] += lanes[j + n];
  }
  return lanes[0];
}

float max_abs(const float* u, std::size_t d) {
  Floats largest{};
  std::size_t i = 0;
  for (; i + kWidth <= d; i += kWidth) {
    const Floats v = abs_of(load<Floats>(u + i));
    largest = v > largest ? v : largest;
  }
  float result = 0;
  for (std::size_t j = 0; j < kWidth; ++j) result = largest[j] > result ? largest[j] : result;
  for (; i < d; ++i) {
    const float v = __builtin_fabsf(u[i]);
    result = v > result ? v : result;
  }
  return result;
}

std::int32_t quantize_query(const float* u, std::size_t d, float factor, std::int8_t* values) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  Ints sums{};
  std::size_t i = 0;
  for (; i + kWidth <= d; i += kWidth) {
    const Floats rounded = (load<Floats>(u + i) * factor + magic) - magic;
    const auto integers = __builtin_convertvector(rounded, Ints);
    sums += integers;
    store(values + i, __builtin_convertvector(integers, Bytes));
  }
  std::int32_t sum = 0;
  for (std::size_t j = 0; j < kWidth; ++j) sum += sums[j];
  for (; i < d; ++i) {
    const float rounded = (u[i] * factor + magic) - magic;
    values[i] = static_cast<std::int8_t>(rounded);
    sum += values[i];
  }
  std::memset(values + d, 0, round_up(d, kBlock) - d);
  return sum;
}

// ---- pack ----

// One plane of a block: byte j collects field k of code j + k * plane, eight bytes at a time.
template <int Width>
inline void pack_plane(const std::uint8_t* codes, int shift, std::uint8_t* out) {
  constexpr std::size_t plane = plane_bytes(Width);
  constexpr std::uint64_t mask = ((1u << Width) - 1) * 0x0101010101010101u;
  for (std::size_t j = 0; j < plane; j += 8) {
    std::uint64_t bytes = 0;
    for (std::size_t k = 0; k < 8 / Width; ++k) {
      const auto eight = load<std::uint64_t>(codes + j + k * plane);
      bytes |= (eight >> shift & mask) << (k * Width);
    }
    store(out + j, bytes);
  }
}

void pack(const std::uint8_t* codes, std::size_t d, int bits, std::uint8_t* packed) {
  std::size_t i = 0;
  for (; i + kBlock <= d; i += kBlock, packed += block_bytes(bits)) {
    switch (bits) {
      case 1:
        pack_plane<1>(codes + i, 0, packed);
        break;
      case 2:
        pack_plane<2>(codes + i, 0, packed);
        break;
      case 3:
        pack_plane<2>(codes + i, 0, packed);
        pack_plane<1>(codes + i, 2, packed + plane_bytes(2));
        break;
      default:
        pack_plane<4>(codes + i, 0, packed);
    }
  }
  if (i < d) pack_tail(codes + i, d - i, bits, packed);
}

}  // namespace
}  // namespace turboquant::kernels
