// A block's vectors while they are encoded or prepared as queries: in shared memory, each with a
// warp or with the block for itself.
#pragma once

#include <cstdint>

#include "kernels/cuda/codec_view.cuh"
#include "kernels/cuda/transform.cuh"

namespace turboquant::cuda {
namespace {

constexpr int kWarpVectors = 4;  // that a block takes where a warp takes a vector
constexpr int kWarpDimension = 2047;

// What a block at work has in shared memory beside its vectors.
template <bool kWarp>
struct Desk {
  double norms[kWarp ? kWarpVectors : 1];
  float sums[kWarp ? kWarpVectors : 1];
  Cell cells[kCells];
  float magnitudes[8];
};

// The vectors of a block at work: each has floats at y, bytes at codes.
template <bool kWarp>
class Worker {
 public:
  static constexpr int kVectors = kWarp ? kWarpVectors : 1;
  using T = Team<kWarp>;

  __device__ __forceinline__ Worker(const CodecView& view, char* memory, Desk<kWarp>& desk)
      : v(view), memory_(memory), desk_(desk) {
    if (threadIdx.x < kCells) desk.cells[threadIdx.x] = view.cells[threadIdx.x];
    if (threadIdx.x < 8) desk.magnitudes[threadIdx.x] = view.magnitudes[threadIdx.x];
    // load() has a barrier before they are used.
  }

  __device__ float* y(int vector) const {
    return reinterpret_cast<float*>(memory_ + static_cast<size_t>(vector) * v.bytes_of_vector);
  }
  __device__ float* y() const { return y(slot()); }
  __device__ float* second() const { return y() + v.pitch; }
  __device__ std::uint8_t* codes() const {
    return reinterpret_cast<std::uint8_t*>(y() + (v.gaussian != nullptr ? 2 : 1) * v.pitch);
  }
  __device__ static int slot() { return kWarp ? threadIdx.x / 32 : 0; }
  __device__ int d() const { return v.layout.dimension; }

  template <class F>
  __device__ void each(const F& f) const {
    for (int i = T::thread(); i < d(); i += T::size()) f(i);
  }

  // f(element) for all elements of y.
  template <class F>
  __device__ void each_by_four(float* to, const F& f) const {
    if (d() % 4 != 0) {
      each([&](int i) { f(to[pad(i)]); });
      return;
    }
    for (int i = T::thread(); i < d() / 4; i += T::size()) {
      auto& at = *reinterpret_cast<float4*>(to + pad(4 * i));
      float4 four = at;
      f(four.x);
      f(four.y);
      f(four.z);
      f(four.w);
      at = four;
    }
  }

  __device__ void load(const float* x) const {
    float* to = y();
    if (d() % 4 == 0 && reinterpret_cast<std::uintptr_t>(x) % 16 == 0) {
      for (int i = T::thread(); i < d() / 4; i += T::size()) {
        const float4 four = __ldcs(reinterpret_cast<const float4*>(x) + i);
        *reinterpret_cast<float4*>(to + pad(4 * i)) = four;
      }
    } else {
      each([&](int i) { to[pad(i)] = x[i]; });
    }
    __syncthreads();
  }

  __device__ double norm_squared() const {
    norms_squared<kVectors>(y(0), v.bytes_of_vector / 4, d(), desk_.norms);
    const double result = desk_.norms[slot()];
    __syncthreads();
    return result;
  }

  __device__ float lane_sum(const float* by) const {
    lane_sums<kVectors>(y(0), v.bytes_of_vector / 4, d(), by, desk_.sums);
    const float result = desk_.sums[slot()];
    __syncthreads();
    return result;
  }

  __device__ void scale(double factor) const {
    float* to = y();
    each_by_four(to, [&](float& value) { value = static_cast<float>(value * factor); });
    T::sync();
  }

  __device__ void clear() const {
    float* to = y();
    each([&](int i) { to[pad(i)] = 0; });
    T::sync();
  }

  __device__ void subtract_centre() const {
    float* to = y();
    each([&](int i) { to[pad(i)] -= v.centre[i]; });
    __syncthreads();
  }

  // y = G y. Ends with a barrier of the block.
  __device__ void project() const {
    if (v.gaussian == nullptr) {
      rotate<kWarp>(y(), v.projection);
      __syncthreads();
      return;
    }
    // Sixteen threads a row of G.
    const float* in = y();
    float* out = second();
    const int lane = T::thread() % 16;
    for (int first = 0; first < d(); first += T::size() / 16) {
      const int r = first + T::thread() / 16;
      float sum = 0;
      if (r < d()) {
        const float* row = v.gaussian + static_cast<size_t>(r) * d();
        for (int i = lane; i < d(); i += 16) sum += row[i] * in[pad(i)];
      }
      for (int half = 8; half > 0; half /= 2) sum += __shfl_down_sync(0xffffffffu, sum, half, 16);
      if (lane == 0 && r < d()) out[pad(r)] = sum;
    }
    T::sync();
    float* to = y();
    each([&](int i) { to[pad(i)] = out[pad(i)]; });
    __syncthreads();
  }

  // Codes of y; y[i] becomes its product with its level or, with kResidual, what the level leaves.
  // shift: what the code is moved up by, over what codes holds (0: it is replaced).
  template <int kBits, bool kResidual>
  __device__ void quantize_by(int shift) const {
    float* to = y();
    std::uint8_t* code = codes();
    if (d() % 4 != 0) {
      each([&](int i) {
        const std::uint32_t c = coded<kBits, kResidual>(to[pad(i)]);
        code[i] = static_cast<std::uint8_t>(shift == 0 ? c : code[i] | c << shift);
      });
      return;
    }
    for (int i = T::thread(); i < d() / 4; i += T::size()) {
      auto& at = *reinterpret_cast<float4*>(to + pad(4 * i));
      float4 four = at;
      std::uint32_t c = coded<kBits, kResidual>(four.x);
      c |= coded<kBits, kResidual>(four.y) << 8;
      c |= coded<kBits, kResidual>(four.z) << 16;
      c |= coded<kBits, kResidual>(four.w) << 24;
      at = four;
      auto& codes_of_four = *reinterpret_cast<std::uint32_t*>(code + 4 * i);
      codes_of_four = shift == 0 ? c : codes_of_four | c << shift;
    }
  }

  template <int kBits, bool kResidual>
  __device__ __forceinline__ std::uint32_t coded(float& value) const {
    return code_of<kBits, kResidual>(value, desk_.cells, desk_.magnitudes, v.step) / kRankStep;
  }

  template <bool kResidual>
  __device__ void quantize() const {
    switch (v.quantizer_bits) {
      case 0:
        each([&](int i) { codes()[i] = 0; });
        break;
      case 1:
        quantize_by<1, kResidual>(0);
        break;
      case 2:
        quantize_by<2, kResidual>(0);
        break;
      case 3:
        quantize_by<3, kResidual>(0);
        break;
      default:
        quantize_by<4, kResidual>(0);
    }
    __syncthreads();
  }

  // 4 fields of kWidth bits of each of four coordinates that lie kStep apart, bits [bit, ...) of a
  // code.
  template <int kWidth>
  __device__ std::uint32_t plane_word(const std::uint8_t* code, int bit) const {
    constexpr int kStep = 8 * kWidth;
    constexpr std::uint32_t kMask = ((1u << kWidth) - 1) * 0x01010101u;
    std::uint32_t word = 0;
#pragma unroll
    for (int f = 0; f < 8 / kWidth; ++f) {
      const std::uint32_t four = *reinterpret_cast<const std::uint32_t*>(code + f * kStep);
      word |= (four >> bit & kMask) << (kWidth * f);
    }
    return word;
  }

  template <int kWidth>
  __device__ void pack_plane(std::uint8_t* out, int bit) const {
    constexpr int kWords = 2 * kWidth;  // of a block
    for (int w = T::thread(); w < v.layout.blocks * kWords; w += T::size()) {
      const std::uint8_t* code = codes() + w / kWords * 64 + w % kWords * 4;
      reinterpret_cast<std::uint32_t*>(out)[w] = plane_word<kWidth>(code, bit);
    }
  }

  __device__ void pack(std::uint8_t* row) const {
    switch (v.layout.bits) {
      case 1:
        pack_plane<1>(row, 0);
        break;
      case 2:
        pack_plane<2>(row, 0);
        break;
      case 3:
        pack_plane<2>(row, 0);
        pack_plane<1>(row + v.layout.top, 2);
        break;
      default:
        pack_plane<4>(row, 0);
    }
  }

  // Codes past d, which packing reads.
  __device__ void clear_tail() const {
    for (int i = d() + T::thread(); i < v.layout.blocks * 64; i += T::size()) codes()[i] = 0;
  }

  const CodecView& v;

 private:
  char* memory_;
  Desk<kWarp>& desk_;
};

template <bool kShared>
__device__ char* working_memory(char* scratch, const CodecView& v) {
  extern __shared__ __align__(16) char shared[];
  if constexpr (kShared) return shared;
  return scratch + blockIdx.x * static_cast<size_t>(v.bytes_of_vector);
}

}  // namespace
}  // namespace turboquant::cuda
