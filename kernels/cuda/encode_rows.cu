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
  static constexpr int kEach = kDimension / 32;  // codes that a lane makes
  static constexpr int kShift = 16;  // the second half of the rotated vector is in other banks
  static constexpr int kPitch = (pad(kDimension) + kShift + 31) / 32 * 32 + 8;
  static constexpr int kSigns = kVectors * kPitch;     // where they begin
  static constexpr int kRows = kSigns + kRounds * 32;  // where packed rows begin
  static constexpr int kRowBytes = kDimension / 2;     // at most
  static constexpr int kBytes = 4 * kRows + kVectors * kRowBytes;
};

// v becomes float(double(v) * factor), where high + low is the factor to twice a float's precision.
// Without conversions to double, which are slow; false where that could be another float.
template <int kN>
__device__ __forceinline__ bool scale_fast(float (&v)[kN], float high, float low) {
  constexpr float kMore = 1 + 0x1p-19f;
  constexpr float kLess = 1 - 0x1p-19f;
  bool sure = true;
#pragma unroll
  for (int e = 0; e < kN; ++e) {
    const float product = v[e] * high;
    const float rest = __fmaf_rn(v[e], low, __fmaf_rn(v[e], high, -product));
    // The error of `rest` is far smaller than what this adds and takes away wherever a rounding
    // could depend on it, unless the product is so small that `rest` has lost digits.
    const float upper = __fmaf_rn(rest, kMore, product);
    const float lower = __fmaf_rn(rest, kLess, product);
    sure = sure && upper == lower && fabsf(product) >= 0x1p-90f;
    v[e] = upper;
  }
  return sure;
}

struct Factor {
  double exact;
  float high, low;
  bool usual;  // neither high nor low is near the ends of a float's range

  __device__ explicit Factor(double factor)
      : exact(factor),
        high(static_cast<float>(factor)),
        low(static_cast<float>(factor - static_cast<double>(high))),
        usual(high > 0x1p-60f && high < 0x1p60f) {}
};

template <int kA, int kN>
__device__ __forceinline__ void load_scaled(const float* y, int first, int lane,
                                            const Factor& factor, float (&v)[kN]) {
  load_plane<kA>(y, first, lane, v);
  const bool sure = scale_fast(v, factor.high, factor.low) && factor.usual;
  if (__any_sync(0xffffffffu, !sure)) {
    load_plane<kA>(y, first, lane, v);
#pragma unroll
    for (int e = 0; e < kN; ++e) v[e] = static_cast<float>(v[e] * factor.exact);
  }
}

// Codes of a block of 64 coordinates, of which each lane of a half of a warp has four, 16 apart,
// and the products with their levels.
template <int kBits>
__device__ __forceinline__ void pack_block(const CodecView& view, const Cell* cells,
                                           const float* magnitudes, int block, int lane,
                                           float* four, std::uint8_t* row) {
  std::uint32_t codes[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) codes[i] = code_of<kBits, false>(four[i], cells, magnitudes, 0);
  constexpr std::uint32_t kStep = kRankStep;
  if constexpr (kBits == 4) {
    row[32 * block + lane] = static_cast<std::uint8_t>((codes[0] | codes[2] << 4) / kStep);
    row[32 * block + 16 + lane] = static_cast<std::uint8_t>((codes[1] | codes[3] << 4) / kStep);
  } else if constexpr (kBits > 1) {
    constexpr std::uint32_t kLow = 3 * kStep;
    const std::uint32_t low = (codes[0] & kLow) | (codes[1] & kLow) << 2 | (codes[2] & kLow) << 4 |
                              (codes[3] & kLow) << 6;
    row[16 * block + lane] = static_cast<std::uint8_t>(low / kStep);
  }
  if constexpr (kBits == 1 || kBits == 3) {
    // A byte has one bit of every eighth coordinate: of this lane and of the one 8 away.
    constexpr std::uint32_t kTop = kStep << (kBits - 1);
    std::uint32_t top = ((codes[0] & kTop) | (codes[1] & kTop) << 2 | (codes[2] & kTop) << 4 |
                         (codes[3] & kTop) << 6) /
                        kTop;
    top <<= lane / 8;
    top |= __shfl_xor_sync(0xffffffffu, top, 8);
    const int first = kBits == 3 ? view.layout.top : 0;
    if (lane < 8) row[first + 8 * block + lane] = static_cast<std::uint8_t>(top);
  }
}

// The row of a rotated vector, each half of a warp half of it; <y, z> in the lanes from 16 on.
template <int kBits, int kEach>
__device__ __forceinline__ float pack_row(const CodecView& view, const Cell* cells,
                                          const float* magnitudes, const float* y,
                                          std::uint8_t* row) {
  const int half = threadIdx.x % 32 / 16;
  const int lane = threadIdx.x % 16;
  const float* from = y + half * (pad(16 * kEach) + 16);
  float products[kEach];
#pragma unroll
  for (int m = 0; m < kEach; m += 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) products[m + i] = from[pad(16 * (m + i)) + lane];
    pack_block<kBits>(view, cells, magnitudes, half * kEach / 4 + m / 4, lane, products + m, row);
  }
  // The order of the additions is the format's: coordinates lane + 16 m by ascending m.
  float sum = 0;
#pragma unroll
  for (int m = 0; m < kEach; ++m) sum += products[m];
  sum = __shfl_sync(0xffffffffu, sum, lane);
#pragma unroll
  for (int m = 0; m < kEach; ++m) sum += products[m];
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, distance, 16);
  }
  return sum;
}

// Scales the last of three planes where it is.
template <int kN>
__device__ __forceinline__ void scale_plane(float* y, int first, const Factor& factor) {
  float v[kN];
  const int lane = threadIdx.x % 32;
  const auto load = [&] {
#pragma unroll
    for (int e = 0; e < kN; e += 4) {
      const float4 four = *reinterpret_cast<const float4*>(y + pad(first + 32 * e + 4 * lane));
      v[e] = four.x;
      v[e + 1] = four.y;
      v[e + 2] = four.z;
      v[e + 3] = four.w;
    }
  };
  load();
  const bool sure = scale_fast(v, factor.high, factor.low) && factor.usual;
  if (__any_sync(0xffffffffu, !sure)) {
    load();
#pragma unroll
    for (int e = 0; e < kN; ++e) v[e] = static_cast<float>(v[e] * factor.exact);
  }
#pragma unroll
  for (int e = 0; e < kN; e += 4) {
    *reinterpret_cast<float4*>(y + pad(first + 32 * e + 4 * lane)) =
        make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]);
  }
}

// y = R (factor x), in registers; then y[i] is at pad(i), 16 further on in its second half.
template <int kLog, int kRounds>
__device__ __forceinline__ void rotate_row(float* y, const Factor& factor,
                                           const std::uint32_t* signs, float size) {
  using S = Size<kLog, kRounds>;
  const int half = threadIdx.x % 32 / 16;
  const int lane = threadIdx.x % 16;
  float lane_sign[4];
#pragma unroll
  for (int bit = 0; bit < 4; ++bit) lane_sign[bit] = (lane >> bit & 1) != 0 ? -1.0f : 1.0f;
  const float second = half != 0 ? -1.0f : 1.0f;
  signs += threadIdx.x % 32;
  float v[S::kRegisters];
  int plane = half;
  if constexpr (S::kPlanes == 2) {
    load_scaled<2>(y, half * S::kPlane, lane, factor, v);
    apply_signs(v, signs[0], size);
    transform_plane<2>(v, lane_sign);
    add_and_subtract_planes(v, second);
    apply_signs(v, signs[32], size);
    transform_plane<1>(v, lane_sign);
    add_and_subtract_planes(v, second);
  } else {
    // The second half keeps the middle plane; the first has the first and the last in turn.
    constexpr int kLast = 2 * S::kPlane;
    scale_plane<S::kPlane / 32>(y, kLast, factor);
    load_scaled<4>(y, half * S::kPlane, lane, factor, v);
    apply_signs(v, signs[0], size);
    transform_plane<4>(v, lane_sign);
    add_and_subtract_planes(v, second);
    __syncwarp();
    if (half == 0) {
      store_plane<3>(y, 0, lane, v);
      load_plane<3>(y, kLast, lane, v);
    }
    __syncwarp();
    apply_signs(v, signs[32], size);
    transform_plane<3>(v, lane_sign);
    add_and_subtract_planes(v, -second);
    if (half == 0) {
      store_plane<2>(y, kLast, lane, v);
      load_plane<2>(y, 0, lane, v);
    }
    __syncwarp();
    apply_signs(v, signs[64], size);
    transform_plane<2>(v, lane_sign);
    add_and_subtract_planes(v, second);
    if (half == 0) {
      turn_back<1>(v, lane);
      store_plane<1>(y, 0, lane, v);
      load_plane<1>(y, kLast, lane, v);
    }
    __syncwarp();
    apply_signs(v, signs[96], size);
    transform_plane<1>(v, lane_sign);
    add_and_subtract_planes(v, -second);
    plane = 2 - half;
  }
  __syncwarp();
  turn_back<0>(v, lane);
  float* to = y + pad(plane * S::kPlane) + lane;
  // Where the second half of the vector begins: with the second plane of two, in the middle of the
  // second of three.
  const int shift = plane == 0 ? 0 : S::kShift;
  const int low_shift = S::kPlanes == 3 && plane == 1 ? 0 : shift;
#pragma unroll
  for (int e = 0; e < S::kRegisters; ++e) {
    to[pad(16 * e) + (e < S::kRegisters / 2 ? low_shift : shift)] = v[e];
  }
  __syncwarp();
}

template <int kLog, int kRounds, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    encode_rows_kernel(const __grid_constant__ CodecView v, const std::uint32_t* lane_signs,
                       const float* x, size_t n, RowPointers rows, unsigned long long first_row,
                       unsigned long long* bad_row) {
  using S = Size<kLog, kRounds>;
  extern __shared__ __align__(16) float memory[];
  __shared__ double norms[kVectors];
  __shared__ Cell cells[kCells];
  __shared__ float magnitudes[8];
  auto* signs = reinterpret_cast<std::uint32_t*>(memory + S::kSigns);
  for (int i = threadIdx.x; i < kRounds * 32; i += kThreads) signs[i] = lane_signs[i];
  if (threadIdx.x < kCells) cells[threadIdx.x] = v.cells[threadIdx.x];
  if (threadIdx.x < 8) magnitudes[threadIdx.x] = v.magnitudes[threadIdx.x];

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
    const auto norm_of_vector = [&] {
      if (threadIdx.x < 32) {
        const double sum = sum_of_squares(memory + threadIdx.x / 8 * S::kPitch, S::kDimension);
        if (threadIdx.x % 8 == 0) norms[threadIdx.x / 8] = sum;
      }
      __syncthreads();
      return norms[vector];
    };
    double norm_squared = norm_of_vector();
    if (v.normalize) {
      const double factor = norm_squared > 0 ? 1 / sqrt(norm_squared) : 0;
      for (int i = lane; i < S::kDimension; i += 32) {
        y[pad(i)] = static_cast<float>(y[pad(i)] * factor);
      }
      __syncthreads();
      norm_squared = norm_of_vector();
    }
    const double norm = sqrt(norm_squared);
    rotate_row<kLog, kRounds>(y, Factor(norm > 0 ? v.sqrt_d / norm : 0), signs, v.rotation.size);
    float product = 0;
    switch (v.layout.bits) {
      case 1:
        product = pack_row<1, S::kEach>(v, cells, magnitudes, y, packed);
        break;
      case 2:
        product = pack_row<2, S::kEach>(v, cells, magnitudes, y, packed);
        break;
      case 3:
        product = pack_row<3, S::kEach>(v, cells, magnitudes, y, packed);
        break;
      default:
        product = pack_row<4, S::kEach>(v, cells, magnitudes, y, packed);
    }
    __syncwarp();
    if (row < n) {
      auto* to = reinterpret_cast<uint4*>(rows.codes + row * static_cast<size_t>(v.layout.stride));
      for (int i = lane; i < v.layout.stride / 16; i += 32) {
        to[i] = reinterpret_cast<const uint4*>(packed)[i];
      }
      if (lane == 16) {
        if (!isfinite(norm_squared)) atomicMin(bad_row, first_row + row);
        float scale = 0;
        if (norm != 0) {
          scale = v.mse ? saturate(norm * v.step_exact / v.sqrt_d)
                        : saturate(norm * v.sqrt_d / static_cast<double>(product));
        }
        rows.scale[row] = scale;
        if (rows.norm != nullptr) rows.norm[row] = saturate(norm_squared);
      }
    }
    __syncthreads();
  }
}

const RowEncoder kEncoders[] = {
    {6, 2, Size<6, 2>::kBytes, encode_rows_kernel<6, 2, 8>},
    {7, 2, Size<7, 2>::kBytes, encode_rows_kernel<7, 2, 8>},
    {8, 2, Size<8, 2>::kBytes, encode_rows_kernel<8, 2, 8>},
    {9, 2, Size<9, 2>::kBytes, encode_rows_kernel<9, 2, 6>},
    {8, 4, Size<8, 4>::kBytes, encode_rows_kernel<8, 4, 8>},
    {9, 4, Size<9, 4>::kBytes, encode_rows_kernel<9, 4, 6>},
};

}  // namespace

const RowEncoder* row_encoder(const CodecTables& tables) {
  if (tables.two_parts || tables.centre != nullptr || tables.rotation.factors == nullptr) {
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
