// Launches of attention.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/kv_block.cuh"
#include "kernels/cuda/kv_combine.cuh"
#include "kernels/cuda/kv_prompt.cuh"
#include "kernels/cuda/kv_raw.cuh"
#include "kernels/cuda/kv_tiles.cuh"

namespace turboquant::cuda {
namespace {

template <int kDim, int kRows, bool kScores, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    attend_kernel(const __grid_constant__ KvLayer layer, const __grid_constant__ KvAttend attend,
                  const __grid_constant__ Shape shape) {
  extern __shared__ __align__(128) unsigned char memory[];
  let_next_start();
  bring_nearer(layer, attend, shape);
  wait_for_preceding();
  Block<kDim, kRows, kScores>(layer, attend, shape, memory).run();
}

template <int kDim>
__global__ void __launch_bounds__(32 * prompt_warps(kDim), 1)
    prompt_kernel(const __grid_constant__ KvLayer layer, const __grid_constant__ KvAttend attend,
                  const __grid_constant__ Shape shape) {
  extern __shared__ __align__(128) unsigned char memory[];
  let_next_start();
  wait_for_preceding();
  Prompt<kDim>(layer, attend, shape, memory).run();
}

uint32_t slot_bytes(const KvLayer& layer) {
  const KvTileFormat& f = layer.format;
  return std::max(f.values(), f.bytes() - f.values());
}

template <int kDim, int kRows, bool kScores>
uint32_t shared_bytes(const KvLayer& layer) {
  const uint32_t ring = kWarps * kSlots<kDim, kRows, kScores> * slot_bytes(layer);
  const uint32_t sums = carry(kRows) ? 0 : kWarps * kRows * sum_row(kDim) * 4;
  return (static_cast<uint32_t>(sizeof(Shared<kDim, kRows, kScores>)) + 127) / 128 * 128 +
         std::max(ring, sums);
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

// Whether rows are so many that blocks decode tiles for all their warps.
bool of_prompt(const KvLayer& layer, const KvAttend& a) {
  return a.scores == nullptr && a.queries * layer.group > 32;
}

// As many splits as let the last wave of blocks be nearly full, of `room` at a time. Each bundle of
// splits has `extra` blocks more.
uint32_t best_splits(uint32_t bundles, uint32_t extra, uint32_t room, uint32_t most) {
  double best = 0;
  uint32_t splits = 1;
  for (uint32_t s = 1; s <= most; ++s) {
    const uint32_t blocks = (s + extra) * bundles;
    const uint32_t waves = (blocks + room - 1) / room;
    if (s > 1 && waves > 4) break;
    const double full = static_cast<double>(blocks) / (static_cast<double>(waves) * room);
    const double worth = full - 0.02 * waves;
    if (worth > best + 1e-9) {
      best = worth;
      splits = s;
    }
  }
  return splits;
}

// How many blocks share a sequence; every warp has a tile. Raw tokens have blocks of their own
// where few are needed.
Shape shape_of(const KvLayer& layer, const KvAttend& a, int device) {
  Shape shape{};
  const bool prompt = of_prompt(layer, a);
  const uint32_t dim = layer.format.dim;
  const uint32_t rows = a.queries * layer.group;
  // 16 rows of 256 channels are more than registers hold.
  shape.rows = prompt ? prompt_rows(dim) : rows <= 4 ? 4 : rows <= 8 ? 8 : dim == 256 ? 8 : 16;
  shape.slot_bytes = slot_bytes(layer);
  shape.row_blocks = (rows + shape.rows - 1) / shape.rows;
  shape.head_rows = shape.row_blocks * shape.rows;
  shape.raw_parts = (layer.slots() + kRawTokens - 1) / kRawTokens;
  const auto multiprocessors = static_cast<uint32_t>(device_properties(device).multiprocessors);
  const uint32_t room =
      prompt ? multiprocessors
             : multiprocessors *
                   static_cast<uint32_t>(resident(
                       static_cast<int>(dim), static_cast<int>(shape.rows), a.scores != nullptr));
  const uint32_t bundles = layer.kv_heads * shape.row_blocks * a.sequences;
  const uint32_t tiles = (a.most_tokens + kTileTokens - 1) / kTileTokens;
  const uint32_t most = std::max(1u, std::min(1024u, tiles / kWarps));
  const bool apart = prompt || shape.raw_parts * bundles <= room / 8;
  shape.splits = best_splits(bundles, apart && !prompt ? shape.raw_parts : 0, room, most);
  shape.blocks = shape.splits + (apart ? shape.raw_parts : 0);
  shape.raw_first = apart ? shape.splits : 0;
  shape.few = shape.blocks * bundles <= 3 * multiprocessors;
  return shape;
}

template <typename Kernel>
void allow_shared(Kernel kernel, std::size_t bytes) {
  TQ_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
}

// Each kernel starts while the one before it ends, and waits for it before reading what it wrote.
template <int kDim, int kRows, bool kScores, int kBlocks = resident(kDim, kRows, kScores)>
void launch_attend(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                   cudaStream_t stream) {
  // Where there are few blocks, each may have more registers.
  if constexpr (kDim == 128 && kBlocks == 4) {
    if (shape.few) return launch_attend<kDim, kRows, kScores, 3>(layer, a, shape, stream);
  }
  const auto kernel = attend_kernel<kDim, kRows, kScores, kBlocks>;
  const uint32_t bytes = shared_bytes<kDim, kRows, kScores>(layer);
  allow_shared(kernel, bytes);
  const dim3 grid(shape.blocks - shape.skipped, layer.kv_heads * shape.row_blocks, a.sequences);
  launch(kernel, "launch of attend", grid, kThreads, bytes, stream, true, layer, a, shape);
}

template <int kDim>
void launch_prompt(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                   cudaStream_t stream) {
  constexpr std::size_t kBytes = sizeof(PromptShared<kDim>);
  allow_shared(prompt_kernel<kDim>, kBytes);
  launch(prompt_kernel<kDim>, "launch of prompt",
         dim3(shape.splits, layer.kv_heads * shape.row_blocks, a.sequences),
         32 * prompt_warps(kDim), kBytes, stream, true, layer, a, shape);
  // Sinks and tail.
  Shape raw = shape;
  raw.skipped = shape.splits;
  constexpr int kRows = kDim == 256 ? 8 : 16;
  raw.rows = kRows;
  raw.row_blocks = (a.queries * layer.group + raw.rows - 1) / raw.rows;
  launch_attend<kDim, kRows, false>(layer, a, raw, stream);
}

template <int kDim, uint32_t kShares>
void launch_combine(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                    cudaStream_t stream) {
  launch(combine_kernel<kDim, kShares>, "launch of combine",
         dim3(a.queries * layer.group, layer.kv_heads, a.sequences), kDim * kShares,
         shape.parts() * sizeof(float), stream, true, layer, a, shape);
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
  return static_cast<std::size_t>(attend.sequences) * layer.kv_heads * shape.head_rows *
         shape.parts() * (layer.format.dim + 2) * sizeof(float);
}

void kv_attend(const KvLayer& layer, const KvAttend& attend, int device, StreamPointer stream) {
  const Shape shape = shape_of(layer, attend, device);
  const auto on = static_cast<cudaStream_t>(stream);
  const bool prompt = of_prompt(layer, attend);
  visit_instance(layer.format.dim, prompt ? 8 : shape.rows, [&](auto dim, auto rows) {
    constexpr int kDim = decltype(dim)::value;
    constexpr int kRows = decltype(rows)::value;
    if (attend.scores != nullptr) {
      launch_attend<kDim, kRows, true>(layer, attend, shape, on);
      return;
    }
    if (prompt) {  // many rows, of few parts each
      launch_prompt<kDim>(layer, attend, shape, on);
      launch_combine<kDim, 1>(layer, attend, shape, on);
    } else {
      launch_attend<kDim, kRows, false>(layer, attend, shape, on);
      launch_combine<kDim, 4>(layer, attend, shape, on);
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
