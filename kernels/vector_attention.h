// Float operations of attention over a compressed cache, for every SIMD backend; see
// vector_kernels.h for the rules.
#pragma once

#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

typedef std::uint16_t Halves __attribute__((vector_size(kWidth * 2)));

inline Floats select_floats(Ints mask, Floats yes, Floats no) {
  return reinterpret_cast<Floats>((mask & reinterpret_cast<Ints>(yes)) |
                                  (~mask & reinterpret_cast<Ints>(no)));
}

// A half's exponent and fraction moved into a float's place, then scaled by 2^112: subnormals too.
inline Floats floats_of_halves(Ints halves) {
  const auto magnitude = reinterpret_cast<Floats>((halves & 0x7fff) << 13) * 0x1p112f;
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(magnitude) | (halves & 0x8000) << 16);
}

// Ties to even: normal numbers by adding just under half of the last place, subnormal ones by
// adding 0.5, whose last place is that of a half.
inline Ints halves_of_floats(Floats x) {
  const Ints sign = (reinterpret_cast<Ints>(x) >> 16) & 0x8000;
  Floats a = abs_of(x);
  a = select_floats(a < 65504.0f, a, broadcast(65504.0f));
  const auto bits = reinterpret_cast<Ints>(a);
  const Ints normal = (bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13;
  const Ints subnormal = reinterpret_cast<Ints>(a + 0.5f) - 0x3f000000;
  const Ints small = a < 0x1p-14f;
  return ((small & subnormal) | (~small & normal)) | sign;
}

void to_half(const float* x, std::size_t n, std::uint16_t* out) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    store(out + i, __builtin_convertvector(halves_of_floats(load<Floats>(x + i)), Halves));
  }
  if (i == n) return;
  Floats rest{};
  std::memcpy(&rest, x + i, (n - i) * sizeof(float));
  const auto halves = __builtin_convertvector(halves_of_floats(rest), Halves);
  std::memcpy(out + i, &halves, (n - i) * sizeof(std::uint16_t));
}

void to_float(const std::uint16_t* x, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    store(out + i, floats_of_halves(__builtin_convertvector(load<Halves>(x + i), Ints)));
  }
  if (i == n) return;
  Halves rest{};
  std::memcpy(&rest, x + i, (n - i) * sizeof(std::uint16_t));
  const Floats floats = floats_of_halves(__builtin_convertvector(rest, Ints));
  std::memcpy(out + i, &floats, (n - i) * sizeof(float));
}

inline float sum_16_lanes(const Floats* sums) {
  float lanes[16];
  std::memcpy(lanes, sums, sizeof lanes);
  for (std::size_t n = 8; n > 0; n /= 2) {
    for (std::size_t j = 0; j < n; ++j) lanes[j] += lanes[j + n];
  }
  return lanes[0];
}

float dot(const float* a, const float* b, std::size_t n) {
  constexpr std::size_t kParts = 16 / kWidth;
  Floats sums[kParts] = {};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (std::size_t p = 0; p < kParts; ++p) {
      sums[p] += load<Floats>(a + i + p * kWidth) * load<Floats>(b + i + p * kWidth);
    }
  }
  if (i < n) {
    float left[16] = {};
    float right[16] = {};
    std::memcpy(left, a + i, (n - i) * sizeof(float));
    std::memcpy(right, b + i, (n - i) * sizeof(float));
    for (std::size_t p = 0; p < kParts; ++p) {
      sums[p] += load<Floats>(left + p * kWidth) * load<Floats>(right + p * kWidth);
    }
  }
  return sum_16_lanes(sums);
}

void add_scaled(const float* x, float factor, std::size_t n, float* y) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    store(y + i, load<Floats>(y + i) + load<Floats>(x + i) * factor);
  }
  for (; i < n; ++i) y[i] += x[i] * factor;
}

// e^x for x <= 0: 2^n by its exponent bits, and the Taylor polynomial of degree 7 on the rest.
inline Floats exp_of(Floats x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Ints alive = x > -87.0f;
  x = select_floats(alive, x, broadcast(0.0f));
  const Floats n = (x * 1.44269504f + magic) - magic;
  const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Floats p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return reinterpret_cast<Floats>(alive &
                                  reinterpret_cast<Ints>(p * reinterpret_cast<Floats>(exponent)));
}

float exp_sum(const float* x, std::size_t n, float shift, float* out) {
  constexpr std::size_t kParts = 16 / kWidth;
  Floats sums[kParts] = {};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (std::size_t p = 0; p < kParts; ++p) {
      const Floats e = exp_of(load<Floats>(x + i + p * kWidth) - shift);
      store(out + i + p * kWidth, e);
      sums[p] += e;
    }
  }
  if (i < n) {
    float rest[16];
    for (float& value : rest) value = -__builtin_inff();
    std::memcpy(rest, x + i, (n - i) * sizeof(float));
    for (std::size_t p = 0; p < kParts; ++p) {
      const Floats e = exp_of(load<Floats>(rest + p * kWidth) - shift);
      store(rest + p * kWidth, e);
      sums[p] += e;
    }
    std::memcpy(out + i, rest, (n - i) * sizeof(float));
  }
  return sum_16_lanes(sums);
}

// Lanes with the bit Span set from yes, the others from no.
template <std::size_t Span>
inline Floats where_set(Floats yes, Floats no) {
  Ints mask{};
  for (std::size_t i = 0; i < kWidth; ++i) mask[i] = (i & Span) != 0 ? -1 : 0;
  return select_floats(mask, yes, no);
}

// One step of a transposition: the blocks of Span x Span off the diagonal change places.
template <std::size_t Span>
inline void exchange_blocks(Floats* rows) {
  if constexpr (Span < kWidth) {
    for (std::size_t i = 0; i < kWidth; ++i) {
      if ((i & Span) != 0) continue;
      const Floats a = rows[i];
      const Floats b = rows[i | Span];
      rows[i] = where_set<Span>(exchange<Span>(b), a);
      rows[i | Span] = where_set<Span>(b, exchange<Span>(a));
    }
  }
}

void add_tile_scores(const std::int32_t* dots, std::size_t n, const float* factors,
                     const float* steps, float* scores, std::size_t stride) {
  for (std::size_t first = 0; first < kLane; first += kWidth) {
    const Floats step = load<Floats>(steps + first);
    std::size_t t = 0;
    for (; t + kWidth <= n; t += kWidth) {
      Floats rows[kWidth];
      for (std::size_t i = 0; i < kWidth; ++i) {
        const Ints row = load<Ints>(dots + (t + i) * kLane + first);
        rows[i] = __builtin_convertvector(row, Floats) * (step * factors[t + i]);
      }
      exchange_blocks<1>(rows);
      exchange_blocks<2>(rows);
      exchange_blocks<4>(rows);
      exchange_blocks<8>(rows);
      for (std::size_t l = 0; l < kWidth; ++l) {
        float* to = scores + (first + l) * stride + t;
        store(to, load<Floats>(to) + rows[l]);
      }
    }
    for (; t < n; ++t) {
      for (std::size_t l = first; l < first + kWidth; ++l) {
        scores[l * stride + t] += static_cast<float>(dots[t * kLane + l]) * (factors[t] * steps[l]);
      }
    }
  }
}

void add_tile_sums(const std::int32_t* dots, std::size_t n, const float* steps, float* sums) {
  constexpr std::size_t kParts = kLane / kWidth;
  Floats step[kParts];
  for (std::size_t p = 0; p < kParts; ++p) step[p] = load<Floats>(steps + p * kWidth);
  for (std::size_t i = 0; i < n * kLane; i += kLane) {
    for (std::size_t p = 0; p < kParts; ++p) {
      const Ints row = load<Ints>(dots + i + p * kWidth);
      float* to = sums + i + p * kWidth;
      store(to, load<Floats>(to) + __builtin_convertvector(row, Floats) * step[p]);
    }
  }
}

float take_off(const std::int8_t* values, float step, std::size_t n, float* x) {
  constexpr std::size_t kParts = 16 / kWidth;
  Floats sums[kParts] = {};
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (std::size_t p = 0; p < kParts; ++p) {
      float* at = x + i + p * kWidth;
      const auto value = __builtin_convertvector(load<Bytes>(values + i + p * kWidth), Floats);
      const Floats rest = load<Floats>(at) - value * step;
      store(at, rest);
      sums[p] += abs_of(rest);
    }
  }
  if (i < n) {
    float rest[16] = {};
    for (std::size_t l = 0; i + l < n; ++l) {
      x[i + l] -= static_cast<float>(values[i + l]) * step;
      rest[l] = x[i + l];
    }
    for (std::size_t p = 0; p < kParts; ++p) sums[p] += abs_of(load<Floats>(rest + p * kWidth));
  }
  return sum_16_lanes(sums);
}

}  // namespace
}  // namespace turboquant::kernels
