// Launches of attention.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/kv_block.cuh"
#include "kernels/cuda/kv_combine.cuh"
#include "kernels/cuda/kv_raw.cuh"
#include "kernels/cuda/kv_tiles.cuh"

namespace turboquant::cuda {
namespace {

template <int kDim, int kRows, bool kScores>
__global__ void __launch_bounds__(kThreads, kResident<kDim, kRows>)
    attend_kernel(const __grid_constant__ KvLayer layer, const __grid_constant__ KvAttend attend,
                  const __grid_constant__ Shape shape) {
  extern __shared__ __align__(128) unsigned char memory[];
  let_next_start();
#ifndef TQ_NOPRE
  bring_nearer(layer, attend, shape);
#endif
  wait_for_preceding();
  Block<kDim, kRows, kScores>(layer, attend, shape, memory).run();
}

uint32_t slot_bytes(const KvLayer& layer) {
  const KvTileFormat& f = layer.format;
  return std::max(f.values(), f.bytes() - f.values());
}

template <int kDim, int kRows>
uint32_t shared_bytes(const KvLayer& layer) {
  return (static_cast<uint32_t>(sizeof(Shared<kDim, kRows>)) + 127) / 128 * 128 +
         kWarps * kSlots<kDim, kRows> * slot_bytes(layer);
}

// The instance for a head size and a number of rows.
template <typename Visit>
void visit_instance(uint32_t dim, uint32_t rows, const Visit& visit) {
  const auto of_dim = [&](auto d) {
    if (rows == 4) return visit(d, std::integral_constant<int, 4>());
    if (rows == 8) return visit(d, std::integral_constant<int, 8>());
    constexpr int kDim = decltype(d)::value;
    if constexpr (kDim != 256) visit(d, std::integral_constant<int, 16>());
  };
  if (dim == 64) return of_dim(std::integral_constant<int, 64>());
  if (dim == 128) return of_dim(std::integral_constant<int, 128>());
  of_dim(std::integral_constant<int, 256>());
}

// How many blocks share a sequence: so many that the last wave of blocks is nearly full, and that
// every warp has a tile. Raw tokens have blocks of their own where few are needed.
Shape shape_of(const KvLayer& layer, const KvAttend& a, int device) {
  Shape shape{};
  shape.slot_bytes = slot_bytes(layer);
  const uint32_t rows = a.queries * layer.group;
  // 16 rows of 256 channels are more than registers hold.
  shape.rows = rows <= 4 ? 4 : rows <= 8 || layer.format.dim == 256 ? 8 : 16;
  shape.row_blocks = (rows + shape.rows - 1) / shape.rows;
  shape.raw_parts = (layer.slots() + kRawTokens - 1) / kRawTokens;
  const DeviceProperties& properties = device_properties(device);
  const uint32_t room = static_cast<uint32_t>(
      properties.multiprocessors *
      resident(static_cast<int>(layer.format.dim), static_cast<int>(shape.rows)));
  const uint32_t bundles = layer.kv_heads * shape.row_blocks * a.sequences;
  const uint32_t tiles = (a.most_tokens + kTileTokens - 1) / kTileTokens;
  const uint32_t most = std::max(1u, std::min(1024u, tiles / kWarps));
  const bool apart = shape.raw_parts * bundles <= room / 8;
  const uint32_t extra = apart ? shape.raw_parts : 0;
  double best = 0;
  shape.splits = 1;
  for (uint32_t s = 1; s <= most; ++s) {
    const uint32_t blocks = (s + extra) * bundles;
    const uint32_t waves = (blocks + room - 1) / room;
    if (s > 1 && waves > 4) break;
    const double full = static_cast<double>(blocks) / (static_cast<double>(waves) * room);
    const double worth = full - 0.02 * waves;
    if (worth > best + 1e-9) {
      best = worth;
      shape.splits = s;
    }
  }
  shape.blocks = shape.splits + extra;
  shape.raw_first = apart ? shape.splits : 0;
  return shape;
}

template <int kDim, int kRows, bool kScores>
void launch_attend(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                   cudaStream_t stream) {
  const uint32_t bytes = shared_bytes<kDim, kRows>(layer);
  TQ_CUDA(cudaFuncSetAttribute(attend_kernel<kDim, kRows, kScores>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
  // Each kernel starts while the one before it ends, and waits for it before reading what it wrote.
  dim3 grid(shape.blocks, layer.kv_heads * shape.row_blocks, a.sequences);
  launch(attend_kernel<kDim, kRows, kScores>, "launch of attend", grid, kThreads, bytes, stream,
         true, layer, a, shape);
  if constexpr (!kScores) {
    grid.x = std::min<uint32_t>(kRows, a.queries * layer.group);
    launch(combine_kernel<kDim>, "launch of combine", grid, kDim * kShares,
           shape.parts() * sizeof(float), stream, true, layer, a, shape);
  }
}

}  // namespace

void kv_set_levels(KvSide& side) {
  for (uint32_t code = 0; code < 16; ++code) {
    const int level = side.levels[code] + (side.bits == 4 ? kLevelOffset : 0);
    const uint32_t at = code < 8 ? code : 23 - code;  // the upper ones backwards: LevelBytes
    reinterpret_cast<unsigned char*>(side.words)[at] = static_cast<unsigned char>(level);
  }
}

std::size_t kv_workspace_bytes(const KvLayer& layer, const KvAttend& attend, int device) {
  const Shape shape = shape_of(layer, attend, device);
  return static_cast<std::size_t>(attend.sequences) * layer.kv_heads * shape.row_blocks *
         shape.parts() * shape.rows * (layer.format.dim + 2) * sizeof(float);
}

void kv_attend(const KvLayer& layer, const KvAttend& attend, int device, StreamPointer stream) {
  const Shape shape = shape_of(layer, attend, device);
  const auto on = static_cast<cudaStream_t>(stream);
  visit_instance(layer.format.dim, shape.rows, [&](auto dim, auto rows) {
    constexpr int kDim = decltype(dim)::value;
    constexpr int kRows = decltype(rows)::value;
    if (attend.scores != nullptr) {
      launch_attend<kDim, kRows, true>(layer, attend, shape, on);
    } else {
      launch_attend<kDim, kRows, false>(layer, attend, shape, on);
    }
  });
}

void synchronize_device() { TQ_CUDA(cudaDeviceSynchronize()); }

bool capturing(StreamPointer stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TQ_CUDA(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace turboquant::cuda
