// Attention of many query rows over tiles: a block decodes each tile once, into shared memory, and
// each of its warps multiplies it with 16 rows. Keys are int8 as everywhere, values and weights
// halves, whose sums are floats. Sinks and the tail are left to Block.
#pragma once

#include "kernels/cuda/kv_query.cuh"

namespace turboquant::cuda {
namespace {

constexpr uint32_t kPromptGroup = 8;  // tiles whose means are multiplied at once

constexpr uint32_t prompt_warps(uint32_t dim) { return dim == 256 ? 4 : 8; }
constexpr uint32_t prompt_rows(uint32_t dim) { return 16 * prompt_warps(dim); }

template <int kDim>
struct PromptShared {
  static constexpr int kRows = prompt_rows(kDim);
  __half halves[2 * kRows][half_row(kDim)];  // of queries: row r is the sum of rows r and kRows + r
  // Operands of two tiles in turn: a fragment of keys is 8 bytes a lane, two of them lying
  // together, one of values 16.
  alignas(16) uint2 keys[2][kDim / 4][32];
  uint4 values[2][kDim / 4][32];
  float key_scales[2][kTileTokens];
  float value_scales[2][kTileTokens];
  // While queries are prepared, in the place of operands: their bytes.
  using Bytes = signed char[kRows][kDim + 16];
  static_assert(sizeof(Bytes) <= sizeof(keys) + sizeof(values));
  float steps[kRows];
  int sums[kRows];
};

template <int kDim>
class Prompt {
 public:
  __device__ Prompt(const KvLayer& layer, const KvAttend& a, const Shape& shape,
                    unsigned char* memory)
      : layer_(layer),
        a_(a),
        shape_(shape),
        shared_(*reinterpret_cast<PromptShared<kDim>*>(memory)),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        g_(lane_ / 4),
        t_(lane_ % 4),
        head_(blockIdx.y / shape.row_blocks),
        row0_(blockIdx.y % shape.row_blocks * kRows),
        rows_(min(kRows, a.queries * layer.group - row0_)),
        sequence_(a.sequence[blockIdx.z]),
        state_(layer.states[sequence_]),
        table_(layer.table + static_cast<size_t>(sequence_) * layer.table_stride),
        spans_(layer.spans + static_cast<size_t>(sequence_) * layer.table_stride) {}

  __device__ void run() {
    prepare_queries();
    const Range first = view_of(0).range;
    const Range last = view_of(rows_ - 1).range;
    uint32_t begin = 0;
    uint32_t end = 0;
    if (state_.length >= a_.queries + a_.after) {
      tiles_of_split(shape_, state_.tiles, spans_, first.begin, blockIdx.x, begin, end);
    }
    // Without those that no row sees yet.
    while (end > begin && spans_[end - 1] / 128 >= last.end) --end;
    const uint32_t top = min(16 * warp_, rows_ - 1);
    const uint32_t bottom = min(16 * warp_ + 15, rows_ - 1);
    all_ = {view_of(bottom).range.begin, view_of(top).range.end};
    if (begin < end) {
      load(begin);
      decode(0);
    }
    __syncthreads();
    for (uint32_t tile = begin; tile < end; ++tile) {
      const uint32_t i = tile - begin;
      if (i % kPromptGroup == 0) multiply_means(tile, end);
      // The next tile is decoded while others still multiply.
      if (tile + 1 < end) {
        load(tile + 1);
        if (16 * warp_ < rows_) multiply(tile, i);
        decode((i + 1) % 2);
      } else if (16 * warp_ < rows_) {
        multiply(tile, i);
      }
      __syncthreads();
    }
    store();
  }

 private:
  static constexpr uint32_t kWarpsHere = prompt_warps(kDim);
  static constexpr uint32_t kRows = prompt_rows(kDim);
  static constexpr int kEach = kDim / 32;
  static constexpr int kSteps = kDim / 32;
  static constexpr uint32_t kUnits = kDim / 16;                // of a side, four fragments each
  static constexpr uint32_t kItems = 2 * kUnits / kWarpsHere;  // units of a warp

  __device__ View view_of(uint32_t r) const { return view_of_row(layer_, a_, state_, row0_ + r); }

  __device__ void prepare_queries() {
    auto& bytes = *reinterpret_cast<typename PromptShared<kDim>::Bytes*>(shared_.keys);
    float factors[2][kEach];
    load_factors<kDim>(layer_, lane_, factors);
    for (uint32_t i = 0; i < 16; ++i) {
      const uint32_t r = 16 * warp_ + i;
      float x[kEach] = {};
      if (r < rows_) {
        load_elements<kEach>(a_.q, row_number(layer_, a_, head_, row0_ + r) * kDim + lane_ * kEach,
                             a_.element, x);
      }
#pragma unroll
      for (int e = 0; e < kEach; ++e) x[e] *= a_.scale;
      rotate_warp<kEach>(x, factors, lane_);
      to_halves<kEach>(x, lane_, shared_.halves[r], shared_.halves[kRows + r]);
      to_bytes<kEach>(x, lane_, bytes[r], shared_.steps[r], shared_.sums[r]);
    }
    __syncwarp();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const uint2 eight = *reinterpret_cast<const uint2*>(
            &bytes[16 * warp_ + 8 * e + g_][t_ * (kDim / 4) + 8 * s]);
        queries_[s][e] = eight.x;
        queries_[s][2 + e] = eight.y;
      }
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint32_t r = 16 * warp_ + 8 * e + g_;
      steps_[e] = shared_.steps[r];
      bias_[e] = kMagicBits - offset(layer_.keys.bits) * shared_.sums[r];
      references_[e] = kNoReference;
      totals_[e] = 0;
    }
  }

  // Operands are bytes level + this.
  __device__ static __forceinline__ int offset(uint32_t bits) {
    return bits == 4 ? kLevelOffset : 128;
  }

  __device__ const unsigned char* tile_memory(uint32_t tile) const {
    return layer_.pool +
           (static_cast<size_t>(table_[tile]) * layer_.kv_heads + head_) * layer_.format.bytes();
  }

  // This thread's words of a tile, and a scale.
  __device__ __forceinline__ void load(uint32_t tile) {
    const unsigned char* from = tile_memory(tile);
    const KvTileFormat& f = layer_.format;
#pragma unroll
    for (uint32_t k = 0; k < kItems; ++k) {
      const uint32_t unit = warp_ + k * kWarpsHere;
      const bool keys = unit < kUnits;
      const uint32_t bits = keys ? layer_.keys.bits : layer_.values.bits;
      const unsigned char* side = from + (keys ? 0 : f.values());
      if (bits == 4) {
        const uint4 four = *reinterpret_cast<const uint4*>(
            side + kv_word_offset(4, keys ? unit : unit - kUnits, lane_, 0));
        words_[k][0] = four.x;
        words_[k][1] = four.y;
        words_[k][2] = four.z;
        words_[k][3] = four.w;
        continue;
      }
#pragma unroll
      for (uint32_t w = 0; w < 3; ++w) {
        if (w < bits) {
          words_[k][w] = *reinterpret_cast<const uint32_t*>(
              side + kv_word_offset(bits, keys ? unit : unit - kUnits, lane_, w));
        }
      }
    }
    if (threadIdx.x < 2 * kTileTokens) {
      const bool keys = threadIdx.x < kTileTokens;
      scale_ = reinterpret_cast<const __half*>(
          from + (keys ? f.key_scales() : f.value_scales()))[threadIdx.x % kTileTokens];
    }
  }

  __device__ __forceinline__ void decode(uint32_t buffer) {
#pragma unroll
    for (uint32_t k = 0; k < kItems; ++k) {
      const uint32_t unit = warp_ + k * kWarpsHere;
      const bool keys = unit < kUnits;
      const KvSide& side = keys ? layer_.keys : layer_.values;
      uint32_t first[4], second[4];
      switch (side.bits) {
        case 4:
          unit_bytes<4>(side, words_[k], first, second);
          break;
        case 3:
          unit_bytes<3>(side, words_[k], first, second);
          break;
        default:
          unit_bytes<2>(side, words_[k], first, second);
      }
      if (keys) {
        uint4* to = reinterpret_cast<uint4*>(&shared_.keys[buffer][4 * unit][0]);
        to[lane_] = {first[0], second[0], first[1], second[1]};
        to[32 + lane_] = {first[2], second[2], first[3], second[3]};
        continue;
      }
      const __half2 zero = __half2half2(__int2half_rn(1024 + offset(side.bits)));
#pragma unroll
      for (uint32_t f = 0; f < 4; ++f) {
        shared_.values[buffer][4 * (unit - kUnits) + f][lane_] = {
            halves(first[f], 0x4140, zero), halves(first[f], 0x4342, zero),
            halves(second[f], 0x4140, zero), halves(second[f], 0x4342, zero)};
      }
    }
    if (threadIdx.x < 2 * kTileTokens) {
      const float scale = __half2float(scale_);
      if (threadIdx.x < kTileTokens) {
        shared_.key_scales[buffer][threadIdx.x] = scale * (layer_.keys.unit * kLog2E);
      } else {
        shared_.value_scales[buffer][threadIdx.x - kTileTokens] = fmaxf(scale, kSmallestScale);
      }
    }
  }

  template <int kBits>
  __device__ static __forceinline__ void unit_bytes(const KvSide& side, const uint32_t (&words)[4],
                                                    uint32_t (&first)[4], uint32_t (&second)[4]) {
    const LevelBytes<kBits> levels(side.words);
    uint32_t digits[4];
    unit_digits<kBits>(words, digits);
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      levels.eight(digits[f], first[f], second[f]);
      if constexpr (kBits != 4) {
        first[f] ^= 0x80808080u;
        second[f] ^= 0x80808080u;
      }
    }
  }

  // Two bytes as halves 1024 + byte, less `zero`.
  __device__ static __forceinline__ uint32_t halves(uint32_t bytes, uint32_t selectors,
                                                    __half2 zero) {
    const uint32_t two = __byte_perm(bytes, 0x64646464u, selectors);
    const __half2 made = __hsub2(*reinterpret_cast<const __half2*>(&two), zero);
    return *reinterpret_cast<const uint32_t*>(&made);
  }

  // Rows g and g + 8 with the means of the next tiles: lane (g, t) has tiles 2t and 2t + 1.
  __device__ __forceinline__ void multiply_means(uint32_t tile, uint32_t end) {
    if (!layer_.centre) return;
    const uint4* mean =
        reinterpret_cast<const uint4*>(tile_memory(min(tile + g_, end - 1)) + layer_.format.mean());
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint32_t r = 16 * warp_ + 8 * e + g_;
      half_dots<kDim>(
          shared_.halves[r], shared_.halves[kRows + r], t_,
          [&](uint32_t chunk) { return mean[chunk]; }, means_[e][0], means_[e][1]);
    }
  }

  // Token of column 2t (or 2t + 1: 8 more) of the eight products with keys.
  __device__ static constexpr int token_of(int half) { return 4 * (half % 2) + half / 2; }

  __device__ __forceinline__ void multiply(uint32_t tile, uint32_t i) {
    const uint32_t buffer = i % 2;
    float scores[8][4];
    float means[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float mine = i % 2 == 0 ? means_[e][0] : means_[e][1];
      means[e] = kLog2E * __shfl_sync(~0u, mine, (lane_ & 28) + i % kPromptGroup / 2);
    }
    const uint4* keys = reinterpret_cast<const uint4*>(&shared_.keys[buffer][0][0]);
#pragma unroll
    for (int half = 0; half < 8; ++half) {
      Quad dots = {bias_[0], bias_[0], bias_[1], bias_[1]};
#pragma unroll
      for (int s = 0; s < kSteps; s += 2) {
        const uint4 b = keys[(half * kSteps + s) / 2 * 32 + lane_];
        dots = mma_int8<true, false>(queries_[s], b.x, b.y, dots);
        dots = mma_int8<true, false>(queries_[s + 1], b.z, b.w, dots);
      }
      scores[half][0] = __int_as_float(dots.x) - kMagic;
      scores[half][1] = __int_as_float(dots.y) - kMagic;
      scores[half][2] = __int_as_float(dots.z) - kMagic;
      scores[half][3] = __int_as_float(dots.w) - kMagic;
    }
    const float* scales = &shared_.key_scales[buffer][16 * t_];
#pragma unroll
    for (int half = 0; half < 8; ++half) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        scores[half][c] = fmaf(scores[half][c],
                               scales[8 * (c % 2) + token_of(half)] * steps_[c / 2], means[c / 2]);
      }
    }
    limit(spans_[tile], scores);
    uint32_t weights[4][4];  // operands: 16 rows, 16 tokens each
    weigh(&shared_.value_scales[buffer][16 * t_], scores, weights);
#pragma unroll
    for (int c = 0; c < kDim / 8; ++c) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint4 b = shared_.values[buffer][2 * c + s][lane_];
        const uint32_t(&p)[4] = weights[2 * s];
        const uint32_t(&q)[4] = weights[2 * s + 1];
        mma_half(sums_[c], p[0], p[1], p[2], p[3], b.x, b.y);
        mma_half(sums_[c], q[0], q[1], q[2], q[3], b.z, b.w);
      }
    }
  }

  __device__ __forceinline__ void limit(uint32_t span, float (&scores)[8][4]) const {
    const uint32_t first = span / 128;
    const uint32_t tokens = span % 128;
    if (tokens == kTileTokens && first >= all_.begin && first + kTileTokens <= all_.end &&
        a_.softcap == 0 && a_.mask == nullptr) {
      return;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const View view = view_of(16 * warp_ + 8 * e + g_);
#pragma unroll
      for (int half = 0; half < 8; ++half) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const uint32_t t = 16 * t_ + 8 * c + token_of(half);
          float& score = scores[half][2 * e + c];
          score = t < tokens ? limited(a_, view, score, first + t) : -INFINITY;
        }
      }
    }
  }

  // Scores to halves of weights, which are multiplied by value scales.
  __device__ __forceinline__ void weigh(const float* scales, const float (&scores)[8][4],
                                        uint32_t (&weights)[4][4]) {
    float added[2];
#pragma unroll 1
    for (bool again = false;; again = true) {
      added[0] = added[1] = 0;
      __half2 most = __half2half2(__ushort_as_half(0));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int e = c / 2;
          float two[2];
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float p = exp2_fast(scores[2 * k + h][c] - references_[e]);
            added[e] += p;
            two[h] = p * scales[8 * (c % 2) + token_of(2 * k + h)];
          }
          const __half2 pair = __floats2half2_rn(two[0], two[1]);
          most = __hmax2(most, pair);
          // Operands: rows g, rows g + 8, then those of the other two tokens.
          weights[k][c % 2 * 2 + e] = *reinterpret_cast<const uint32_t*>(&pair);
        }
      }
      const float largest = fmaxf(__low2float(most), __high2float(most));
      if (again || !__any_sync(~0u, largest >= 32768)) break;
      raise(scales, scores);
    }
    totals_[0] += added[0];
    totals_[1] += added[1];
  }

  __device__ __forceinline__ void raise(const float* scales, const float (&scores)[8][4]) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float largest = kNoReference;
#pragma unroll
      for (int half = 0; half < 8; ++half) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          largest =
              fmaxf(largest, scores[half][2 * e + c] + __log2f(scales[8 * c + token_of(half)]));
        }
      }
#pragma unroll
      for (int span = 1; span < 4; span *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, span));
      }
      const float reference = fmaxf(references_[e], largest - kLargestWeight);
      const float shrink = exp2_fast(references_[e] - reference);
      references_[e] = reference;
      totals_[e] *= shrink;
#pragma unroll
      for (int c = 0; c < kDim / 8; ++c) {
        sums_[c][2 * e] *= shrink;
        sums_[c][2 * e + 1] *= shrink;
      }
    }
  }

  __device__ void store() const {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint32_t r = 16 * warp_ + 8 * e + g_;
      float total = totals_[e];
#pragma unroll
      for (int span = 1; span < 4; span *= 2) total += __shfl_xor_sync(~0u, total, span);
      if (r >= rows_) continue;
      const size_t row = partial_row(layer_, shape_, head_, blockIdx.x) + row0_ + r;
      if (t_ == 0) partial_pairs(layer_, a_, shape_)[row] = {references_[e], total};
      float* out = a_.workspace + row * kDim;
#pragma unroll
      for (int c = 0; c < kDim / 8; ++c) {
        *reinterpret_cast<float2*>(out + 8 * c + 2 * t_) = {
            sums_[c][2 * e] * layer_.values.unit, sums_[c][2 * e + 1] * layer_.values.unit};
      }
    }
  }

  const KvLayer& layer_;
  const KvAttend& a_;
  const Shape& shape_;
  PromptShared<kDim>& shared_;
  const uint32_t warp_, lane_, g_, t_;
  const uint32_t head_, row0_, rows_, sequence_;
  const KvState state_;
  const uint32_t* const table_;
  const uint32_t* const spans_;
  Range all_{};  // what all rows of the warp see
  uint32_t queries_[kSteps][4];
  float steps_[2];
  int bias_[2];
  float means_[2][2] = {};
  uint32_t words_[kItems][4];
  __half scale_;
  float references_[2];
  float totals_[2];
  float sums_[kDim / 8][4] = {};
};

}  // namespace
}  // namespace turboquant::cuda
