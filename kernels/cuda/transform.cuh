// The rotation of docs/code_format.md in shared memory, and sums in the order that the format
// fixes. A vector of floats y lies padded, element i at pad(i), against bank conflicts.
#pragma once

#include <cstdint>

namespace turboquant::cuda {

struct RotationView {
  const std::uint32_t* signs;  // [rounds][words of window]: bit i % 32 of word i / 32 set for plus
  float size;                  // 1 / sqrt(window)
  int window;
  int log_window;
  int rounds;
  int shift;  // where the window of odd rounds begins
};

// Four after every 32, so that four neighbours from a multiple of four on are one access.
__host__ __device__ constexpr int pad(int i) { return i + (i >> 5 << 2); }

/// Threads that share a vector: a warp, or the block.
template <bool kWarp>
struct Team {
  __device__ static int thread() { return kWarp ? threadIdx.x % 32 : threadIdx.x; }
  __device__ static int size() { return kWarp ? 32 : blockDim.x; }
  __device__ static void sync() {
    if constexpr (kWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};

// Where the elements of a pass lie: neighbours, 32 or a multiple of it apart, or anyhow. In the
// first three cases their padded places are a constant apart, if the window begins at a multiple
// of 32.
enum class Span { kOne, k32, kMultiple, kAny };

// kStages stages from a span on, in registers. The first pass of a round also applies the signs.
template <bool kWarp, int kStages, bool kFirst, Span kSpan>
__device__ __forceinline__ void transform_pass(float* y, int offset, const RotationView& r,
                                               const std::uint32_t* signs, int log_span) {
  constexpr int kRadix = 1 << kStages;
  const int items = r.window >> kStages;
  const int below = (1 << log_span) - 1;
  for (int w = Team<kWarp>::thread(); w < items; w += Team<kWarp>::size()) {
    const int base = ((w & ~below) << kStages) | (w & below);
    float* const first = y + pad(offset + base);
    const auto at = [&](int e) -> float& {
      if constexpr (kSpan == Span::kOne) {
        return first[e];
      } else if constexpr (kSpan == Span::k32) {
        return first[36 * e];
      } else if constexpr (kSpan == Span::kMultiple) {
        return first[e * pad(1 << log_span)];
      } else {
        return y[pad(offset + base + (e << log_span))];
      }
    };
    float v[kRadix];
    constexpr bool kByFour = kSpan == Span::kOne && kRadix >= 4;
    if constexpr (kByFour) {
#pragma unroll
      for (int e = 0; e < kRadix; e += 4) {
        const float4 four = *reinterpret_cast<const float4*>(first + e);
        v[e] = four.x;
        v[e + 1] = four.y;
        v[e + 2] = four.z;
        v[e + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int e = 0; e < kRadix; ++e) v[e] = at(e);
    }
    if constexpr (kFirst) {
      const std::uint32_t minus = ~(signs[base >> 5] >> (base & 31));
#pragma unroll
      for (int e = 0; e < kRadix; ++e) {
        v[e] = __int_as_float(__float_as_int(v[e] * r.size) ^ (minus << (31 - e) & 0x80000000u));
      }
    }
#pragma unroll
    for (int span = 1; span < kRadix; span *= 2) {
#pragma unroll
      for (int e = 0; e < kRadix; ++e) {
        if ((e & span) != 0) continue;
        const float a = v[e];
        const float b = v[e + span];
        v[e] = a + b;
        v[e + span] = a - b;
      }
    }
    if constexpr (kByFour) {
#pragma unroll
      for (int e = 0; e < kRadix; e += 4) {
        *reinterpret_cast<float4*>(first + e) = make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kRadix; ++e) at(e) = v[e];
    }
  }
}

template <bool kWarp, bool kFirst, Span kSpan>
__device__ __forceinline__ void transform_stages(float* y, int offset, const RotationView& r,
                                                 const std::uint32_t* signs, int log_span,
                                                 int stages) {
  switch (stages) {
    case 0:
      return transform_pass<kWarp, 0, kFirst, kSpan>(y, offset, r, signs, log_span);
    case 1:
      return transform_pass<kWarp, 1, kFirst, kSpan>(y, offset, r, signs, log_span);
    case 2:
      return transform_pass<kWarp, 2, kFirst, kSpan>(y, offset, r, signs, log_span);
    case 3:
      return transform_pass<kWarp, 3, kFirst, kSpan>(y, offset, r, signs, log_span);
    case 4:
      return transform_pass<kWarp, 4, kFirst, kSpan>(y, offset, r, signs, log_span);
    default:
      return transform_pass<kWarp, 5, kFirst, kSpan>(y, offset, r, signs, log_span);
  }
}

// All rounds of a window of 32 kEach coordinates, by a warp: kEach neighbours a lane, and stages
// between lanes by exchange.
template <int kEach>
__device__ __forceinline__ void rotate_in_registers(float* y, const RotationView& r) {
  const int lane = threadIdx.x % 32;
  for (int round = 0; round < r.rounds; ++round) {
    const int first = (round % 2 == 0 ? 0 : r.shift) + lane * kEach;
    const int bit = lane * kEach;
    const std::uint32_t minus = ~(r.signs[round * kEach + bit / 32] >> (bit % 32));
    float v[kEach];
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const float scaled = y[pad(first + e)] * r.size;
      v[e] = __int_as_float(__float_as_int(scaled) ^ (minus << (31 - e) & 0x80000000u));
    }
#pragma unroll
    for (int span = 1; span < kEach; span *= 2) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        if ((e & span) != 0) continue;
        const float a = v[e];
        const float b = v[e + span];
        v[e] = a + b;
        v[e + span] = a - b;
      }
    }
#pragma unroll
    for (int span = 1; span < 32; span *= 2) {
      const std::uint32_t negate = (lane & span) != 0 ? 0x80000000u : 0u;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const float other = __shfl_xor_sync(0xffffffffu, v[e], span);
        v[e] = other + __int_as_float(__float_as_int(v[e]) ^ negate);
      }
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) y[pad(first + e)] = v[e];
    __syncwarp();
  }
}

/// y = R y. Ends with a synchronization of the team.
template <bool kWarp>
__device__ void rotate(float* y, const RotationView& r) {
  if constexpr (kWarp) {
    switch (r.window) {
      case 32:
        return rotate_in_registers<1>(y, r);
      case 64:
        return rotate_in_registers<2>(y, r);
      case 128:
        return rotate_in_registers<4>(y, r);
      case 256:
        return rotate_in_registers<8>(y, r);
      default:
        break;
    }
  }
  // Few, even passes, of as many stages as leave work for all threads.
  const int most = kWarp ? (r.log_window >= 10 ? 5 : 3)
                         : min(5, max(2, r.log_window - (31 - __clz(blockDim.x))));
  const int passes = r.log_window == 0 ? 1 : (r.log_window + most - 1) / most;
  const int words = (r.window + 31) / 32;
  for (int round = 0; round < r.rounds; ++round) {
    const int offset = round % 2 == 0 ? 0 : r.shift;
    int log_span = 0;
    for (int pass = 0; pass < passes; ++pass) {
      const int stages = (r.log_window - log_span + passes - pass - 1) / (passes - pass);
      const std::uint32_t* signs = r.signs + round * words;
      const bool aligned = offset % 32 == 0;
      if (pass == 0 && aligned) {
        transform_stages<kWarp, true, Span::kOne>(y, offset, r, signs, 0, stages);
      } else if (pass == 0) {
        transform_stages<kWarp, true, Span::kAny>(y, offset, r, signs, 0, stages);
      } else if (aligned && log_span == 5 && stages == 5) {
        transform_pass<kWarp, 5, false, Span::k32>(y, offset, r, signs, log_span);
      } else if (aligned && log_span >= 5) {
        transform_stages<kWarp, false, Span::kMultiple>(y, offset, r, signs, log_span, stages);
      } else {
        transform_stages<kWarp, false, Span::kAny>(y, offset, r, signs, log_span, stages);
      }
      log_span += stages;
      Team<kWarp>::sync();
    }
  }
}

/// Asks for what rotate_between_lanes reads, long before: each time it would wait for memory.
__device__ inline void prefetch_signs(const RotationView& r) {
  const int words = r.window / 32 * r.rounds;
  for (int i = threadIdx.x * 32; i < words; i += blockDim.x * 32) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(r.signs + i));
  }
}

/// The same by all warps of a block, for few vectors: five stages at a time, between the lanes of a
/// warp. r.window: at least 32.
__device__ inline void rotate_between_lanes(float* y, const RotationView& r) {
  const int lane = threadIdx.x % 32;
  const int words = r.window / 32;
  for (int round = 0; round < r.rounds; ++round) {
    float* const window = y + pad(round % 2 == 0 ? 0 : r.shift);
    const bool aligned = r.shift % 32 == 0 || round % 2 == 0;
    const int offset = round % 2 == 0 ? 0 : r.shift;
    const std::uint32_t* signs = r.signs + round * words;
    for (int stage = 0; stage < r.log_window; stage += 5) {
      // Lanes have five bits of an element's place, from `first` on.
      const int first = min(stage, r.log_window - 5);
      const int begin = 1 << (stage - first);
      for (int set = threadIdx.x / 32; set < words; set += blockDim.x / 32) {
        const int below = set & ((1 << first) - 1);
        const int place = below | lane << first | (set - below) << 5;
        float& at = aligned ? window[pad(place)] : y[pad(offset + place)];
        float v = at;
        if (stage == 0) {
          const std::uint32_t minus = ~(signs[set] >> lane);
          v = __int_as_float(__float_as_int(v * r.size) ^ (minus << 31));
        }
        for (int span = begin; span < 32; span *= 2) {
          const float other = __shfl_xor_sync(0xffffffffu, v, span);
          v = other + __int_as_float(__float_as_int(v) ^ ((lane & span) != 0 ? 0x80000000u : 0));
        }
        at = v;
      }
      __syncthreads();
    }
  }
}

/// Sum of squares in double of v[d], by eight threads that lie together in a warp: lane i % 8 adds,
/// lanes are added pairwise. The first one's result counts. active: threads of the warp that call.
__device__ inline double sum_of_squares(const float* v, int d, unsigned active = 0xffffffffu) {
  const int lane = threadIdx.x % 8;
  double sum = 0;
  const float* at = v + lane;  // 64 elements are 72 apart
  for (int m = 0; m < d / 64; ++m, at += pad(64)) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const double x = at[pad(8 * j)];
      sum = __fma_rn(x, x, sum);  // squares of floats are exact: as if it were not fused
    }
  }
  for (int i = d / 64 * 64 + lane; i < d; i += 8) {
    const double x = v[pad(i)];
    sum = __fma_rn(x, x, sum);
  }
  for (int half = 4; half > 0; half /= 2) sum += __shfl_down_sync(active, sum, half, 8);
  return sum;
}

/// The same for each of kVectors vectors, `pitch` apart. All threads of the block call it, after a
/// barrier of the block; it ends with one.
template <int kVectors>
__device__ void norms_squared(const float* y, int pitch, int d, double* out) {
  if (threadIdx.x < kVectors * 8) {
    constexpr unsigned kActive = kVectors >= 4 ? 0xffffffffu : (1u << (kVectors * 8)) - 1;
    const double sum = sum_of_squares(y + (threadIdx.x / 8) * pitch, d, kActive);
    if (threadIdx.x % 8 == 0) out[threadIdx.x / 8] = sum;
  }
  __syncthreads();
}

/// Sum of y[i] * (by ? by[i] : 1) in float: lane i % 16 adds, lanes are added pairwise. As above.
template <int kVectors>
__device__ void lane_sums(const float* y, int pitch, int d, const float* by, float* out) {
  if (threadIdx.x < kVectors * 16) {
    const float* v = y + (threadIdx.x / 16) * pitch;
    const int lane = threadIdx.x % 16;
    float sum = 0;
    if (by == nullptr) {
      const float* at = v + lane;
      for (int m = 0; m < d / 64; ++m, at += pad(64)) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum += at[pad(16 * j)];
      }
      for (int i = d / 64 * 64 + lane; i < d; i += 16) sum += v[pad(i)];
    } else {
#pragma unroll 8
      for (int i = lane; i < d; i += 16) sum += by[i] * v[pad(i)];
    }
    const unsigned active = kVectors >= 2 ? 0xffffffffu : 0xffffu;
    for (int half = 8; half > 0; half /= 2) sum += __shfl_down_sync(active, sum, half, 16);
    if (lane == 0) out[threadIdx.x / 16] = sum;
  }
  __syncthreads();
}

}  // namespace turboquant::cuda
