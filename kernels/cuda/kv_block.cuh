// One block of attention over tiles of codes: its queries, its share of the tiles, its partial
// results. kv_raw.cuh has what it does with tokens in halves, kv_tiles.cuh with tiles. One warp
// takes whole tiles: decoded keys are the rows of int8 products and kRows query rows their columns;
// weights are integers of two 8-bit digits, the columns of products with decoded values, whose sums
// stay in the accumulators. Every warp has a ring of halves of tiles filled by asynchronous copies.
// Blocks leave partial sums, relative to their largest references, which kv_combine.cuh merges.
#pragma once

#include "kernels/cuda/kv_query.cuh"

namespace turboquant::cuda {
namespace {

// Blocks of a multiprocessor, and halves of tiles in a warp's ring: what registers and shared
// memory have room for.
constexpr int resident(int dim, int rows, bool scores) {
  if (rows == 16) return 3;
  if (dim == 64) return 4;
  if (dim == 128) return rows == 4 && !scores ? 4 : 3;
  return rows == 4 ? 2 : 1;
}
template <int kDim, int kRows, bool kScores>
constexpr int kSlots = resident(kDim, kRows, kScores) == 1 || (kDim == 128 && kRows < 16 && kScores)
                           ? 3
                           : 2;

// Whether sums of values stay in the integers of products. With 16 rows these are too many
// registers; there sums are floats, two digits together.
TQ_KV_BOTH constexpr bool carry(int rows) { return rows < 16; }

TQ_KV_BOTH constexpr int sum_row(int dim) { return dim + 4; }

template <int kDim, int kRows, bool kScores>
struct Shared {
  __half halves[2 * kRows][half_row(kDim)];  // of queries: row r is the sum of rows r and kRows + r
  signed char bytes[kRows][kDim + 16];
  float steps[kRows];
  int sums[kRows];
  float raw_scores[kRows][kRawTokens + 1];
  alignas(16) float raw_weights[kRawTokens][kRows];
  uint32_t raw_slots[kRawTokens];
  float references[kWarps][kRows];
  float totals[kWarps][kRows];
  // Sums of values. Floats go to the ring of tiles in the end.
  static constexpr bool kWeighted = carry(kRows) && !kScores;
  alignas(16) float weighted[kWeighted ? kWarps : 1][kWeighted ? kRows : 1][sum_row(kDim)];
  uint32_t spans[kWarps][4];
  uint64_t barriers[kWarps][kSlots<kDim, kRows, kScores>];
};

// While the preceding kernel ends: the state, the table and the first tile of each warp come
// nearer. That kernel may still change them, so this is only a guess at what will be read.
__device__ __forceinline__ void bring_nearer(const KvLayer& layer, const KvAttend& a,
                                             const Shape& shape) {
  const uint32_t x = blockIdx.x + shape.skipped;
  if (threadIdx.x % 32 != 0 || x >= shape.splits || a.window != 0) return;
  const uint32_t sequence = a.sequence[blockIdx.z];
  const uint32_t tiles = __ldcg(&layer.states[sequence].tiles);
  const uint32_t first = border(shape, tiles, x) + threadIdx.x / 32;
  if (first >= tiles) return;
  const uint32_t* table = layer.table + static_cast<size_t>(sequence) * layer.table_stride;
  prefetch(layer.spans + (table + first - layer.table));
  const uint32_t bytes = layer.format.bytes();
  prefetch_bulk(layer.pool + (static_cast<size_t>(__ldcg(table + first)) * layer.kv_heads +
                              blockIdx.y / shape.row_blocks) *
                                 bytes,
                bytes);
}

template <int kDim, int kRows, bool kScores>
class Block {
 public:
  __device__ Block(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                   unsigned char* memory)
      : layer_(layer),
        a_(a),
        shape_(shape),
        shared_(*reinterpret_cast<Shared<kDim, kRows, kScores>*>(memory)),
        stages_(memory + (sizeof(Shared<kDim, kRows, kScores>) + 127) / 128 * 128),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        copies_(shared_.barriers[warp_], lane_),
        g_(lane_ / 4),
        t_(lane_ % 4),
        x_(blockIdx.x + shape.skipped),
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
    if (sound && x_ < shape_.splits) {
      tiles_of_split(shape_, state_.tiles,
                     layer_.spans + static_cast<size_t>(sequence_) * layer_.table_stride,
                     any_.begin, x_, begin, end);
    }
    first_ = begin + warp_;
    count_ = first_ < end ? (end - first_ + kWarps - 1) / kWarps : 0;
    for (int h = 0; h < kSlots<kDim, kRows, kScores>; ++h) issue(h);
    for (uint32_t r = (x_ + shape_.blocks - shape_.raw_first) % shape_.blocks; r < shape_.raw_parts;
         r += shape_.blocks) {
      store_queries(false);
      __syncthreads();
      raw_part(r, sound);
      __syncthreads();
    }
    if (x_ >= shape_.splits) return;
    store_queries(true);
    if constexpr (!kScores && kCarry) {
      for (uint32_t i = lane_; i < kRows * sum_row(kDim); i += 32) weighted(warp_, 0)[i] = 0;
    }
    __syncthreads();
    loop();
    if constexpr (!kScores) finish();
  }

 private:
  __device__ unsigned char* slot(uint32_t h) const {
    return stages_ + (warp_ * kSlots<kDim, kRows, kScores> +
                      h % kSlots<kDim, kRows, kScores>)*shape_.slot_bytes;
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

  __device__ size_t row_of(uint32_t r) const { return row_number(layer_, a_, head_, row0_ + r); }

  // Loads that depend on nothing come first, so that their latencies overlap.
  __device__ __forceinline__ void prepare_queries() {
    load_factors<kDim>(layer_, lane_, factors_);
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
        to_bytes<kEach>(x, lane_, shared_.bytes[r], shared_.steps[r], shared_.sums[r]);
      }
      to_halves<kEach>(x, lane_, shared_.halves[r], shared_.halves[kRows + r]);
    }
  }

  __device__ View view_of(uint32_t r) const { return view_of_row(layer_, a_, state_, row0_ + r); }

  // ---- tokens in halves: kv_raw.cuh ----

  __device__ const __half* raw_row(uint32_t slot, uint32_t side) const;
  __device__ void raw_part(uint32_t part, bool sound);
  __device__ void raw_keys(uint32_t begin, uint32_t n);
  __device__ void raw_softmax(uint32_t r, uint32_t part, uint32_t n);
  __device__ void raw_values(uint32_t part, uint32_t n);

  // ---- this block's rows of partial results ----

  __device__ float* partial(uint32_t part) const {
    return a_.workspace + (partial_row(layer_, shape_, head_, part) + row0_) * kDim;
  }
  __device__ float2* largest_and_total(uint32_t part) const {
    return partial_pairs(layer_, a_, shape_) + partial_row(layer_, shape_, head_, part) + row0_;
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
  static constexpr bool kCarry = carry(kRows);
  __device__ __forceinline__ float* weighted(uint32_t warp, uint32_t row) const {
    if constexpr (kCarry) return shared_.weighted[warp][row];
    return reinterpret_cast<float*>(stages_) + (warp * kRows + row) * sum_row(kDim);
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
  __device__ __forceinline__ void raise(int n, const Scores& scores, const float (&scales)[kTokens],
                                        bool sums);
  __device__ __forceinline__ void flush(int n, const float (&shrink)[2]);
  __device__ __forceinline__ void load_operands(uint32_t (&operands)[kColumns][kDim / 32][2]) const;
  __device__ __forceinline__ void count(const Digits& digits);
  template <int kBits>
  __device__ __forceinline__ void value_products(const unsigned char* tile, const Digits& digits);
  __device__ void finish();

  const KvLayer& layer_;
  const KvAttend& a_;
  const Shape& shape_;
  Shared<kDim, kRows, kScores>& shared_;
  unsigned char* const stages_;
  const uint32_t warp_, lane_;
  CopyRing<kSlots<kDim, kRows, kScores>> copies_;
  const uint32_t g_, t_;
  const uint32_t x_;  // number of this block
  const uint32_t head_, row0_, rows_, sequence_;
  const KvState state_;
  Range all_{}, any_{};             // what all rows see, any row sees
  uint32_t first_ = 0, count_ = 0;  // this warp's tiles: first_, first_ + kWarps, ...
  uint32_t numbers_ = 0, spans_ = 0;
  float factors_[2][kEach];  // of the rotation
  float plain_[kRowsOfWarp][kEach];
  // Weights count 2 ^ -reference. Integer sums are what shared_.weighted lacks.
  float references_[2 * kColumns];
  float totals_[2 * kColumns] = {};
  Quad sums_[kCarry ? kColumns : 1][kPlanes][kDim / 16] = {};
  Quad counts_[kColumns][kPlanes] = {};  // sums of digits
  float floats_[kCarry ? 1 : kColumns][kDim / 16][4] = {};
};

}  // namespace
}  // namespace turboquant::cuda
