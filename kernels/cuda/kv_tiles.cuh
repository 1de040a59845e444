// What a warp of attention does with its tiles: scores of keys, weights, sums of values.
#pragma once

#include "kernels/cuda/kv_block.cuh"

namespace turboquant::cuda {
namespace {

template <int kDim, bool kScores>
__device__ void Block<kDim, kScores>::loop() {
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
template <int kDim, bool kScores>
template <int kBits>
__device__ __forceinline__ void Block<kDim, kScores>::key_products(
    const unsigned char* tile, const uint32_t (&operands)[kDim / 32][2], float step, int bias,
    float (&scores)[16]) const {
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

template <int kDim, bool kScores>
__device__ __forceinline__ void Block<kDim, kScores>::limit_tile(uint32_t span,
                                                                 float (&scores)[16]) const {
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

template <int kDim, bool kScores>
__device__ void Block<kDim, kScores>::store_scores(uint32_t span, const float (&scores)[16]) const {
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
template <int kDim, bool kScores>
__device__ __forceinline__ float Block<kDim, kScores>::weigh(const unsigned char* tile,
                                                             float (&scores)[16],
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

template <int kDim, bool kScores>
template <int kBits>
__device__ __forceinline__ void Block<kDim, kScores>::value_products(const unsigned char* tile,
                                                                     const uint32_t (&digits)[2][4],
                                                                     float factor) {
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

}  // namespace
}  // namespace turboquant::cuda
