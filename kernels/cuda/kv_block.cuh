// One block of attention over tiles of codes: its queries, its share of the tiles, its partial
// results. kv_raw.cuh has what it does with tokens in halves, kv_tiles.cuh with tiles. One warp
// takes whole tiles: decoded keys are the rows of int8 products and kRows query rows their columns;
// weights are integers of two 8-bit digits, the columns of products with decoded values, whose sums
// stay in the accumulators. Every warp has a ring of halves of tiles filled by asynchronous copies.
// Blocks leave partial sums, relative to their largest references, which kv_combine.cuh merges.
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

// Sizes that both host and device compute.
struct Shape {
  uint32_t splits;
  uint32_t raw_parts;
  uint32_t raw_first;  // block of the first raw part; part r is of block (raw_first + r) % blocks
  uint32_t blocks;
  uint32_t rows;  // query rows of a block
  uint32_t row_blocks;
  uint32_t slot_bytes;
  TQ_KV_BOTH uint32_t parts() const { return splits + raw_parts; }
};

// Blocks of a multiprocessor, and halves of tiles in a warp's ring: what registers and shared
// memory have room for.
constexpr int resident(int dim, int rows) {
  if (rows == 16) return 2;
  if (dim == 64) return 4;
  if (dim == 128) return rows == 4 ? 4 : 3;
  return rows == 4 ? 2 : 1;
}
template <int kDim, int kRows>
constexpr int kResident = resident(kDim, kRows);
template <int kDim, int kRows>
constexpr int kSlots = kRows == 16 || kResident<kDim, kRows> == 1 ? 3 : 2;

template <int kDim, int kRows>
struct Shared {
  static constexpr int kHalfRow = kDim + 32;  // halves; no bank conflicts between rows
  static constexpr int kSumRow = kDim + 4;
  __half halves[2 * kRows][kHalfRow];  // of queries: row r is the sum of rows r and kRows + r
  signed char bytes[kRows][kDim + 16];
  float steps[kRows];
  int sums[kRows];
  float raw_scores[kRows][kRawTokens + 1];
  alignas(16) float raw_weights[kRawTokens][kRows];
  uint32_t raw_slots[kRawTokens];
  float references[kWarps][kRows];
  float totals[kWarps][kRows];
  alignas(16) float weighted[kWarps][kRows][kSumRow];  // sums of values
  uint32_t spans[kWarps][4];
  uint64_t barriers[kWarps][kSlots<kDim, kRows>];
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

// While the preceding kernel ends: the state, the table and the first tile of each warp come
// nearer. That kernel may still change them, so this is only a guess at what will be read.
__device__ __forceinline__ void bring_nearer(const KvLayer& layer, const KvAttend& a,
                                             const Shape& shape) {
  if (threadIdx.x % 32 != 0 || blockIdx.x >= shape.splits || a.window != 0) return;
  const uint32_t sequence = a.sequence[blockIdx.z];
  const uint32_t tiles = __ldcg(&layer.states[sequence].tiles);
  const uint32_t first = border(shape, tiles, blockIdx.x) + threadIdx.x / 32;
  if (first >= tiles) return;
  const uint32_t* table = layer.table + static_cast<size_t>(sequence) * layer.table_stride;
  prefetch(layer.spans + (table + first - layer.table));
  const uint32_t bytes = layer.format.bytes();
  prefetch_bulk(layer.pool + (static_cast<size_t>(__ldcg(table + first)) * layer.kv_heads +
                              blockIdx.y / shape.row_blocks) *
                                 bytes,
                bytes);
}

// A query row: where its tokens are, and its number in the mask.
struct View {
  Range range;
  uint32_t query;
};

template <int kDim, int kRows, bool kScores>
class Block {
 public:
  __device__ Block(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                   unsigned char* memory)
      : layer_(layer),
        a_(a),
        shape_(shape),
        shared_(*reinterpret_cast<Shared<kDim, kRows>*>(memory)),
        stages_(memory + (sizeof(Shared<kDim, kRows>) + 127) / 128 * 128),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        copies_(shared_.barriers[warp_], lane_),
        g_(lane_ / 4),
        t_(lane_ % 4),
        head_(blockIdx.y / shape.row_blocks),
        row0_(blockIdx.y % shape.row_blocks * kRows),
        rows_(min(kRows, a.queries * layer.group - row0_)),
        sequence_(a.sequence[blockIdx.z]),
        state_(layer.states[sequence_]) {
    const Range first = range_of(a, state_.length, row0_ / layer.group);
    const Range last = range_of(a, state_.length, (row0_ + rows_ - 1) / layer.group);
    all_ = {last.begin, first.end};
    any_ = {first.begin, last.end};
  }

  __device__ void run() {
    prepare_queries();
    const bool sound = state_.length >= a_.queries + a_.after;
    uint32_t begin = 0;
    uint32_t end = 0;
    if (sound && blockIdx.x < shape_.splits) tiles_of_split(begin, end);
    first_ = begin + warp_;
    count_ = first_ < end ? (end - first_ + kWarps - 1) / kWarps : 0;
    for (int h = 0; h < kSlots<kDim, kRows>; ++h) issue(h);
    for (uint32_t r = (blockIdx.x + shape_.blocks - shape_.raw_first) % shape_.blocks;
         r < shape_.raw_parts; r += shape_.blocks) {
      store_queries(false);
      __syncthreads();
      raw_part(r, sound);
      __syncthreads();
    }
    if (blockIdx.x >= shape_.splits) return;
    store_queries(true);
    if constexpr (!kScores) {
      for (uint32_t i = lane_; i < kRows * shared_.kSumRow; i += 32) {
        shared_.weighted[warp_][0][i] = 0;
      }
    }
    __syncthreads();
    loop();
    if constexpr (!kScores) finish();
  }

 private:
  __device__ void tiles_of_split(uint32_t& begin, uint32_t& end) const {
    uint32_t from = 0;
    if (any_.begin > 0) {  // a window: the first tile that ends behind its start
      const uint32_t* spans = layer_.spans + static_cast<size_t>(sequence_) * layer_.table_stride;
      uint32_t to = state_.tiles;
      while (from < to) {
        const uint32_t middle = (from + to) / 2;
        const uint32_t span = spans[middle];
        if (span / 128 + span % 128 <= any_.begin) {
          from = middle + 1;
        } else {
          to = middle;
        }
      }
    }
    begin = from + border(shape_, state_.tiles - from, blockIdx.x);
    end = from + border(shape_, state_.tiles - from, blockIdx.x + 1);
  }

  __device__ unsigned char* slot(uint32_t h) const {
    return stages_ + (warp_ * kSlots<kDim, kRows> + h % kSlots<kDim, kRows>)*shape_.slot_bytes;
  }

  // Starts the copy of half h of this warp's tiles: keys, values, keys, ...
  __device__ __forceinline__ void issue(uint32_t h) {
    const uint32_t tile = kScores ? h : h / 2;
    const bool values = !kScores && h % 2 == 1;
    if (tile < count_) {
      if (!values && tile % 32 == 0) load_table(tile);
      const KvTileFormat& f = layer_.format;
      const uint32_t number = __shfl_sync(~0u, numbers_, tile % 32);
      const unsigned char* from =
          layer_.pool + (static_cast<size_t>(number) * layer_.kv_heads + head_) * f.bytes() +
          (values ? f.values() : 0);
      copies_.copy(h, slot(h), from, values ? f.bytes() - f.values() : f.values());
      if (!values) {
        const uint32_t span = __shfl_sync(~0u, spans_, tile % 32);
        if (lane_ == 0) shared_.spans[warp_][tile % 4] = span;
      }
    }
    copies_.commit();
  }

  __device__ void load_table(uint32_t tile) {
    const uint32_t mine = tile + lane_;
    if (mine >= count_) return;
    const size_t at = static_cast<size_t>(sequence_) * layer_.table_stride + first_ + mine * kWarps;
    numbers_ = layer_.table[at];
    spans_ = layer_.spans[at];
  }

  static constexpr int kEach = kDim / 32;  // values of a row in a lane
  static constexpr int kRowsOfWarp = kRows / kWarps;

  __device__ size_t row_of(uint32_t r) const {
    const uint32_t row = row0_ + r;
    return (static_cast<size_t>(blockIdx.z) * a_.queries + row / layer_.group) *
               (layer_.kv_heads * layer_.group) +
           head_ * layer_.group + row % layer_.group;
  }

  // Loads that depend on nothing come first, so that their latencies overlap.
  __device__ __forceinline__ void prepare_queries() {
#pragma unroll
    for (int round = 0; round < 2; ++round) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        factors_[round][e] = layer_.factors[round * kDim + lane_ * kEach + e];
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      const uint32_t r = warp_ * kRowsOfWarp + i;
#pragma unroll
      for (int e = 0; e < kEach; ++e) plain_[i][e] = 0;
      if (r < rows_) {
        load_elements<kEach>(a_.q, row_of(r) * kDim + lane_ * kEach, a_.element, plain_[i]);
      }
    }
  }

  // Halves of rows lie so that those of two products of half_dots are pairs of registers.
  __device__ static constexpr uint32_t spread(uint32_t channel) {
    const uint32_t pair = channel / 2 % 4;
    return channel / 8 * 8 + (pair % 2 * 2 + pair / 2) * 2 + channel % 2;
  }

  // The queries as sums of two halves, rotated or not; rotated ones as int8 too.
  __device__ void store_queries(bool rotated) {
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      const uint32_t r = warp_ * kRowsOfWarp + i;
      float x[kEach];
#pragma unroll
      for (int e = 0; e < kEach; ++e) x[e] = plain_[i][e] * a_.scale;
      if (rotated) {
        rotate_warp<kEach>(x, factors_, lane_);
        store_bytes(r, x);
      }
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const __half high = __float2half_rn(x[e]);
        const uint32_t at = spread(lane_ * kEach + e);
        shared_.halves[r][at] = high;
        shared_.halves[kRows + r][at] = __float2half_rn(x[e] - __half2float(high));
      }
    }
  }

  __device__ void store_bytes(uint32_t r, const float (&x)[kEach]) {
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
      shared_.bytes[r][lane_ * kEach + e] = static_cast<signed char>(value);
      sum += value;
    }
#pragma unroll
    for (int span = 1; span < 32; span *= 2) sum += __shfl_xor_sync(~0u, sum, span);
    if (lane_ == 0) {
      shared_.steps[r] = largest / 127;
      shared_.sums[r] = sum;
    }
  }

  // Products of queries with vectors of halves, 8 rows from `row` on and 8 vectors at a time: lane
  // (g, t) gives the 16-byte chunks t, t + 4, ... of vector g. Results: row g, vectors 2t and
  // 2t + 1.
  template <typename Chunk>
  __device__ __forceinline__ void half_dots(uint32_t row, const Chunk& chunk, float& first,
                                            float& second) const {
    float sums[4] = {};
#pragma unroll
    for (int c = 0; c < kDim / 32; ++c) {
      const uint4 b = chunk(4 * c + t_);
      const uint4 high = query_chunk(row, c);
      const uint4 low = query_chunk(kRows + row, c);
      mma_half(sums, high.x, low.x, high.z, low.z, b.x, b.y);
      mma_half(sums, high.y, low.y, high.w, low.w, b.z, b.w);
    }
    first = sums[0] + sums[2];
    second = sums[1] + sums[3];
  }
  __device__ __forceinline__ uint4 query_chunk(uint32_t row, int c) const {
    return *reinterpret_cast<const uint4*>(&shared_.halves[row][(4 * c + t_) * 8]);
  }

  __device__ View view_of(uint32_t r) const {
    const uint32_t query = min(row0_ + r, a_.queries * layer_.group - 1) / layer_.group;
    return {range_of(a_, state_.length, query), query};
  }

  // What softcap, mask, causality and window make of a score in units of log 2.
  __device__ float limited(const View& view, float score, uint32_t position) const {
    if (a_.softcap != 0) {
      score = a_.softcap * kLog2E * tanhf(score / (kLog2E * a_.softcap));
    }
    if (position < view.range.begin || position >= view.range.end) return -INFINITY;
    if (a_.mask != nullptr) {
      score +=
          kLog2E *
          a_.mask[(static_cast<size_t>(blockIdx.z) * a_.queries + view.query) * a_.mask_stride +
                  position];
    }
    return score;
  }

  // ---- tokens in halves: kv_raw.cuh ----

  __device__ const __half* raw_row(uint32_t slot, uint32_t side) const;
  __device__ void raw_part(uint32_t part, bool sound);
  __device__ void raw_keys(uint32_t begin, uint32_t n);
  __device__ void raw_softmax(uint32_t r, uint32_t part, uint32_t n);
  __device__ void raw_values(uint32_t part, uint32_t n);

  // ---- partial results: [batch][heads x row blocks][parts], rows of sums, then of pairs ----

  __device__ size_t part_number(uint32_t part) const {
    return (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * shape_.parts() + part;
  }
  __device__ float* partial(uint32_t part) const {
    return a_.workspace + part_number(part) * kRows * kDim;
  }
  __device__ float2* largest_and_total(uint32_t part) const {
    float* behind =
        a_.workspace + static_cast<size_t>(gridDim.z) * gridDim.y * shape_.parts() * kRows * kDim;
    return reinterpret_cast<float2*>(behind) + part_number(part) * kRows;
  }

  __device__ void store_score(uint32_t r, uint32_t position, float score) const {
    reinterpret_cast<__half*>(a_.scores)[row_of(r) * a_.score_stride + position] =
        __float2half_rn(score * (1 / kLog2E));
  }

  // ---- tiles: kv_tiles.cuh ----

  // Products have 8 columns. With 4 rows, columns 4 to 7 of keys are those rows again, and lane
  // (g, t) takes half of the tokens; of values they are the low digits. Lane (g, t) has the rows
  // 8 n + column() + e, e = 0 and 1, of every n < kColumns, and kTokens tokens from token() on.
  static constexpr int kColumns = kRows < 8 ? 1 : kRows / 8;
  static constexpr int kTokens = kRows < 8 ? 4 : 8;
  static constexpr int kPlanes = kRows < 8 ? 1 : 2;  // of digits: accumulators of a column
  __device__ __forceinline__ uint32_t column() const { return kRows < 8 ? t_ % 2 * 2 : t_ * 2; }
  __device__ __forceinline__ uint32_t token() const {
    return 8 * g_ + (kRows < 8 ? t_ / 2 * 4 : 0);
  }
  using Scores = float[2 * kColumns][kTokens];
  using Digits = uint32_t[kColumns][kPlanes][4];

  __device__ void loop();
  __device__ __forceinline__ void mean_dots(const unsigned char* tile,
                                            float (&means)[2 * kColumns]) const;
  template <int kBits>
  __device__ __forceinline__ void key_products(const unsigned char* tile,
                                               const uint32_t (&operands)[kColumns][kDim / 32][2],
                                               Scores& scores) const;
  __device__ __forceinline__ void limit_tile(uint32_t span, Scores& scores) const;
  __device__ void store_scores(uint32_t span, const Scores& scores) const;
  __device__ __forceinline__ void weigh(const unsigned char* tile, uint32_t number,
                                        const Scores& scores, Digits& digits);
  __device__ __forceinline__ void raise(const Scores& scores, const float (&scales)[kTokens]);
  __device__ __forceinline__ void flush(const float (&shrink)[2 * kColumns]);
  template <int kBits>
  __device__ __forceinline__ void value_products(const unsigned char* tile, const Digits& digits);
  __device__ void finish();

  const KvLayer& layer_;
  const KvAttend& a_;
  const Shape& shape_;
  Shared<kDim, kRows>& shared_;
  unsigned char* const stages_;
  const uint32_t warp_, lane_;
  CopyRing<kSlots<kDim, kRows>> copies_;
  const uint32_t g_, t_;
  const uint32_t head_, row0_, rows_, sequence_;
  const KvState state_;
  Range all_{}, any_{};             // what all rows see, any row sees
  uint32_t first_ = 0, count_ = 0;  // this warp's tiles: first_, first_ + kWarps, ...
  uint32_t numbers_ = 0, spans_ = 0;
  float factors_[2][kEach];  // of the rotation
  float plain_[kRowsOfWarp][kEach];
  // Weights count 2 ^ -reference; accumulators are what shared_.weighted lacks.
  float references_[2 * kColumns];
  float totals_[2 * kColumns];
  Quad sums_[kColumns][kPlanes][kDim / 16];
  Quad counts_[kColumns][kPlanes];  // sums of digits
};

}  // namespace
}  // namespace turboquant::cuda
