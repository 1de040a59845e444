// One block of attention over tiles of codes: its queries, its share of the tiles, its partial
// results. kv_raw.cuh has what it does with tokens in halves, kv_tiles.cuh with tiles. One warp
// takes whole tiles: scores by int8 products of 8 query rows with decoded keys, weights in two
// 8-bit digits (rows 8 to 15 of the same products) with decoded values; scales outside. Every warp
// has a ring of halves of tiles filled by asynchronous copies. Blocks leave partial sums, relative
// to their largest scores, which kv_combine.cuh merges.
#pragma once

#include <cmath>

#include "kernels/cuda/kv.h"
#include "kernels/cuda/kv_element.cuh"
#include "kernels/cuda/kv_mma.cuh"

namespace turboquant::cuda {
namespace {

constexpr uint32_t kWarps = 4;
constexpr uint32_t kThreads = 32 * kWarps;
constexpr uint32_t kRows = 8;        // query rows of a block
constexpr uint32_t kRawTokens = 64;  // of a block's raw part
constexpr uint32_t kRawTiles = 8;    // tiles that take as long
constexpr uint32_t kRawStride = 12;  // floats of a token's weights; 8 are used
constexpr float kLog2E = 1.44269504f;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: its bits plus an integer are it plus that
constexpr int kMagicBits = 0x4b400000;

// Sizes that both host and device compute.
struct Shape {
  uint32_t splits;
  uint32_t raw_parts;
  uint32_t raw_first;  // block of the first raw part; part r is of block (raw_first + r) % blocks
  uint32_t blocks;
  uint32_t row_blocks;
  uint32_t slot_bytes;
  TQ_KV_BOTH uint32_t parts() const { return splits + raw_parts; }
};

// Halves of tiles in a warp's ring, and blocks of a multiprocessor: what registers and shared
// memory have room for.
template <int kDim>
constexpr int kSlots = kDim == 128 ? 3 : 2;
template <int kDim>
constexpr int kResident = kDim == 64    ? 4
                          : kDim == 128 ? 3
                                        : 2;

template <int kDim>
struct Shared {
  static constexpr int kHalfRow = kDim + 32;  // halves; no bank conflicts between rows
  __half high[kRows][kHalfRow];               // of queries: high + low
  __half low[kRows][kHalfRow];
  signed char bytes[kRows][kDim + 16];
  float steps[kRows];
  int sums[kRows];
  float raw_scores[kRows][kRawTokens + 1];
  float raw_weights[kRawTokens][kRawStride];
  uint32_t raw_slots[kRawTokens];
  float largest[kWarps][kRows];
  float totals[kWarps][kRows];
  uint32_t spans[kWarps][4];
  uint64_t barriers[kWarps][kSlots<kDim>];
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

template <int kDim, bool kScores>
class Block {
 public:
  __device__ Block(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                   unsigned char* memory)
      : layer_(layer),
        a_(a),
        shape_(shape),
        shared_(*reinterpret_cast<Shared<kDim>*>(memory)),
        stages_(memory + (sizeof(Shared<kDim>) + 127) / 128 * 128),
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
    const uint32_t row = min(row0_ + g_, a.queries * layer.group - 1);
    query_ = row / layer.group;
    mine_ = range_of(a, state_.length, query_);
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
    for (int h = 0; h < kSlots<kDim>; ++h) issue(h);
    for (uint32_t r = (blockIdx.x + shape_.blocks - shape_.raw_first) % shape_.blocks;
         r < shape_.raw_parts; r += shape_.blocks) {
      store_queries(false);
      __syncthreads();
      raw_part(r, sound);
      __syncthreads();
    }
    if (blockIdx.x >= shape_.splits) return;
    store_queries(true);
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
    begin = from + border(state_.tiles - from, blockIdx.x);
    end = from + border(state_.tiles - from, blockIdx.x + 1);
  }

  // Tiles of the splits before x. Those that have a raw part too get fewer.
  __device__ uint32_t border(uint32_t tiles, uint32_t x) const {
    const bool shared = shape_.raw_first == 0 && shape_.raw_parts <= shape_.splits &&
                        tiles >= 2 * kRawTiles * shape_.splits;
    const uint64_t all = tiles + (shared ? shape_.raw_parts * kRawTiles : 0);
    const uint32_t before = static_cast<uint32_t>(all * x / shape_.splits);
    return before - (shared ? min(x, shape_.raw_parts) * kRawTiles : 0);
  }

  __device__ unsigned char* slot(uint32_t h) const {
    return stages_ + (warp_ * kSlots<kDim> + h % kSlots<kDim>)*shape_.slot_bytes;
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
        shared_.high[r][lane_ * kEach + e] = high;
        shared_.low[r][lane_ * kEach + e] = __float2half_rn(x[e] - __half2float(high));
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

  // Products of the rows' queries with vectors of halves, 8 at a time: lane (g, t) gives the
  // 16-byte chunks t, t + 4, ... of vector g. Results: row g, vectors 2t and 2t + 1.
  template <typename Chunk>
  __device__ __forceinline__ void half_dots(const Chunk& chunk, float& first, float& second) const {
    float sums[4] = {};
#pragma unroll
    for (int c = 0; c < kDim / 32; ++c) {
      const uint4 b = chunk(4 * c + t_);
      const uint4 high = *reinterpret_cast<const uint4*>(&shared_.high[g_][(4 * c + t_) * 8]);
      const uint4 low = *reinterpret_cast<const uint4*>(&shared_.low[g_][(4 * c + t_) * 8]);
      mma_half(sums, high.x, low.x, high.y, low.y, b.x, b.y);
      mma_half(sums, high.z, low.z, high.w, low.w, b.z, b.w);
    }
    first = sums[0] + sums[2];
    second = sums[1] + sums[3];
  }

  // What softcap, mask, causality and window make of a score in units of log 2.
  __device__ float limited(float score, uint32_t position) const {
    if (a_.softcap != 0) {
      score = a_.softcap * kLog2E * tanhf(score / (kLog2E * a_.softcap));
    }
    if (position < mine_.begin || position >= mine_.end) return -INFINITY;
    if (a_.mask != nullptr) {
      score += kLog2E *
               a_.mask[(static_cast<size_t>(blockIdx.z) * a_.queries + query_) * a_.mask_stride +
                       position];
    }
    return score;
  }

  // ---- tokens in halves: kv_raw.cuh ----

  __device__ const __half* raw_row(uint32_t slot, uint32_t side) const;
  __device__ void raw_part(uint32_t part, bool sound);
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

  __device__ void store_score(uint32_t position, float score) const {
    reinterpret_cast<__half*>(a_.scores)[row_of(g_) * a_.score_stride + position] =
        __float2half_rn(score * (1 / kLog2E));
  }

  // ---- tiles: kv_tiles.cuh ----

  __device__ void loop();
  template <int kBits>
  __device__ __forceinline__ void key_products(const unsigned char* tile,
                                               const uint32_t (&operands)[kDim / 32][2], float step,
                                               int bias, float (&scores)[16]) const;
  __device__ __forceinline__ void limit_tile(uint32_t span, float (&scores)[16]) const;
  __device__ void store_scores(uint32_t span, const float (&scores)[16]) const;
  __device__ __forceinline__ float weigh(const unsigned char* tile, float (&scores)[16],
                                         uint32_t (&digits)[2][4]);
  template <int kBits>
  __device__ __forceinline__ void value_products(const unsigned char* tile,
                                                 const uint32_t (&digits)[2][4], float factor);

  // The warps' sums become the block's.
  __device__ void finish() {
#pragma unroll
    for (int span = 1; span < 4; span *= 2) total_ += __shfl_xor_sync(~0u, total_, span);
    if (t_ == 0) {
      shared_.largest[warp_][g_] = largest_;
      shared_.totals[warp_][g_] = total_;
    }
    __syncthreads();
    float largest = shared_.largest[0][g_];
#pragma unroll
    for (uint32_t w = 1; w < kWarps; ++w) largest = fmaxf(largest, shared_.largest[w][g_]);
    const float factor = largest_ == -INFINITY ? 0 : exp2_fast(largest_ - largest);
    float* buffer = reinterpret_cast<float*>(stages_);
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      *reinterpret_cast<float2*>(&buffer[(warp_ * kRows + g_) * kDim + 8 * j + 2 * t_]) = {
          sums_[2 * j] * factor, sums_[2 * j + 1] * factor};
    }
    if (warp_ == 0 && t_ == 0 && g_ < rows_) {
      float total = 0;
#pragma unroll
      for (uint32_t w = 0; w < kWarps; ++w) {
        const float of_warp = shared_.largest[w][g_];
        if (of_warp != -INFINITY) total += shared_.totals[w][g_] * exp2_fast(of_warp - largest);
      }
      largest_and_total(blockIdx.x)[g_] = {largest, total};
    }
    __syncthreads();
    float4* out = reinterpret_cast<float4*>(partial(blockIdx.x));
    const float4* from = reinterpret_cast<const float4*>(buffer);
    for (uint32_t i = threadIdx.x; i < rows_ * kDim / 4; i += kThreads) {
      float4 sum = from[i];
#pragma unroll
      for (uint32_t w = 1; w < kWarps; ++w) {
        const float4 more = from[w * kRows * kDim / 4 + i];
        sum.x += more.x;
        sum.y += more.y;
        sum.z += more.z;
        sum.w += more.w;
      }
      out[i] = sum;
    }
  }

  const KvLayer& layer_;
  const KvAttend& a_;
  const Shape& shape_;
  Shared<kDim>& shared_;
  unsigned char* const stages_;
  const uint32_t warp_, lane_;
  CopyRing<kSlots<kDim>> copies_;
  const uint32_t g_, t_;
  const uint32_t head_, row0_, rows_, sequence_;
  const KvState state_;
  uint32_t query_ = 0;
  Range mine_{}, all_{}, any_{};    // what row g sees, all rows see, any row sees
  uint32_t first_ = 0, count_ = 0;  // this warp's tiles: first_, first_ + kWarps, ...
  uint32_t numbers_ = 0, spans_ = 0;
  float factors_[2][kEach];  // of the rotation
  float plain_[kRowsOfWarp][kEach];
  float sums_[kDim / 4] = {};
  float largest_ = -INFINITY;
  float total_ = 0;
};

}  // namespace
}  // namespace turboquant::cuda
