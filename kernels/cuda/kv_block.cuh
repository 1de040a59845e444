// One block of attention over tiles of codes. One warp takes whole tiles: scores by int8 products
// of 8 query rows with decoded keys, weights in two 8-bit digits (rows 8 to 15 of the same
// products) with decoded values; scales outside. Every warp has a ring of halves of tiles filled by
// asynchronous copies. Blocks leave partial sums, relative to their largest scores, which
// kv_combine.cuh merges.
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
constexpr int kSlots = kDim == 256 ? 2 : 3;
template <int kDim>
constexpr int kResident = kDim == 256 ? 2 : 3;

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

  // ---- tokens in halves ----

  __device__ const __half* raw_row(uint32_t slot, uint32_t side) const {
    return reinterpret_cast<const __half*>(layer_.raw) +
           (((static_cast<size_t>(sequence_) * layer_.slots() + slot) * 2 + side) *
                layer_.kv_heads +
            head_) *
               kDim;
  }

  __device__ void raw_part(uint32_t part, bool sound) {
    const uint32_t all = sound ? state_.sinks + state_.tail : 0;
    const uint32_t begin = min(part * kRawTokens, all);
    const uint32_t n = min(kRawTokens, all - begin);
    if (threadIdx.x < kRawTokens) {
      const uint32_t i = begin + min(threadIdx.x, n == 0 ? 0 : n - 1);
      shared_.raw_slots[threadIdx.x] =
          i < state_.sinks ? i
                           : layer_.sink_tokens + (state_.head + i - state_.sinks) % layer_.ring();
    }
    __syncthreads();
    for (uint32_t tile = warp_ * 2; n > 0 && tile < warp_ * 2 + 2; ++tile) {
      const uint4* keys =
          reinterpret_cast<const uint4*>(raw_row(shared_.raw_slots[tile * 8 + g_], 0));
      float scores[2];
      half_dots([&](uint32_t chunk) { return keys[chunk]; }, scores[0], scores[1]);
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const uint32_t i = tile * 8 + 2 * t_ + e;
        const uint32_t token = begin + i;
        const uint32_t position =
            token < state_.sinks ? token : state_.length - state_.tail + token - state_.sinks;
        const float score = i < n ? limited(scores[e] * kLog2E, position) : -INFINITY;
        shared_.raw_scores[g_][i] = score;
        if constexpr (kScores) {
          if (i < n && g_ < rows_) store_score(position, score);
        }
      }
    }
    if constexpr (kScores) return;
    __syncthreads();
    for (int k = 0; k < kRowsOfWarp; ++k) raw_softmax(warp_ * kRowsOfWarp + k, part, n);
    __syncthreads();
    if (n > 0) raw_values(part, n);
  }

  __device__ void raw_softmax(uint32_t r, uint32_t part, uint32_t n) {
    const float a = n > 0 ? shared_.raw_scores[r][lane_] : -INFINITY;
    const float b = n > 0 ? shared_.raw_scores[r][lane_ + 32] : -INFINITY;
    float largest = fmaxf(a, b);
#pragma unroll
    for (int span = 1; span < 32; span *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, span));
    }
    const float shift = largest == -INFINITY ? 0 : largest;
    const float pa = exp2_fast(a - shift);
    const float pb = exp2_fast(b - shift);
    shared_.raw_weights[lane_][r] = pa;
    shared_.raw_weights[lane_ + 32][r] = pb;
    float total = pa + pb;
#pragma unroll
    for (int span = 1; span < 32; span *= 2) total += __shfl_xor_sync(~0u, total, span);
    if (lane_ == 0 && r < rows_) largest_and_total(shape_.splits + part)[r] = {largest, total};
  }

  __device__ void raw_values(uint32_t part, uint32_t n) {
    for (uint32_t d = threadIdx.x; d < kDim; d += kThreads) {
      float sums[kRows] = {};
#pragma unroll 16
      for (uint32_t i = 0; i < n; ++i) {
        const float value = __half2float(raw_row(shared_.raw_slots[i], 1)[d]);
        const float4 w0 = *reinterpret_cast<const float4*>(&shared_.raw_weights[i][0]);
        const float4 w1 = *reinterpret_cast<const float4*>(&shared_.raw_weights[i][4]);
        sums[0] = fmaf(w0.x, value, sums[0]);
        sums[1] = fmaf(w0.y, value, sums[1]);
        sums[2] = fmaf(w0.z, value, sums[2]);
        sums[3] = fmaf(w0.w, value, sums[3]);
        sums[4] = fmaf(w1.x, value, sums[4]);
        sums[5] = fmaf(w1.y, value, sums[5]);
        sums[6] = fmaf(w1.z, value, sums[6]);
        sums[7] = fmaf(w1.w, value, sums[7]);
      }
      float* out = partial(shape_.splits + part);
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r) {
        if (r < rows_) out[r * kDim + d] = sums[r];
      }
    }
  }

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

  // ---- tiles ----

  __device__ void loop() {
    // Operands of the queries: row g, a quarter of the channels, 8 of them a step.
    uint32_t operands[kDim / 32][2];
#pragma unroll
    for (int s = 0; s < kDim / 32; ++s) {
      const uint2 eight =
          *reinterpret_cast<const uint2*>(&shared_.bytes[g_][t_ * (kDim / 4) + 8 * s]);
      operands[s][0] = eight.x;
      operands[s][1] = eight.y;
    }
    const float step = shared_.steps[g_] * layer_.keys.unit * kLog2E;
    const int bias = kMagicBits - (layer_.keys.bits == 4 ? kLevelOffset * shared_.sums[g_] : 0);
    uint32_t h = 0;
    for (uint32_t tile = 0; tile < count_; ++tile) {
      copies_.wait(h);
      float scores[16];
      const uint32_t span = shared_.spans[warp_][tile % 4];
      switch (layer_.keys.bits) {
        case 4:
          key_products<4>(slot(h), operands, step, bias, scores);
          break;
        case 3:
          key_products<3>(slot(h), operands, step, bias, scores);
          break;
        default:
          key_products<2>(slot(h), operands, step, bias, scores);
      }
      limit_tile(span, scores);
      __syncwarp();
      issue(h + kSlots<kDim>);
      ++h;
      if constexpr (kScores) {
        store_scores(span, scores);
        continue;
      }
      copies_.wait(h);
      uint32_t digits[2][4];
      const float factor = weigh(slot(h), scores, digits);
      switch (layer_.values.bits) {
        case 4:
          value_products<4>(slot(h), digits, factor);
          break;
        case 3:
          value_products<3>(slot(h), digits, factor);
          break;
        default:
          value_products<2>(slot(h), digits, factor);
      }
      __syncwarp();
      issue(h + kSlots<kDim>);
      ++h;
    }
  }

  // Scores, in units of log 2, of row g and tokens 16 t to 16 t + 15.
  template <int kBits>
  __device__ __forceinline__ void key_products(const unsigned char* tile,
                                               const uint32_t (&operands)[kDim / 32][2], float step,
                                               int bias, float (&scores)[16]) const {
    const LevelBytes<kBits> levels(layer_.keys.words);
    float mean = 0;
    if (layer_.centre) {
      float same;
      const uint4* means = reinterpret_cast<const uint4*>(tile + layer_.format.mean());
      half_dots([&](uint32_t chunk) { return means[chunk]; }, mean, same);
      mean *= kLog2E;
    }
    const uint4* scale_chunks =
        reinterpret_cast<const uint4*>(tile + layer_.format.key_scales() + 32 * t_);
    const Quad start = {bias, bias, 0, 0};
    Quad dots{};
#pragma unroll
    for (int group = 0; group < kDim / 64; ++group) {
      uint32_t digits[16];
      load_digits<kBits>(tile + group * kBits * 512, lane_, digits);
#pragma unroll
      for (int f = 0; f < 16; ++f) {
        constexpr int kSteps = kDim / 32;
        const int fragment = group * 16 + f;
        const int column = fragment / kSteps;
        const int s = fragment % kSteps;
        uint32_t b0, b1;
        levels.eight(digits[f], b0, b1);
        const uint32_t a[4] = {operands[s][0], 0, operands[s][1], 0};
        dots = mma_int8<true, kBits != 4>(a, b0, b1, s == 0 ? start : dots);
        if (s == kSteps - 1) {
          scores[2 * column] = __int_as_float(dots.x) - kMagic;
          scores[2 * column + 1] = __int_as_float(dots.y) - kMagic;
        }
      }
    }
    const uint4 low = scale_chunks[0];
    const uint4 high = scale_chunks[1];
    const uint32_t pairs[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&pairs[i]));
      scores[2 * i] = fmaf(scores[2 * i] * two.x, step, mean);
      scores[2 * i + 1] = fmaf(scores[2 * i + 1] * two.y, step, mean);
    }
  }

  __device__ __forceinline__ void limit_tile(uint32_t span, float (&scores)[16]) const {
    const uint32_t first = span / 128;
    const uint32_t tokens = span % 128;
    if (tokens == kTileTokens && first >= all_.begin && first + kTileTokens <= all_.end &&
        a_.softcap == 0 && a_.mask == nullptr) {
      return;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t token = 16 * t_ + i;
      scores[i] = token < tokens ? limited(scores[i], first + token) : -INFINITY;
    }
  }

  __device__ void store_scores(uint32_t span, const float (&scores)[16]) const {
    if (g_ >= rows_) return;
    const uint32_t first = span / 128 + 16 * t_;
    __half* to = reinterpret_cast<__half*>(a_.scores) + row_of(g_) * a_.score_stride + first;
    uint32_t pairs[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const __half2 two =
          __floats2half2_rn(scores[2 * i] * (1 / kLog2E), scores[2 * i + 1] * (1 / kLog2E));
      pairs[i] = *reinterpret_cast<const uint32_t*>(&two);
    }
    if (span % 128 == kTileTokens && reinterpret_cast<size_t>(to) % 16 == 0) {
      reinterpret_cast<uint4*>(to)[0] = {pairs[0], pairs[1], pairs[2], pairs[3]};
      reinterpret_cast<uint4*>(to)[1] = {pairs[4], pairs[5], pairs[6], pairs[7]};
      return;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (16 * t_ + i >= span % 128) continue;
      to[i] = __ushort_as_half(static_cast<unsigned short>(pairs[i / 2] >> (i % 2 * 16)));
    }
  }

  // Scores to digits of weights relative to the tile's largest score and value scale. Returns what
  // one unit of them counts, relative to the largest score so far.
  __device__ __forceinline__ float weigh(const unsigned char* tile, float (&scores)[16],
                                         uint32_t (&digits)[2][4]) {
    const uint4* chunks = reinterpret_cast<const uint4*>(tile + layer_.format.value_scales() -
                                                         layer_.format.values() + 32 * t_);
    const uint4 low = chunks[0];
    const uint4 high = chunks[1];
    const uint32_t pairs[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    __half2 most = *reinterpret_cast<const __half2*>(&pairs[0]);
    float largest = scores[0];
#pragma unroll
    for (int i = 1; i < 16; ++i) largest = fmaxf(largest, scores[i]);
#pragma unroll
    for (int i = 1; i < 8; ++i) {
      most = __hmax2(most, *reinterpret_cast<const __half2*>(&pairs[i]));
    }
    float top = fmaxf(__low2float(most), __high2float(most));
#pragma unroll
    for (int span = 1; span < 4; span *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, span));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, span));
    }
    const float shift = largest == -INFINITY ? 0 : largest;
    const float inverse = top > 0 ? __fdividef(65535.0f, top) : 0;
    float total = 0;
    uint32_t whole[16];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&pairs[i]));
      const float a = exp2_fast(scores[2 * i] - shift);
      const float b = exp2_fast(scores[2 * i + 1] - shift);
      total += a + b;
      whole[2 * i] = __float_as_uint(fminf(fmaf(a * two.x, inverse, 8388608.0f), 8454143.0f));
      whole[2 * i + 1] = __float_as_uint(fminf(fmaf(b * two.y, inverse, 8388608.0f), 8454143.0f));
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t* w = whole + 8 * s + 4 * i;
        const uint32_t two = __byte_perm(w[0], w[1], 0x5410);
        const uint32_t next = __byte_perm(w[2], w[3], 0x5410);
        digits[s][2 * i] = __byte_perm(two, next, 0x7531);
        digits[s][2 * i + 1] = __byte_perm(two, next, 0x6420);
      }
    }
    const float now = fmaxf(largest_, largest);
    if (__any_sync(~0u, now > largest_)) {
      const float shrink = largest_ == now ? 1.0f : exp2_fast(largest_ - now);
      total_ *= shrink;
#pragma unroll
      for (int i = 0; i < kDim / 4; ++i) sums_[i] *= shrink;
      largest_ = now;
    }
    const float factor = largest == -INFINITY ? 0 : exp2_fast(largest - now);
    total_ = fmaf(total, factor, total_);
    return factor * top * (1 / 65535.0f) * layer_.values.unit;
  }

  template <int kBits>
  __device__ __forceinline__ void value_products(const unsigned char* tile,
                                                 const uint32_t (&digits)[2][4], float factor) {
    const LevelBytes<kBits> levels(layer_.values.words);
    Quad start{};
    if constexpr (kBits == 4) {
      start = mma_int8<false, false>(digits[0], 0x01010101u, 0x01010101u, start);
      start = mma_int8<false, false>(digits[1], 0x01010101u, 0x01010101u, start);
      start = {-kLevelOffset * start.x, -kLevelOffset * start.x, -kLevelOffset * start.z,
               -kLevelOffset * start.z};
    }
#pragma unroll
    for (int group = 0; group < kDim / 64; ++group) {
      uint32_t codes[16];
      load_digits<kBits>(tile + group * kBits * 512, lane_, codes);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        uint32_t b0, b1;
        levels.eight(codes[2 * j], b0, b1);
        Quad dots = mma_int8<false, kBits != 4>(digits[0], b0, b1, start);
        levels.eight(codes[2 * j + 1], b0, b1);
        dots = mma_int8<false, kBits != 4>(digits[1], b0, b1, dots);
        float* sums = sums_ + 2 * (group * 8 + j);
        sums[0] = fmaf(__int2float_rn(dots.x * 256 + dots.z), factor, sums[0]);
        sums[1] = fmaf(__int2float_rn(dots.y * 256 + dots.w), factor, sums[1]);
      }
    }
  }

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
