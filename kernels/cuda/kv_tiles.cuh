// What a warp of attention does with its tiles: scores of keys, weights, sums of values.
#pragma once

#include "kernels/cuda/kv_block.cuh"

namespace turboquant::cuda {
namespace {

// A weight of n is the float 2^15 + n, whose bytes 1 and 2 are the two digits of n rounded down.
// What is added before that spreads between 0 and 1 over the tokens, so that sums of many weights
// that are less than 1 are right on average.
constexpr int kWeightBits = 0x47000000;         // the bits of 2^15; a unit is bit 8
constexpr int kWeightEnd = 0x47800000;          // of 2^16
constexpr uint32_t kTilesBetweenFlushes = 512;  // 64 x 255 x 122 each, below 2^31

// Operands of the queries: column g, a quarter of the channels, 8 of them a step.
template <int kDim, int kRows, bool kScores>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::load_operands(
    uint32_t (&operands)[kColumns][kDim / 32][2]) const {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int s = 0; s < kDim / 32; ++s) {
      const uint2 eight = *reinterpret_cast<const uint2*>(
          &shared_.bytes[8 * n + g_ % kRows][t_ * (kDim / 4) + 8 * s]);
      operands[n][s][0] = eight.x;
      operands[n][s][1] = eight.y;
    }
  }
}

template <int kDim, int kRows, bool kScores>
__device__ void Block<kDim, kRows, kScores>::loop() {
  uint32_t operands[kColumns][kDim / 32][2];
  load_operands(operands);
#pragma unroll
  for (int r = 0; r < 2 * kColumns; ++r) references_[r] = kNoReference;
  uint32_t h = 0;
#pragma unroll 1
  for (uint32_t tile = 0; tile < count_; ++tile) {
    copies_.wait(h);
    Scores scores;
    if constexpr (kRows == 16) load_operands(operands);  // rather than keep so many registers
    const uint32_t span = shared_.spans[warp_][tile % 4];
    switch (layer_.keys.bits) {
      case 4:
        key_products<4>(slot(h), operands, scores);
        break;
      case 3:
        key_products<3>(slot(h), operands, scores);
        break;
      default:
        key_products<2>(slot(h), operands, scores);
    }
    limit_tile(span, scores);
    __syncwarp();
    issue(h + kSlots<kDim, kRows, kScores>);
    ++h;
    if constexpr (kScores) {
      store_scores(span, scores);
      continue;
    }
    copies_.wait(h);
    Digits digits;
    weigh(slot(h), tile, scores, digits);
    switch (layer_.values.bits) {
      case 4:
        value_products<4>(slot(h), digits);
        break;
      case 3:
        value_products<3>(slot(h), digits);
        break;
      default:
        value_products<2>(slot(h), digits);
    }
    __syncwarp();
    issue(h + kSlots<kDim, kRows, kScores>);
    ++h;
  }
}

// Of this lane's rows with the mean of a tile: that is in all rows of the first operand, its chunks
// being whole operands of two products.
template <int kDim, int kRows, bool kScores>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::mean_dots(
    const unsigned char* tile, float (&means)[2 * kColumns]) const {
  const uint4* chunks = reinterpret_cast<const uint4*>(tile + layer_.format.mean());
  float even[kColumns][4] = {};
  float odd[kColumns][4] = {};
#pragma unroll
  for (int c = 0; c < kDim / 32; ++c) {
    const uint4 a = chunks[4 * c + t_];
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int low = 0; low < (kRows < 8 ? 1 : 2); ++low) {
        const uint4 b = query_chunk(shared_.halves[low * kRows + 8 * n + g_], c, t_);
        mma_half(even[n], a.x, a.y, a.z, a.w, b.x, b.y);
        mma_half(odd[n], a.x, a.y, a.z, a.w, b.z, b.w);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float mean = even[n][e] + odd[n][2 + e];
      if constexpr (kRows < 8) mean += __shfl_xor_sync(~0u, mean, 2);
      means[2 * n + e] = mean * kLog2E;
    }
  }
}

// Scores in units of log 2.
template <int kDim, int kRows, bool kScores>
template <int kBits>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::key_products(
    const unsigned char* tile, const uint32_t (&operands)[kColumns][kDim / 32][2],
    Scores& scores) const {
  const LevelBytes<kBits> levels(layer_.keys.words);
  float means[2 * kColumns] = {};
  if (layer_.centre) mean_dots(tile, means);
  Quad start[kColumns];
  float steps[2 * kColumns];
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    int bias[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint32_t row = 8 * n + column() + e;
      bias[e] = kMagicBits - (kBits == 4 ? kLevelOffset * shared_.sums[row] : 0);
      steps[2 * n + e] = shared_.steps[row] * (layer_.keys.unit * kLog2E);
    }
    start[n] = {bias[0], bias[1], bias[0], bias[1]};
  }
  constexpr int kSteps = kDim / 32;
#pragma unroll
  for (int group = 0; group < kDim / 64; ++group) {
    uint32_t codes[16];
    load_digits<kBits>(tile + group * kBits * 512, lane_, codes);
#pragma unroll
    for (int i = 0; i < 8 / kSteps; ++i) {
      Quad dots[kColumns];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        uint32_t a[4];
        levels.eight(codes[2 * i * kSteps + s], a[0], a[2]);
        levels.eight(codes[(2 * i + 1) * kSteps + s], a[1], a[3]);
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          dots[n] = mma_int8<kBits != 4, true>(a, operands[n][s][0], operands[n][s][1],
                                               s == 0 ? start[n] : dots[n]);
        }
      }
      const int m = group * (8 / kSteps) + i;
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const Quad d = dots[n];
        if constexpr (kRows < 8) {
          scores[0][m] = __int_as_float(t_ < 2 ? d.x : d.z) - kMagic;
          scores[1][m] = __int_as_float(t_ < 2 ? d.y : d.w) - kMagic;
        } else {
          scores[2 * n][m] = __int_as_float(d.x) - kMagic;
          scores[2 * n + 1][m] = __int_as_float(d.y) - kMagic;
          scores[2 * n][m + 4] = __int_as_float(d.z) - kMagic;
          scores[2 * n + 1][m + 4] = __int_as_float(d.w) - kMagic;
        }
      }
    }
  }
  float scales[kTokens];
  load_scales<kTokens>(tile + layer_.format.key_scales() + 2 * token(), scales);
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
#pragma unroll
    for (int r = 0; r < 2 * kColumns; ++r) {
      scores[r][i] = fmaf(scores[r][i], scales[i] * steps[r], means[r]);
    }
  }
}

template <int kDim, int kRows, bool kScores>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::limit_tile(uint32_t span,
                                                                        Scores& scores) const {
  const uint32_t first = span / 128;
  const uint32_t tokens = span % 128;
  if (tokens == kTileTokens && first >= all_.begin && first + kTileTokens <= all_.end &&
      a_.softcap == 0 && a_.mask == nullptr) {
    return;
  }
#pragma unroll
  for (int r = 0; r < 2 * kColumns; ++r) {
    const View view = view_of(r / 2 * 8 + column() + r % 2);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const uint32_t t = token() + i;
      scores[r][i] = t < tokens ? limited(a_, view, scores[r][i], first + t) : -INFINITY;
    }
  }
}

template <int kDim, int kRows, bool kScores>
__device__ void Block<kDim, kRows, kScores>::store_scores(uint32_t span,
                                                          const Scores& scores) const {
#pragma unroll
  for (int r = 0; r < 2 * kColumns; ++r) {
    const uint32_t row = r / 2 * 8 + column() + r % 2;
    if (row >= rows_) continue;
    __half* to =
        reinterpret_cast<__half*>(a_.scores) + row_of(row) * a_.score_stride + span / 128 + token();
    struct alignas(2 * kTokens) Halves {
      __half2 pairs[kTokens / 2];
    } halves;
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      halves.pairs[i] =
          __floats2half2_rn(scores[r][2 * i] * (1 / kLog2E), scores[r][2 * i + 1] * (1 / kLog2E));
    }
    if (span % 128 == kTileTokens && reinterpret_cast<size_t>(to) % sizeof halves == 0) {
      store_streaming(to, halves);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (token() + i >= span % 128) continue;
      to[i] = i % 2 == 0 ? __low2half(halves.pairs[i / 2]) : __high2half(halves.pairs[i / 2]);
    }
  }
}

// Scores to digits of weights, which are multiplied by value scales, in the order of operands.
template <int kDim, int kRows, bool kScores>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::weigh(const unsigned char* tile,
                                                                   uint32_t number,
                                                                   const Scores& scores,
                                                                   Digits& digits) {
  float scales[kTokens];
  load_scales<kTokens>(tile + layer_.format.value_scales() - layer_.format.values() + 2 * token(),
                       scales);
  constexpr uint32_t kStep = 256 / kTokens;
  const uint32_t shift = (4 * (token() / kTokens) + 37 * number) % kStep;
  const bool full = number % kTilesBetweenFlushes == kTilesBetweenFlushes - 1;
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
    float weights[2][kTokens];
    float added[2];
#pragma unroll 1
    for (bool again = false;; again = true) {
      uint32_t bits = 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        added[e] = 0;
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          const float p = exp2_fast(scores[2 * n + e][i] - references_[2 * n + e]);
          added[e] += p;
          weights[e][i] = fmaf(p, scales[i], __int_as_float(kWeightBits + i * kStep + shift));
          bits |= __float_as_uint(weights[e][i]);
        }
      }
      if (again || !__any_sync(~0u, bits >= kWeightEnd || full)) break;
      raise(n, scores, scales, number > 0);
    }
    totals_[2 * n] += added[0];
    totals_[2 * n + 1] += added[1];
    const auto word = [&](int e, int i) { return __float_as_uint(weights[e][i]); };
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      if constexpr (kRows < 8) {
        // Both digits of both rows; then one digit of both tokens of both rows.
        const uint32_t mine = __byte_perm(word(0, m), word(1, m), 0x6521);
        const uint32_t other = __shfl_xor_sync(~0u, mine, 2);
        digits[0][0][m] = transpose(__byte_perm(mine, other, t_ < 2 ? 0x7351 : 0x2604));
      } else {
        const uint32_t first = __byte_perm(word(0, m), word(0, m + 4), 0x6521);
        const uint32_t second = __byte_perm(word(1, m), word(1, m + 4), 0x6521);
        digits[n][0][m] = transpose(__byte_perm(first, second, 0x7531));
        digits[n][1][m] = transpose(__byte_perm(first, second, 0x6420));
      }
    }
  }
}

// A weight of this tile is too large: larger references for the rows of column n. sums: there are
// some of earlier tiles.
template <int kDim, int kRows, bool kScores>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::raise(int n, const Scores& scores,
                                                                   const float (&scales)[kTokens],
                                                                   bool sums) {
  float shrink[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int r = 2 * n + e;
    float largest = kNoReference;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      largest = fmaxf(largest, scores[r][i] + __log2f(fmaxf(scales[i], kSmallestScale)));
    }
#pragma unroll
    for (int span = kRows < 8 ? 2 : 4; span < 32; span *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, span));
    }
    const float reference = fmaxf(references_[r], largest - kLargestWeight);
    shrink[e] = exp2_fast(references_[r] - reference);
    references_[r] = reference;
    totals_[r] *= shrink[e];
  }
  if constexpr (kCarry) {
    if (sums) flush(n, shrink);
  } else {
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) floats_[n][j][i] *= shrink[i % 2];
    }
  }
}

// The sums of column n go to shared memory.
template <int kDim, int kRows, bool kScores>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::flush(int n,
                                                                   const float (&shrink)[2]) {
  const int offset = layer_.values.bits == 4 ? kLevelOffset : 0;
#pragma unroll
  for (int j = 0; j < kDim / 16; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& all = weighted(warp_, 8 * n + column() + i % 2)[16 * j + i / 2 * 8 + g_];
      if constexpr (!kCarry) {
        all = floats_[n][j][i];
        continue;
      }
      const auto sum = [&](int plane) {
        const Quad& count = counts_[n][plane];
        return __int2float_rn(part(sums_[kCarry ? n : 0][plane][j], i) -
                              offset * (i % 2 == 0 ? count.x : count.y));
      };
      float more;
      if constexpr (kRows < 8) {
        more = sum(0);
        more = t_ < 2 ? 256 * more : more;
        more += __shfl_xor_sync(~0u, more, 2);
      } else {
        more = fmaf(256, sum(0), sum(1));
      }
      if (kRows >= 8 || t_ < 2) all = (all + more) * shrink[i % 2];
    }
  }
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    counts_[n][plane] = {};
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) sums_[kCarry ? n : 0][plane][j] = {};
  }
}

// Sums of digits: what level + 61 in the place of levels adds is 61 times these.
template <int kDim, int kRows, bool kScores>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::count(const Digits& digits) {
  const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      const uint32_t(&d)[4] = digits[n][p];
      Quad& sum = counts_[n][p];
      if constexpr (!kCarry) sum = {};
      sum = mma_int8<false, false>(ones, d[0], d[1], sum);
      sum = mma_int8<false, false>(ones, d[2], d[3], sum);
    }
  }
}

template <int kDim, int kRows, bool kScores>
template <int kBits>
__device__ __forceinline__ void Block<kDim, kRows, kScores>::value_products(
    const unsigned char* tile, const Digits& digits) {
  const LevelBytes<kBits> levels(layer_.values.words);
  constexpr bool kSigned = kBits != 4;
  if constexpr (!kSigned) count(digits);
  Quad starts[kColumns][kPlanes] = {};  // of products whose sums are floats
  if constexpr (!kSigned && !kCarry) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        const int x = -kLevelOffset * counts_[n][p].x;
        const int y = -kLevelOffset * counts_[n][p].y;
        starts[n][p] = {x, y, x, y};
      }
    }
  }
#pragma unroll
  for (int group = 0; group < kDim / 64; ++group) {
    uint32_t codes[16];
    load_digits<kBits>(tile + group * kBits * 512, lane_, codes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = 4 * group + i;
      Quad dots[kColumns][kPlanes];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t a[4];
        levels.eight(codes[4 * i + s], a[0], a[2]);
        levels.eight(codes[4 * i + 2 + s], a[1], a[3]);
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
          for (int p = 0; p < kPlanes; ++p) {
            Quad& sum = kCarry ? sums_[kCarry ? n : 0][p][j] : dots[n][p];
            sum = mma_int8<kSigned, false>(a, digits[n][p][2 * s], digits[n][p][2 * s + 1],
                                           !kCarry && s == 0 ? starts[n][p] : sum);
          }
        }
      }
      if constexpr (!kCarry) {
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            floats_[n][j][c] += __int2float_rn(part(dots[n][0], c) * 256 + part(dots[n][1], c));
          }
        }
      }
    }
  }
}

// The warps' sums become the block's.
template <int kDim, int kRows, bool kScores>
__device__ void Block<kDim, kRows, kScores>::finish() {
#pragma unroll
  for (int r = 0; r < 2 * kColumns; ++r) {
#pragma unroll
    for (int span = kRows < 8 ? 2 : 4; span < 32; span *= 2) {
      totals_[r] += __shfl_xor_sync(~0u, totals_[r], span);
    }
    if (g_ == 0 && (kRows >= 8 || t_ < 2)) {
      const uint32_t row = r / 2 * 8 + column() + r % 2;
      shared_.references[warp_][row] = references_[r];
      shared_.totals[warp_][row] = totals_[r];
    }
  }
  if constexpr (!kCarry) __syncthreads();  // no warp needs its ring any more
#pragma unroll
  for (int n = 0; n < kColumns; ++n) flush(n, {1, 1});
  __syncthreads();
  const auto largest = [&](uint32_t row) {
    float most = shared_.references[0][row];
#pragma unroll
    for (uint32_t w = 1; w < kWarps; ++w) most = fmaxf(most, shared_.references[w][row]);
    return most;
  };
  if (threadIdx.x < rows_) {
    const uint32_t row = threadIdx.x;
    const float most = largest(row);
    float total = 0;
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      total += shared_.totals[w][row] * exp2_fast(shared_.references[w][row] - most);
    }
    largest_and_total(x_)[row] = {most, total};
  }
  float4* out = reinterpret_cast<float4*>(partial(x_));
  for (uint32_t i = threadIdx.x; i < rows_ * kDim / 4; i += kThreads) {
    const uint32_t row = i / (kDim / 4);
    const float most = largest(row);
    float4 sum{};
#pragma unroll
    for (uint32_t w = 0; w < kWarps; ++w) {
      const float4 more = *reinterpret_cast<const float4*>(weighted(w, row) + i % (kDim / 4) * 4);
      const float factor = exp2_fast(shared_.references[w][row] - most) * layer_.values.unit;
      sum.x = fmaf(more.x, factor, sum.x);
      sum.y = fmaf(more.y, factor, sum.y);
      sum.z = fmaf(more.z, factor, sum.z);
      sum.w = fmaf(more.w, factor, sum.w);
    }
    out[i] = sum;
  }
}

}  // namespace
}  // namespace turboquant::cuda
