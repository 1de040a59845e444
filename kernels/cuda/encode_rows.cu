#include <algorithm>
#include <cmath>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/codec_view.cuh"
#include "kernels/cuda/encode_rows.h"
#include "kernels/cuda/register_rotation.cuh"

namespace turboquant::cuda {
namespace {

constexpr int kVectors = 4;  // of a block, one a warp
constexpr int kThreads = 32 * kVectors;
constexpr int kBatches = 4;  // of vectors that a block takes, one after another

template <int kLog, int kRounds>
struct Size {
  static_assert(kRounds == 2 || kRounds == 4);
  static constexpr int kPlane = 1 << kLog;
  static constexpr int kPlanes = kRounds == 4 ? 3 : 2;
  static constexpr int kDimension = kPlane * kPlanes;
  static constexpr int kRegisters = kPlane / kLanesOfPlane;
  static constexpr int kPitch = (pad(kDimension) + 31) / 32 * 32 + 8;
  static constexpr int kSigns = kVectors * kPitch;                 // where they begin
  static constexpr int kRows = kSigns + kRounds * 32;              // where packed rows begin
  static constexpr int kRowBytes = kDimension / 2;                 // at most
  static constexpr int kBytes = 4 * kRows + kVectors * kRowBytes;  // beside the quantizer's
  // 1 / sqrt(window) is a power of two.
  static constexpr bool kExactSize = (kLog + 1) % 2 == 0;
};

constexpr int kShift = 16;  // of the second half of a plane: it is in other banks

__host__ __device__ constexpr float power_of_two(int exponent) {
  float power = 1;
  for (int i = 0; i < exponent; ++i) power *= 2;
  for (int i = 0; i > exponent; --i) power /= 2;
  return power;
}

// Where a rotation multiplies by a power of two, the sizes of all rounds are taken together: a
// vector is scaled to begin with so that it ends as it should. That is exact as long as no number
// is so small that it has fewer digits, which is certain if none is below this at first: all
// numbers that follow are multiples of its last digit.
constexpr float kSmallest = 0x1p-90f;

// v becomes float(double(v) * factor). False where one is below kSmallest.
template <int kN>
__device__ __forceinline__ bool scale_by(float (&v)[kN], double factor) {
  bool large = true;
#pragma unroll
  for (int e = 0; e < kN; ++e) {
    v[e] = static_cast<float>(v[e] * factor);
    large = large && fabsf(v[e]) >= kSmallest;
  }
  return large;
}

// Cells of a quarter up to the largest magnitude there is, sqrt(1,536).
constexpr int kWideCells = 256;

// Tables in shared memory, by address there: of each cell the threshold in it and where the
// magnitude of the level below it is. Magnitudes lie largest first: the next larger one is before
// it.
class Quantizer {
 public:
  static constexpr int kCellBytes = kWideCells * 8;
  static constexpr int kBytes = kCellBytes + 32;

  /// memory: kBytes, at a multiple of kCellBytes. Takes effect with the block's next barrier.
  __device__ Quantizer(const CodecView& v, char* memory)
      : cells_(static_cast<std::uint32_t>(__cvta_generic_to_shared(memory))) {
    const int ranks = 1 << (v.layout.bits - 1);
    for (int i = threadIdx.x; i < kWideCells; i += kThreads) {
      const Cell& cell = v.cells[min(i, kCells - 1)];
      const std::uint32_t above = static_cast<std::uint32_t>(ranks - 1) - cell.rank / kRankStep;
      reinterpret_cast<uint2*>(memory)[i] =
          make_uint2(__float_as_uint(cell.threshold), magnitudes() + 4 * above);
    }
    if (static_cast<int>(threadIdx.x) < ranks) {
      reinterpret_cast<float*>(memory + kCellBytes)[threadIdx.x] =
          v.magnitudes[ranks - 1 - threadIdx.x];
    }
  }

  /// Where magnitudes begin.
  __device__ std::uint32_t magnitudes() const { return cells_ + kCellBytes; }

  /// Where the magnitude of a's level is.
  __device__ __forceinline__ std::uint32_t find(float a) const {
    // Which cell a value beside a border falls into does not matter.
    const std::uint32_t at =
        (__float_as_uint(__fmaf_rn(a, 32.0f, 8388608.0f)) & (kCellBytes - 8)) | cells_;
    float threshold;
    std::uint32_t level;
    asm("ld.shared.v2.b32 {%0, %1}, [%2];" : "=f"(threshold), "=r"(level) : "r"(at));
    if (threshold <= a) level -= 4;
    return level;
  }
  __device__ __forceinline__ float magnitude(std::uint32_t at) const {
    float value;
    asm("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(at));
    return value;
  }

 private:
  std::uint32_t cells_;
};

// Codes of the values v[i], of place 16 i + lane from coordinate 64 block on, of a half of a warp;
// none is -0. A value becomes its product with its level.
template <int kBits, int kN>
__device__ __forceinline__ void pack_values(const CodecView& view, const Quantizer& q,
                                            float (&v)[kN], int block, std::uint8_t* row) {
  const int lane = threadIdx.x % 16;
  // Four fields of a word; of 4 bits in the order of a packed row.
  constexpr int kWidth = kBits == 4 ? 4 : 2;
  constexpr std::uint32_t kOnes = kBits == 4 ? 0x1111u : 0x55u;
  const std::uint32_t excess = q.magnitudes() * kOnes;
#pragma unroll
  for (int m = 0; m < kN; m += 4, ++block) {
    std::uint32_t signs = 0;
    std::uint32_t levels = 0;
#pragma unroll
    for (int i = 3; i >= 0; --i) {
      float& value = v[m + (kBits == 4 ? (i % 2) * 2 + i / 2 : i)];
      signs = __funnelshift_l(__float_as_uint(value), signs, kWidth);
      if constexpr (kBits > 1) {
        const float a = fabsf(value);
        const std::uint32_t level = q.find(a);
        levels = levels * (1u << kWidth) + level;
        value = a * q.magnitude(level);
      } else {
        value = fabsf(value);
      }
    }
    const std::uint32_t ranks = (levels - excess) / 4;
    const std::uint32_t plus = ~signs >> (kWidth - 1) & kOnes;
    if constexpr (kBits == 4) {
      const std::uint32_t codes = ranks ^ plus * 15;
      row[32 * block + lane] = static_cast<std::uint8_t>(codes);
      row[32 * block + 16 + lane] = static_cast<std::uint8_t>(codes >> 8);
    } else if constexpr (kBits > 1) {
      row[16 * block + lane] = static_cast<std::uint8_t>(ranks ^ plus * 3);
    }
    if constexpr (kBits == 1 || kBits == 3) {
      // A byte has one bit of every eighth coordinate: of this lane and of the one 8 away.
      std::uint32_t top = plus << (lane / 8);
      top |= __shfl_xor_sync(0xffffffffu, top, 8);
      const int first = kBits == 3 ? view.layout.top : 0;
      if (lane < 8) row[first + 8 * block + lane] = static_cast<std::uint8_t>(top);
    }
  }
}

template <int kN>
__device__ __forceinline__ float add_all(float sum, const float (&v)[kN]) {
#pragma unroll
  for (int e = 0; e < kN; ++e) sum += v[e];
  return sum;
}

// The sum of a half of a warp, pairwise, in its first lane.
__device__ __forceinline__ float add_lanes(float sum) {
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, distance, 16);
  }
  return sum;
}

__device__ __forceinline__ float of_half(float value, int half) {
  return __shfl_sync(0xffffffffu, value, 16 * half + threadIdx.x % 16);
}

// The row of a vector that is rotated, its planes in the halves of the warp; <y, z> in lane 16.
template <int kBits, int kN>
__device__ __forceinline__ float pack_two(const CodecView& view, const Quantizer& q, float (&v)[kN],
                                          std::uint8_t* row) {
  const int half = threadIdx.x % 32 / 16;
  pack_values<kBits>(view, q, v, half * kN / 4, row);
  // The order of the additions is the format's: coordinates lane + 16 m by ascending m.
  const float sum = of_half(add_all(0, v), 0);
  return add_lanes(add_all(sum, v));
}

// The same of three planes, of which the halves have the third and the second, and half of the
// first each; <y, z> in lane 0.
template <int kBits, int kN>
__device__ __forceinline__ float pack_three(const CodecView& view, const Quantizer& q,
                                            float (&first)[kN / 2], float (&v)[kN],
                                            std::uint8_t* row) {
  const int half = threadIdx.x % 32 / 16;
  pack_values<kBits>(view, q, first, half * kN / 8, row);
  pack_values<kBits>(view, q, v, (2 - half) * kN / 4, row);
  float sum = of_half(add_all(0, first), 0);
  sum = add_all(sum, first);
  sum = of_half(add_all(sum, v), 1);
  return add_lanes(add_all(sum, v));
}

template <int kN>
__device__ __forceinline__ void load_fours(const float* y, int first, float (&v)[kN]) {
  const float* at = y + pad(first) + pad(threadIdx.x % 32 * 4);
#pragma unroll
  for (int e = 0; e < kN; e += 4) {
    const float4 four = *reinterpret_cast<const float4*>(at + pad(32 * e));
    v[e] = four.x;
    v[e + 1] = four.y;
    v[e + 2] = four.z;
    v[e + 3] = four.w;
  }
}

template <int kN>
__device__ __forceinline__ void store_fours(float* y, int first, const float (&v)[kN]) {
  float* at = y + pad(first) + pad(threadIdx.x % 32 * 4);
#pragma unroll
  for (int e = 0; e < kN; e += 4) {
    *reinterpret_cast<float4*>(at + pad(32 * e)) = make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]);
  }
}

// The rounds of a rotation. kTogether: with the sizes of the rounds in what v and, of three planes,
// the last one at y have been scaled by.
template <int kLog, int kRounds, bool kTogether>
struct Rounds {
  using S = Size<kLog, kRounds>;
  static constexpr int kN = S::kRegisters;

  __device__ Rounds(const std::uint32_t* lane_signs, float factor)
      : half(threadIdx.x % 32 / 16),
        lane(threadIdx.x % 16),
        signs(lane_signs + threadIdx.x % 32),
        size(factor) {
#pragma unroll
    for (int bit = 0; bit < 4; ++bit) lane_sign[bit] = (lane >> bit & 1) != 0 ? -1.0f : 1.0f;
    second = half != 0 ? -1.0f : 1.0f;
  }

  template <int kA>
  __device__ __forceinline__ void round(float (&v)[kN], float sign) const {
    const std::uint32_t minus = signs[32 * (kRounds - kA)];
    if constexpr (kTogether) {
      negate(v, minus);
    } else {
      apply_signs(v, minus, size);
    }
    transform_plane<kA>(v, lane_sign);
    add_and_subtract_planes(v, sign);
  }

  __device__ __forceinline__ void two_planes(float (&v)[kN]) const {
    round<2>(v, second);
    round<1>(v, second);
    finish(v);
  }

  // The second half keeps the middle plane; the first has the first and the last in turn.
  __device__ __forceinline__ void three_planes(float* y, float (&first)[kN / 2],
                                               float (&v)[kN]) const {
    constexpr int kLast = 2 * S::kPlane;
    constexpr int kPower = kTogether ? (kLog + 1) / 2 : 0;
    round<4>(v, second);
    __syncwarp();
    if (half == 0) {
      store_plane<3>(y, 0, lane, v);
      load_plane<3>(y, kLast, lane, v);
    }
    __syncwarp();
    round<3>(v, -second);
    if (half == 0) {
      store_plane<2>(y, kLast, lane, v);
      load_plane<2>(y, 0, lane, v);
    } else if constexpr (kTogether) {
      // The middle plane has been in one round more.
#pragma unroll
      for (int e = 0; e < kN; ++e) v[e] *= power_of_two(-kPower);
    }
    __syncwarp();
    round<2>(v, second);
    if (half == 0) {
      store_plane<1>(y, 0, lane, v, kShift);
      load_plane<1>(y, kLast, lane, v);
    }
    __syncwarp();
    const float* from = y + half * (pad(S::kPlane / 2) + kShift) + lane;
    float turn[4];  // by what tells lane and register apart in the layout that it was left in
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      turn[e] =
          turned(lane >> 1 | (e & 1) << 3, e & 2, 1) ? -power_of_two(kPower) : power_of_two(kPower);
    }
#pragma unroll
    for (int e = 0; e < kN / 2; ++e) first[e] = __fmaf_rn(from[pad(16 * e)], turn[e & 3], 0);
    round<1>(v, -second);
    finish(v);
  }

  // Turned values become what they are, and -0 becomes 0.
  __device__ __forceinline__ void finish(float (&v)[kN]) const {
    const float turn[2] = {turned(lane, 0, 0) ? -1.0f : 1.0f, turned(lane, 1, 0) ? -1.0f : 1.0f};
#pragma unroll
    for (int e = 0; e < kN; ++e) v[e] = __fmaf_rn(v[e], turn[e & 1], 0);
  }

  int half, lane;
  const std::uint32_t* signs;
  float size;
  float lane_sign[4];
  float second;
};

// Factors by which a vector is scaled to begin with, beside sqrt(d) / |x|, so that it is as it
// should be after rounds without sizes; its last plane of three sits the first round out.
template <int kLog, int kRounds>
__device__ constexpr float first_power() {
  return power_of_two(-(kRounds == 4 ? 3 : 2) * (kLog + 1) / 2);
}
template <int kLog, int kRounds>
__device__ constexpr float last_power() {
  return power_of_two(-(kLog + 1));
}

// v = R (factor x), x at y; of three planes with the first in `first`.
template <int kLog, int kRounds>
__device__ __forceinline__ void rotate_row(float* y, double factor, const std::uint32_t* signs,
                                           float size,
                                           float (&first)[Size<kLog, kRounds>::kRegisters / 2],
                                           float (&v)[Size<kLog, kRounds>::kRegisters]) {
  using S = Size<kLog, kRounds>;
  constexpr int kA = kRounds;
  constexpr int kLast = 2 * S::kPlane;
  constexpr int kOfLast = S::kPlanes == 3 ? S::kPlane / 32 : 4;
  const int half = threadIdx.x % 32 / 16;
  const int lane = threadIdx.x % 16;
  float last[kOfLast];
  const auto load = [&] {
    load_plane<kA>(y, half * S::kPlane, lane, v);
    if constexpr (S::kPlanes == 3) load_fours(y, kLast, last);
  };
  const auto rotate = [&](const auto& rounds) {
    if constexpr (S::kPlanes == 3) {
      store_fours(y, kLast, last);
      __syncwarp();
      rounds.three_planes(y, first, v);
    } else {
      rounds.two_planes(v);
    }
  };
  if constexpr (S::kExactSize) {
    load();
    bool large = scale_by(v, factor * first_power<kLog, kRounds>());
    if constexpr (S::kPlanes == 3) {
      large = scale_by(last, factor * last_power<kLog, kRounds>()) && large;
    }
    if (__all_sync(0xffffffffu, large)) {
      rotate(Rounds<kLog, kRounds, true>(signs, size));
      return;
    }
  }
  load();
  scale_by(v, factor);
  if constexpr (S::kPlanes == 3) scale_by(last, factor);
  rotate(Rounds<kLog, kRounds, false>(signs, size));
}

template <int kBits, int kLog, int kRounds>
__device__ __forceinline__ float pack_row(const CodecView& view, const Quantizer& q,
                                          float (&first)[Size<kLog, kRounds>::kRegisters / 2],
                                          float (&v)[Size<kLog, kRounds>::kRegisters],
                                          std::uint8_t* row) {
  if constexpr (Size<kLog, kRounds>::kPlanes == 3) {
    return pack_three<kBits>(view, q, first, v, row);
  } else {
    return pack_two<kBits>(view, q, v, row);
  }
}

template <int kLog, int kRounds, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    encode_rows_kernel(const __grid_constant__ CodecView v, const std::uint32_t* lane_signs,
                       const float* x, size_t n, RowPointers rows, unsigned long long first_row,
                       unsigned long long* bad_row) {
  using S = Size<kLog, kRounds>;
  extern __shared__ __align__(16) char shared[];
  __shared__ double norms_squared[kVectors];
  __shared__ double norms[kVectors];
  __shared__ double factors[kVectors];
  __shared__ float products[kVectors];
  constexpr int kTable = Quantizer::kCellBytes;
  const auto begin = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  char* const table = shared + (kTable - begin % kTable) % kTable;
  auto* const memory = reinterpret_cast<float*>(table + Quantizer::kBytes);
  const Quantizer quantizer(v, table);
  auto* signs = reinterpret_cast<std::uint32_t*>(memory + S::kSigns);
  for (int i = threadIdx.x; i < kRounds * 32; i += kThreads) signs[i] = lane_signs[i];

  const int vector = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  float* const y = memory + vector * S::kPitch;
  auto* const packed = reinterpret_cast<std::uint8_t*>(memory + S::kRows) + vector * S::kRowBytes;
  const size_t end = min(n, (blockIdx.x + size_t{1}) * kVectors * kBatches);
  for (size_t first = blockIdx.x * size_t{kVectors * kBatches}; first < end; first += kVectors) {
    const size_t row = first + static_cast<size_t>(vector);
    const float* from = x + min(row, n - 1) * S::kDimension;
#pragma unroll
    for (int at = 0; at < S::kDimension; at += 128) {
      const auto to = static_cast<unsigned>(__cvta_generic_to_shared(y + pad(at) + pad(4 * lane)));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from + at + 4 * lane)
                   : "memory");
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    // Eight threads a vector: those of all vectors are one warp.
    const auto take_norms = [&] {
      if (threadIdx.x < 32) {
        const double sum = sum_of_squares(memory + threadIdx.x / 8 * S::kPitch, S::kDimension);
        if (threadIdx.x % 8 == 0) {
          const double norm = sqrt(sum);
          norms_squared[threadIdx.x / 8] = sum;
          norms[threadIdx.x / 8] = norm;
          factors[threadIdx.x / 8] = norm > 0 ? v.sqrt_d / norm : 0;
        }
      }
      __syncthreads();
    };
    take_norms();
    if (v.normalize) {
      const double factor = norms_squared[vector] > 0 ? 1 / norms[vector] : 0;
      for (int i = lane; i < S::kDimension; i += 32) {
        y[pad(i)] = static_cast<float>(y[pad(i)] * factor);
      }
      __syncthreads();
      take_norms();
    }
    float values[S::kRegisters];
    float of_first[S::kRegisters / 2];
    rotate_row<kLog, kRounds>(y, factors[vector], signs, v.rotation.size, of_first, values);
    float product = 0;
    switch (v.layout.bits) {
      case 1:
        product = pack_row<1, kLog, kRounds>(v, quantizer, of_first, values, packed);
        break;
      case 2:
        product = pack_row<2, kLog, kRounds>(v, quantizer, of_first, values, packed);
        break;
      case 3:
        product = pack_row<3, kLog, kRounds>(v, quantizer, of_first, values, packed);
        break;
      default:
        product = pack_row<4, kLog, kRounds>(v, quantizer, of_first, values, packed);
    }
    if (lane == (S::kPlanes == 3 ? 0 : 16)) products[vector] = product;
    __syncwarp();
    if (row < n) {
      auto* to = reinterpret_cast<uint4*>(rows.codes + row * static_cast<size_t>(v.layout.stride));
      for (int i = lane; i < v.layout.stride / 16; i += 32) {
        to[i] = reinterpret_cast<const uint4*>(packed)[i];
      }
    }
    __syncthreads();
    // Its first warp alone writes the norms of the next vectors, after this.
    if (threadIdx.x < kVectors && first + threadIdx.x < n) {
      const size_t at = first + threadIdx.x;
      const double norm = norms[threadIdx.x];
      const double norm_squared = norms_squared[threadIdx.x];
      if (!isfinite(norm_squared)) atomicMin(bad_row, first_row + at);
      float scale = 0;
      if (norm != 0) {
        scale = v.mse ? saturate(norm * v.step_exact / v.sqrt_d)
                      : saturate(norm * v.sqrt_d / static_cast<double>(products[threadIdx.x]));
      }
      rows.scale[at] = scale;
      if (rows.norm != nullptr) rows.norm[at] = saturate(norm_squared);
    }
  }
}

// The quantizer's tables are moved to where they are aligned.
template <int kLog, int kRounds>
constexpr int shared_bytes() {
  return Quantizer::kCellBytes - 16 + Quantizer::kBytes + Size<kLog, kRounds>::kBytes;
}

const RowEncoder kEncoders[] = {
    {6, 2, shared_bytes<6, 2>(), encode_rows_kernel<6, 2, 8>},
    {7, 2, shared_bytes<7, 2>(), encode_rows_kernel<7, 2, 8>},
    {8, 2, shared_bytes<8, 2>(), encode_rows_kernel<8, 2, 8>},
    {9, 2, shared_bytes<9, 2>(), encode_rows_kernel<9, 2, 6>},
    {8, 4, shared_bytes<8, 4>(), encode_rows_kernel<8, 4, 8>},
    {9, 4, shared_bytes<9, 4>(), encode_rows_kernel<9, 4, 6>},
};

}  // namespace

const RowEncoder* row_encoder(const CodecTables& tables) {
  if (tables.trellis != nullptr || tables.two_parts || tables.centre != nullptr ||
      tables.rotation.factors == nullptr) {
    return nullptr;
  }
  for (const RowEncoder& encoder : kEncoders) {
    const std::size_t plane = std::size_t{1} << encoder.log_plane;
    const std::size_t planes = encoder.rounds == 4 ? 3 : 2;
    if (tables.dimension == planes * plane && tables.rotation.window == 2 * plane &&
        tables.rotation.rounds == static_cast<std::size_t>(encoder.rounds)) {
      return &encoder;
    }
  }
  return nullptr;
}

std::vector<std::uint32_t> lane_signs(const RowEncoder& encoder, const RotationTable& rotation) {
  const int plane_size = 1 << encoder.log_plane;
  const int registers = plane_size / kLanesOfPlane;
  std::vector<std::uint32_t> signs(static_cast<std::size_t>(encoder.rounds) * 32);
  // By plane and place: what earlier rounds have left with the opposite sign.
  std::vector<bool> opposite(static_cast<std::size_t>(3 * plane_size));
  for (int round = 0; round < encoder.rounds; ++round) {
    const int a = encoder.rounds - round;
    const int window = encoder.rounds == 4 ? round % 2 : 0;  // its first plane
    const auto plane_of = [&](int half) { return window == 0 ? half : 2 - half; };
    for (int i = 0; i < 32 * registers; ++i) {
      const int lane = i % kLanesOfPlane;
      const int half = i / kLanesOfPlane % 2;
      const int e = i / 32;
      const auto at = static_cast<std::size_t>(plane_of(half) * plane_size + place_of(lane, e, a));
      const float factor = rotation.factors[static_cast<std::size_t>(round) * rotation.window + at -
                                            static_cast<std::size_t>(window * plane_size)];
      const bool minus = (factor < 0) != opposite[at];
      signs[static_cast<std::size_t>(round * 32 + i % 32)] |= (minus ? 1u : 0u) << e;
    }
    for (int i = 0; i < 32 * registers; ++i) {
      const int lane = i % kLanesOfPlane;
      const int e = i / 32;
      opposite[static_cast<std::size_t>(plane_of(i / kLanesOfPlane % 2) * plane_size +
                                        place_of(lane, e, a - 1))] = turned(lane, e, a - 1);
    }
  }
  return signs;
}

void prepare_launches(const RowEncoder& encoder, int device) {
  allow_shared_memory(reinterpret_cast<const void*>(encoder.kernel), device);
}

void encode_rows(const RowEncoder& encoder, const CodecView& view, const std::uint32_t* signs,
                 const float* x, std::size_t n, const RowPointers& rows, std::size_t first_row,
                 unsigned long long* bad_row, StreamPointer stream) {
  constexpr std::size_t kOfBlock = kVectors * kBatches;
  encoder.kernel<<<static_cast<unsigned>((n + kOfBlock - 1) / kOfBlock), kThreads,
                   encoder.shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      view, signs, x, n, rows, first_row, bad_row);
  TQ_CUDA_LAUNCHED("encode_rows_kernel");
}

}  // namespace turboquant::cuda
