// The scan of few queries, which is bound by memory: whole tiles of 16 rows, next to one another in
// memory, are copied to shared memory by the copy engine, several ahead of the one at work. Each
// warp has its own tiles and waits for nobody else's.
#pragma once

#include "kernels/cuda/scan_parts.cuh"

namespace turboquant::cuda {
namespace {

constexpr int kTileOfBulk = 16;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// Counts the bytes of copies that arrive. Of one warp; phases alternate between 0 and 1.
class Arrival {
 public:
  __device__ explicit Arrival(std::uint64_t* barrier)
      : at_(static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier))) {}

  __device__ void initialize() const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at_) : "memory");
  }
  // By one lane, after all have read what lies at `to`.
  __device__ void copy(void* to, const void* from, std::uint32_t bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at_), "r"(bytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
        "l"(from), "r"(bytes), "r"(at_)
        : "memory");
  }
  __device__ void wait(std::uint32_t phase) const {
    std::uint32_t there = 0;
    while (there == 0) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(there)
          : "r"(at_), "r"(phase)
          : "memory");
    }
  }

 private:
  std::uint32_t at_;
};
#endif

// a.stages tiles of a warp are in shared memory or on their way there; of at most kWarps warps.
template <int kBits, int kQueryTiles, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 1)
    scan_bulk_kernel(const __grid_constant__ ScanArgs a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr int kTile = kTileOfBulk;
  constexpr int kQueries = 8 * kQueryTiles;
  constexpr int kQuads = quads_of(kBits);
  constexpr bool kUnsigned = unsigned_levels(kBits);
  constexpr int kAtOnce = kQueryTiles % 2 == 0 ? 2 : 1;

  extern __shared__ __align__(16) char memory[];
  auto* factors = reinterpret_cast<QueryFactors*>(memory);
  auto* operands = reinterpret_cast<uint4*>(memory + kQueries * sizeof(QueryFactors));
  const int groups = a.layout.groups;
  const int tile_words = groups * kQuads * 32;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32;
  auto* arrivals = reinterpret_cast<std::uint64_t*>(operands + kQueryTiles * tile_words) +
                   warp * static_cast<int>(a.stages);
  const std::uint32_t stage_bytes = kTile * a.layout.stride + kPastTileBytes;
  char* const stages = reinterpret_cast<char*>(operands + kQueryTiles * tile_words) +
                       (warps * a.stages * 8 + 15) / 16 * 16 + warp * a.stages * stage_bytes;

  const std::uint32_t first_query = blockIdx.y * kQueries;
  // Neighbouring tiles are on different multiprocessors, so that few tiles are spread, too.
  const std::uint32_t stride = gridDim.x * warps;
  const auto skip = [&](std::uint32_t j) { return next_item<kTile>(a, j, stride); };
  const auto fetch = [&](std::uint32_t j, std::uint32_t stage) {
    const std::uint32_t row = a.round.tile(j) * kTile;
    const std::uint32_t rows = min(a.n - row, static_cast<std::uint32_t>(kTile));
    Arrival(arrivals + stage)
        .copy(stages + stage * stage_bytes,
              a.rows.codes + static_cast<std::size_t>(row) * a.layout.stride,
              rows * a.layout.stride);
  };
  if (lane == 0) {
    for (std::uint32_t s = 0; s < a.stages; ++s) Arrival(arrivals + s).initialize();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncwarp();
  std::uint32_t item = skip(blockIdx.x + warp * gridDim.x);
  std::uint32_t ahead = item;  // the next to be fetched
  for (std::uint32_t s = 0; s < a.stages && ahead < a.round.tiles; ++s) {
    if (lane == 0) fetch(ahead, s);
    ahead = skip(ahead + stride);
  }
  // Rows do not depend on the preceding kernel; queries and limits do.
  let_next_start();
  wait_for_preceding();
  const uint4* from = reinterpret_cast<const uint4*>(a.queries.operands) +
                      static_cast<std::size_t>(blockIdx.y) * kQueryTiles * tile_words;
  for (int i = threadIdx.x; i < kQueryTiles * tile_words; i += blockDim.x) {
    const int t = i / tile_words;
    const int at = i - t * tile_words;
    operands[(at / 32 * kQueryTiles + t) * 32 + at % 32] = from[i];
  }
  load_factors<false>(a, first_query, kQueries, factors);
  __syncthreads();

  const int row_of_lane = lane / kLanesOfRow;
  const int chunk_of_lane = lane % kLanesOfRow;
  // Chunks past the end of a row are whatever lies there, the next row or what is left free behind
  // a tile: queries are zero for them.
  std::uint32_t stage = 0;
  std::uint32_t phase = 0;
  while (item < a.round.tiles) {
    const std::uint32_t first = a.round.tile(item) * kTile + row_of_lane;
    float row_scale[2];
    float row_terms[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t row = min(first + 8 * r, a.n - 1);
      row_scale[r] = __ldg(a.rows.scale + row);
      row_terms[r] = row_term(a, row);
    }
    std::int32_t dots[1][kQueryTiles][4];
#pragma unroll
    for (int t = 0; t < kQueryTiles; ++t) {
      const QueryFactors* f = factors + t * 8 + chunk_of_lane * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) dots[0][t][i] = f[i % 2].bias;
    }
    const char* tile = stages + stage * stage_bytes;
    const auto load = [&](int group, int r) {
      return read_chunk<kBits, SharedMemory>(tile + (row_of_lane + 8 * r) * a.layout.stride,
                                             group * kLanesOfRow + chunk_of_lane, a.layout.top);
    };
    Arrival(arrivals + stage).wait(phase);
    Chunk<kBits> next[2] = {load(0, 0), load(0, 1)};
    for (int group = 0; group < groups; ++group) {
      const Chunk<kBits> chunks[2] = {next[0], next[1]};
      if (group + 1 < groups) {
        next[0] = load(group + 1, 0);
        next[1] = load(group + 1, 1);
      }
#pragma unroll
      for (int quad = 0; quad < kQuads; ++quad) {
        std::uint32_t levels[2][4];
#pragma unroll
        for (int r = 0; r < 2; ++r) decode_quad<kBits>(chunks[r], quad, a.levels, levels[r]);
        multiply_quad<kUnsigned, kAtOnce>(
            dots, levels, operands + (group * kQuads + quad) * kQueryTiles * 32 + lane);
      }
    }
    __syncwarp();
    if (ahead < a.round.tiles) {
      if (lane == 0) fetch(ahead, stage);
      ahead = skip(ahead + stride);
    }
    constexpr std::int32_t kNone[1][1][4] = {};
    offer_passing<1, kQueryTiles, false>(a, factors, first_query, first, item * kTile + row_of_lane,
                                         dots, kNone, row_scale, row_terms);
    item = skip(item + stride);
    if (++stage == a.stages) {
      stage = 0;
      phase ^= 1;
    }
  }
#endif
}

}  // namespace
}  // namespace turboquant::cuda
