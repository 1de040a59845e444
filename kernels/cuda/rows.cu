#include "kernels/cuda/check.cuh"
#include "kernels/cuda/codec.h"

namespace turboquant::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsOfBlock = kThreads / 32;

__device__ void copy_float(float* to, const std::uint8_t* from) {
  std::uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) bits |= static_cast<std::uint32_t>(from[i]) << (8 * i);
  *to = __uint_as_float(bits);
}

__device__ void copy_float(std::uint8_t* to, float from) {
  const std::uint32_t bits = __float_as_uint(from);
  for (int i = 0; i < 4; ++i) to[i] = static_cast<std::uint8_t>(bits >> (8 * i));
}

// Where byte i of the codes of whole blocks lies on the device.
__device__ int device_byte(const RowLayout& layout, int i) {
  if (layout.bits != 3) return i;
  const int block = i / 24;
  const int at = i % 24;
  return at < 16 ? block * 16 + at : layout.top + block * 8 + at - 16;
}

// Bit `bit` of the code of coordinate i of a block: its byte in the device's row, and where there.
__device__ int device_bit(const RowLayout& layout, int block, int i, int bit, int* shift) {
  if (layout.bits == 3 && bit == 2) {
    *shift = i / 8;
    return layout.top + block * 8 + i % 8;
  }
  const int width = layout.bits == 3 ? 2 : layout.bits;
  *shift = width * (i / (8 * width)) + bit;
  return block * 8 * width + i % (8 * width);
}

template <bool kToDevice>
__device__ void convert_factors(const RowPointers& rows, size_t row, std::uint8_t* factor) {
  float* const factors[4] = {rows.scale, rows.residual, rows.centre, rows.norm};
  for (float* values : factors) {
    if (values == nullptr) continue;
    if (kToDevice) {
      copy_float(values + row, factor);
    } else {
      copy_float(factor, values[row]);
    }
    factor += 4;
  }
}

template <bool kToDevice>
__global__ void convert_kernel(RowLayout layout, RowPointers rows, size_t n, size_t code_size,
                               std::uint8_t* bytes) {
  const size_t row = blockIdx.x * static_cast<size_t>(kRowsOfBlock) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= n) return;
  std::uint8_t* ours = rows.codes + row * layout.stride;
  std::uint8_t* theirs = bytes + row * code_size;
  const int full = layout.dimension / 64;
  const int whole = full * 8 * layout.bits;
  for (int i = lane; i < whole; i += 32) {
    if (kToDevice) {
      ours[device_byte(layout, i)] = theirs[i];
    } else {
      theirs[i] = ours[device_byte(layout, i)];
    }
  }
  const int tail_bits = (layout.dimension - full * 64) * layout.bits;
  if (tail_bits > 0 && kToDevice) {
    // One byte of the device's last block at a time: 8 * bits bytes.
    for (int target = lane; target < 8 * layout.bits; target += 32) {
      const bool top = layout.bits == 3 && target >= 16;
      const int width = top ? 1 : layout.bits == 3 ? 2 : layout.bits;
      const int at = top ? target - 16 : target;
      std::uint32_t byte = 0;
      for (int bit = 0; bit < 8; ++bit) {
        const int i = at + 8 * width * (bit / width);
        const int source = i * layout.bits + (top ? 2 : bit % width);
        if (source / layout.bits * layout.bits >= tail_bits) continue;
        byte |= static_cast<std::uint32_t>(theirs[whole + source / 8] >> (source % 8) & 1) << bit;
      }
      const int offset =
          top ? layout.top + full * 8 + at : full * 8 * (layout.bits == 3 ? 2 : layout.bits) + at;
      ours[offset] = static_cast<std::uint8_t>(byte);
    }
  } else if (tail_bits > 0) {
    for (int target = lane; target < (tail_bits + 7) / 8; target += 32) {
      std::uint32_t byte = 0;
      for (int bit = 0; bit < 8 && target * 8 + bit < tail_bits; ++bit) {
        int shift;
        const int at = target * 8 + bit;
        const int source = device_bit(layout, full, at / layout.bits, at % layout.bits, &shift);
        byte |= static_cast<std::uint32_t>(ours[source] >> shift & 1) << bit;
      }
      theirs[whole + target] = static_cast<std::uint8_t>(byte);
    }
  }
  if (lane == 0) convert_factors<kToDevice>(rows, row, theirs + whole + (tail_bits + 7) / 8);
}

// The planes of a row as they are, and the eight bytes before the first; factors behind.
template <bool kToDevice>
__global__ void convert_trellis_kernel(RowLayout layout, RowPointers rows, size_t n,
                                       size_t code_size, std::uint8_t* bytes) {
  const size_t row = blockIdx.x * static_cast<size_t>(kRowsOfBlock) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= n) return;
  std::uint8_t* ours = rows.codes + row * layout.stride;
  std::uint8_t* theirs = bytes + row * code_size;
  const int width = layout.coded_width();
  const int of_plane = layout.plane_bytes();
  const int stream = layout.stream_codes();
  const int planes = layout.bits == 3 ? 3 : 1;
  std::uint8_t* const before = ours + RowLayout::kTrellisPlane;
  for (int plane = 0; plane < planes; ++plane) {
    std::uint8_t* our_plane = before + plane * layout.top;
    std::uint8_t* their_plane = theirs + 1 + plane * of_plane;
    for (int i = lane; i < (kToDevice ? layout.top : of_plane); i += 32) {
      if (kToDevice) {
        our_plane[i] = i < of_plane ? their_plane[i] : 0;
      } else {
        their_plane[i] = our_plane[i];
      }
    }
  }
  __syncwarp();
  if (lane != 0) return;
  // Codes of three bits.
  std::uint8_t* const their_stream = theirs + 1 + planes * of_plane;
  const int stream_bytes = (3 * stream + 7) / 8;
  const int field = layout.stream_field();
  std::uint8_t* const our_coded = before + of_plane;
  std::uint8_t* const our_rest = our_coded + layout.top * (1 + field % 2);
  std::uint32_t codes = 0;
  for (int i = 0; kToDevice && i < stream_bytes; ++i) {
    codes |= static_cast<std::uint32_t>(their_stream[i]) << (8 * i);
  }
  for (int j = 0; j < stream; ++j) {
    if (kToDevice) {
      our_coded[j] = static_cast<std::uint8_t>((codes >> (3 * j + 2) & 1) << field);
      our_rest[j] = static_cast<std::uint8_t>((codes >> (3 * j) & 3) << (field / 2 * 2));
    } else {
      const std::uint32_t rest = our_rest[j] >> (field / 2 * 2) & 3u;
      codes |= ((our_coded[j] >> field & 1u) << 2 | rest) << (3 * j);
    }
  }
  for (int i = 0; !kToDevice && i < stream_bytes; ++i) {
    their_stream[i] = static_cast<std::uint8_t>(codes >> (8 * i));
  }
  if (kToDevice) {
    // The end of the plane, a field further up, and the first state in the lowest fields.
    const unsigned state = theirs[0];
    for (int k = 1; k <= 8; ++k) {
      const unsigned end = of_plane == 0   ? 0
                           : k <= of_plane ? theirs[1 + of_plane - k]
                                           : before[of_plane - k];
      before[-k] = static_cast<std::uint8_t>(end << width | (state >> (k - 1) & 1) << (width - 1));
      before[-8 - k] = 0;
    }
  } else {
    unsigned state = 0;
    for (int k = 1; k <= 8; ++k) state |= (before[-k] >> (width - 1) & 1u) << (k - 1);
    theirs[0] = static_cast<std::uint8_t>(state);
  }
  convert_factors<kToDevice>(rows, row, their_stream + stream_bytes);
}

__global__ void gather_kernel(RowLayout layout, RowPointers from, const std::uint32_t* chosen,
                              size_t n, RowPointers to) {
  const size_t row = blockIdx.x * static_cast<size_t>(kRowsOfBlock) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= n) return;
  const size_t source = chosen[row];
  const auto* in = reinterpret_cast<const uint4*>(from.codes + source * layout.stride);
  auto* out = reinterpret_cast<uint4*>(to.codes + row * layout.stride);
  for (int i = lane; i < layout.stride / 16; i += 32) out[i] = in[i];
  if (lane != 0) return;
  to.scale[row] = from.scale[source];
  if (to.residual != nullptr) to.residual[row] = from.residual[source];
  if (to.centre != nullptr) to.centre[row] = from.centre[source];
  if (to.norm != nullptr) to.norm[row] = from.norm[source];
}

unsigned grid_of(size_t n) { return static_cast<unsigned>((n + kRowsOfBlock - 1) / kRowsOfBlock); }

}  // namespace

void write_rows(const RowLayout& layout, const RowPointers& rows, std::size_t n,
                std::size_t code_size, std::uint8_t* bytes, StreamPointer stream) {
  if (n == 0) return;
  const auto kernel = layout.trellis() ? convert_trellis_kernel<false> : convert_kernel<false>;
  kernel<<<grid_of(n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(layout, rows, n, code_size,
                                                                         bytes);
  TQ_CUDA_LAUNCHED("convert_kernel");
}

void read_rows(const RowLayout& layout, const std::uint8_t* bytes, std::size_t n,
               std::size_t code_size, const RowPointers& rows, StreamPointer stream) {
  if (n == 0) return;
  const auto kernel = layout.trellis() ? convert_trellis_kernel<true> : convert_kernel<true>;
  kernel<<<grid_of(n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      layout, rows, n, code_size, const_cast<std::uint8_t*>(bytes));
  TQ_CUDA_LAUNCHED("convert_kernel");
}

void gather_rows(const RowLayout& layout, const RowPointers& from, const std::uint32_t* chosen,
                 std::size_t n, const RowPointers& to, StreamPointer stream) {
  if (n == 0) return;
  gather_kernel<<<grid_of(n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(layout, from,
                                                                                chosen, n, to);
  TQ_CUDA_LAUNCHED("gather_kernel");
}

}  // namespace turboquant::cuda
