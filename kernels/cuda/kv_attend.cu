// Launches of attention.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/kv_block.cuh"
#include "kernels/cuda/kv_combine.cuh"
#include "kernels/cuda/kv_raw.cuh"
#include "kernels/cuda/kv_tiles.cuh"

namespace turboquant::cuda {
namespace {

template <int kDim, bool kScores>
__global__ void __launch_bounds__(kThreads, kResident<kDim>)
    attend_kernel(const __grid_constant__ KvLayer layer, const __grid_constant__ KvAttend attend,
                  const __grid_constant__ Shape shape) {
  extern __shared__ __align__(128) unsigned char memory[];
  let_next_start();
  wait_for_preceding();
  Block<kDim, kScores>(layer, attend, shape, memory).run();
}

uint32_t slot_bytes(const KvLayer& layer) {
  const KvTileFormat& f = layer.format;
  return std::max(f.values(), f.bytes() - f.values());
}

template <int kDim>
uint32_t shared_bytes(const KvLayer& layer) {
  const uint32_t stages =
      std::max<uint32_t>(kWarps * kSlots<kDim> * slot_bytes(layer), kWarps * kRows * kDim * 4);
  return (static_cast<uint32_t>(sizeof(Shared<kDim>)) + 127) / 128 * 128 + stages;
}

// How many blocks share a sequence: so many that the last wave of blocks is nearly full, and that
// every warp has a tile. Raw tokens have blocks of their own where few are needed.
Shape shape_of(const KvLayer& layer, const KvAttend& a, int device) {
  Shape shape{};
  shape.slot_bytes = slot_bytes(layer);
  shape.row_blocks = (a.queries * layer.group + kRows - 1) / kRows;
  shape.raw_parts = (layer.slots() + kRawTokens - 1) / kRawTokens;
  const DeviceProperties& properties = device_properties(device);
  const int resident = layer.format.dim == 64    ? kResident<64>
                       : layer.format.dim == 128 ? kResident<128>
                                                 : kResident<256>;
  const uint32_t room = static_cast<uint32_t>(properties.multiprocessors * resident);
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

template <int kDim, bool kScores>
void launch_attend(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                   cudaStream_t stream) {
  const uint32_t bytes = shared_bytes<kDim>(layer);
  TQ_CUDA(cudaFuncSetAttribute(attend_kernel<kDim, kScores>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
  // Each kernel starts while the one before it ends, and waits for it before reading what it wrote.
  dim3 grid(shape.blocks, layer.kv_heads * shape.row_blocks, a.sequences);
  launch(attend_kernel<kDim, kScores>, "launch of attend", grid, kThreads, bytes, stream, true,
         layer, a, shape);
  if constexpr (!kScores) {
    grid.x = std::min(kRows, a.queries * layer.group);
    launch(combine_kernel<kDim>, "launch of combine", grid, kDim * kShares,
           shape.parts() * sizeof(float), stream, true, layer, a, shape);
  }
}

}  // namespace

void kv_set_levels(KvSide& side) {
  for (uint32_t code = 0; code < 16; ++code) {
    const int level = side.levels[code] + (side.bits == 4 ? kLevelOffset : 0);
    reinterpret_cast<unsigned char*>(side.words)[code] = static_cast<unsigned char>(level);
  }
}

std::size_t kv_workspace_bytes(const KvLayer& layer, const KvAttend& attend, int device) {
  const Shape shape = shape_of(layer, attend, device);
  return static_cast<std::size_t>(attend.sequences) * layer.kv_heads * shape.row_blocks *
         shape.parts() * kRows * (layer.format.dim + 2) * sizeof(float);
}

void kv_attend(const KvLayer& layer, const KvAttend& attend, int device, StreamPointer stream) {
  const Shape shape = shape_of(layer, attend, device);
  const auto on = static_cast<cudaStream_t>(stream);
  const bool scores = attend.scores != nullptr;
  switch (layer.format.dim) {
    case 64:
      return scores ? launch_attend<64, true>(layer, attend, shape, on)
                    : launch_attend<64, false>(layer, attend, shape, on);
    case 128:
      return scores ? launch_attend<128, true>(layer, attend, shape, on)
                    : launch_attend<128, false>(layer, attend, shape, on);
    default:
      return scores ? launch_attend<256, true>(layer, attend, shape, on)
                    : launch_attend<256, false>(layer, attend, shape, on);
  }
}

void synchronize_device() { TQ_CUDA(cudaDeviceSynchronize()); }

bool capturing(StreamPointer stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TQ_CUDA(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace turboquant::cuda
