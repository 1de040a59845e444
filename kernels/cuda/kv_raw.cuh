// What a block of attention does with sinks and tail, which are kept in halves.
#pragma once

#include "kernels/cuda/kv_block.cuh"

namespace turboquant::cuda {
namespace {

template <int kDim, bool kScores>
__device__ const __half* Block<kDim, kScores>::raw_row(uint32_t slot, uint32_t side) const {
  return reinterpret_cast<const __half*>(layer_.raw) +
         (((static_cast<size_t>(sequence_) * layer_.slots() + slot) * 2 + side) * layer_.kv_heads +
          head_) *
             kDim;
}

template <int kDim, bool kScores>
__device__ void Block<kDim, kScores>::raw_part(uint32_t part, bool sound) {
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

template <int kDim, bool kScores>
__device__ void Block<kDim, kScores>::raw_softmax(uint32_t r, uint32_t part, uint32_t n) {
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

template <int kDim, bool kScores>
__device__ void Block<kDim, kScores>::raw_values(uint32_t part, uint32_t n) {
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

}  // namespace
}  // namespace turboquant::cuda
