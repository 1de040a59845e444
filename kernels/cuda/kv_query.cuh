// What kernels of attention share: sizes, which tokens a query row sees, queries as operands, where
// partial results lie.
#pragma once

#include <cmath>

#include "kernels/cuda/kv.h"
#include "kernels/cuda/kv_element.cuh"
#include "kernels/cuda/kv_mma.cuh"

namespace turboquant::cuda {
namespace {

constexpr uint32_t kWarps = 4;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kRawTokens = 64;  // of a block's raw part
constexpr uint32_t kRawTiles = 8;    // tiles that take as long
constexpr float kLog2E = 1.44269504f;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: its bits plus an integer are it plus that
constexpr int kMagicBits = 0x4b400000;

constexpr float kLargestWeight = 13;        // log2 of the largest one where references are set
constexpr float kNoReference = -1e30f;      // finite: differences to it never are no numbers
constexpr float kSmallestScale = 5.96e-8f;  // of a half; for logarithms

// Sizes that both host and device compute.
struct Shape {
  uint32_t splits;
  uint32_t raw_parts;
  uint32_t raw_first;  // block of the first raw part; part r is of block (raw_first + r) % blocks
  uint32_t blocks;
  uint32_t skipped;  // numbers of blocks before the first
  uint32_t rows;     // query rows of a block
  uint32_t row_blocks;
  uint32_t head_rows;  // room for partial results: query rows of a kv head, rounded up to blocks
  uint32_t slot_bytes;
  bool few;  // at most three blocks a multiprocessor
  TQ_KV_BOTH uint32_t parts() const { return splits + raw_parts; }
};

// Tokens [begin, end) that a query row sees.
struct Range {
  uint32_t begin;
  uint32_t end;
};

__device__ __forceinline__ Range range_of(const KvAttend& a, uint32_t length, uint32_t query) {
  Range range;
  range.end = a.causal ? length - a.after - a.queries + query + 1 : length;
  range.begin = a.window != 0 && range.end > a.window ? range.end - a.window : 0;
  return range;
}

// Tiles of the splits before x. Those that have a raw part too get fewer.
__device__ __forceinline__ uint32_t border(const Shape& shape, uint32_t tiles, uint32_t x) {
  const bool shared = shape.raw_first == 0 && shape.raw_parts <= shape.splits &&
                      tiles >= 2 * kRawTiles * shape.splits;
  const uint64_t all = tiles + (shared ? shape.raw_parts * kRawTiles : 0);
  const uint32_t before = static_cast<uint32_t>(all * x / shape.splits);
  return before - (shared ? min(x, shape.raw_parts) * kRawTiles : 0);
}

// The tiles of split x, without those before `seen`, the first token that a row sees.
__device__ __forceinline__ void tiles_of_split(const Shape& shape, uint32_t tiles,
                                               const uint32_t* spans, uint32_t seen, uint32_t x,
                                               uint32_t& begin, uint32_t& end) {
  uint32_t from = 0;
  if (seen > 0) {  // a window: the first tile that ends behind its start
    uint32_t to = tiles;
    while (from < to) {
      const uint32_t middle = (from + to) / 2;
      const uint32_t span = spans[middle];
      if (span / 128 + span % 128 <= seen) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
  }
  begin = from + border(shape, tiles - from, x);
  end = from + border(shape, tiles - from, x + 1);
}

// A query row: where its tokens are, and its number in the mask.
struct View {
  Range range;
  uint32_t query;
};

// Rows are counted within a kv head: its query heads of the first query, of the second, ...
__device__ __forceinline__ View view_of_row(const KvLayer& layer, const KvAttend& a,
                                            const KvState& state, uint32_t row) {
  const uint32_t query = min(row, a.queries * layer.group - 1) / layer.group;
  return {range_of(a, state.length, query), query};
}

// The number of a row in arrays of the caller.
__device__ __forceinline__ size_t row_number(const KvLayer& layer, const KvAttend& a, uint32_t head,
                                             uint32_t row) {
  return (static_cast<size_t>(blockIdx.z) * a.queries + row / layer.group) *
             (layer.kv_heads * layer.group) +
         head * layer.group + row % layer.group;
}

// What softcap, mask, causality and window make of a score in units of log 2.
__device__ __forceinline__ float limited(const KvAttend& a, const View& view, float score,
                                         uint32_t position) {
  if (a.softcap != 0) {
    score = a.softcap * kLog2E * tanhf(score / (kLog2E * a.softcap));
  }
  if (position < view.range.begin || position >= view.range.end) return -INFINITY;
  if (a.mask != nullptr) {
    score +=
        kLog2E * a.mask[(static_cast<size_t>(blockIdx.z) * a.queries + view.query) * a.mask_stride +
                        position];
  }
  return score;
}

// ---- partial results: [sequences][kv heads][parts][head_rows], sums of values, then pairs of a
// reference and a total ----

__device__ __forceinline__ size_t partial_row(const KvLayer& layer, const Shape& shape,
                                              uint32_t head, uint32_t part) {
  return ((static_cast<size_t>(blockIdx.z) * layer.kv_heads + head) * shape.parts() + part) *
         shape.head_rows;
}
__device__ __forceinline__ float2* partial_pairs(const KvLayer& layer, const KvAttend& a,
                                                 const Shape& shape) {
  return reinterpret_cast<float2*>(a.workspace + static_cast<size_t>(gridDim.z) * layer.kv_heads *
                                                     shape.parts() * shape.head_rows *
                                                     layer.format.dim);
}

// ---- queries ----

constexpr int half_row(int dim) { return dim + 32; }  // halves; no bank conflicts between rows

template <int kDim>
__device__ __forceinline__ void load_factors(const KvLayer& layer, uint32_t lane,
                                             float (&factors)[2][kDim / 32]) {
#pragma unroll
  for (int round = 0; round < 2; ++round) {
#pragma unroll
    for (int e = 0; e < kDim / 32; ++e) {
      factors[round][e] = layer.factors[round * kDim + lane * (kDim / 32) + e];
    }
  }
}

// A row as the sum of two halves. They lie so that those of two products of half_dots are pairs of
// registers.
template <int kEach>
__device__ __forceinline__ void to_halves(const float (&x)[kEach], uint32_t lane, __half* high,
                                          __half* low) {
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const uint32_t channel = lane * kEach + e;
    const uint32_t pair = channel / 2 % 4;
    const uint32_t at = channel / 8 * 8 + (pair % 2 * 2 + pair / 2) * 2 + channel % 2;
    high[at] = __float2half_rn(x[e]);
    low[at] = __float2half_rn(x[e] - __half2float(high[at]));
  }
}

// A row as int8 with a step, and the sum of its bytes.
template <int kEach>
__device__ __forceinline__ void to_bytes(const float (&x)[kEach], uint32_t lane, signed char* bytes,
                                         float& step, int& sum_of_bytes) {
  float largest = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) largest = fmaxf(largest, fabsf(x[e]));
#pragma unroll
  for (int span = 1; span < 32; span *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, span));
  }
  float factor = largest > 0 ? 127 / largest : 0;
  if (!isfinite(factor)) factor = 0;
  int sum = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int value = __float2int_rn(x[e] * factor);
    bytes[lane * kEach + e] = static_cast<signed char>(value);
    sum += value;
  }
#pragma unroll
  for (int span = 1; span < 32; span *= 2) sum += __shfl_xor_sync(~0u, sum, span);
  if (lane == 0) {
    step = largest / 127;
    sum_of_bytes = sum;
  }
}

// Chunk 4 c + t of a row of halves.
__device__ __forceinline__ uint4 query_chunk(const __half* row, int c, uint32_t t) {
  return *reinterpret_cast<const uint4*>(row + (4 * c + t) * 8);
}

// Products of 8 queries with 8 vectors of halves: lane (g, t) gives the halves of query g and the
// 16-byte chunks t, t + 4, ... of vector g. Results: query g, vectors 2t and 2t + 1.
template <int kDim, typename Chunk>
__device__ __forceinline__ void half_dots(const __half* high_row, const __half* low_row, uint32_t t,
                                          const Chunk& chunk, float& first, float& second) {
  float sums[4] = {};
#pragma unroll
  for (int c = 0; c < kDim / 32; ++c) {
    const uint4 b = chunk(4 * c + t);
    const uint4 high = query_chunk(high_row, c, t);
    const uint4 low = query_chunk(low_row, c, t);
    mma_half(sums, high.x, low.x, high.z, low.z, b.x, b.y);
    mma_half(sums, high.y, low.y, high.w, low.w, b.z, b.w);
  }
  first = sums[0] + sums[2];
  second = sums[1] + sums[3];
}

}  // namespace
}  // namespace turboquant::cuda
