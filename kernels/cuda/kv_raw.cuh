// What a block of attention does with sinks and tail, which are kept in halves.
#pragma once

#include "kernels/cuda/kv_block.cuh"

namespace turboquant::cuda {
namespace {

template <int kDim, int kRows, bool kScores>
__device__ const __half* Block<kDim, kRows, kScores>::raw_row(uint32_t slot, uint32_t side) const {
  return reinterpret_cast<const __half*>(layer_.raw) +
         (((static_cast<size_t>(sequence_) * layer_.slots() + slot) * 2 + side) * layer_.kv_heads +
          head_) *
             kDim;
}

template <int kDim, int kRows, bool kScores>
__device__ void Block<kDim, kRows, kScores>::raw_part(uint32_t part, bool sound) {
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
  if (n > 0) raw_keys(begin, n);
  if constexpr (kScores) return;
  __syncthreads();
  for (int k = 0; k < kRowsOfWarp; ++k) raw_softmax(warp_ * kRowsOfWarp + k, part, n);
  __syncthreads();
  if (n > 0) raw_values(part, n);
}

template <int kDim, int kRows, bool kScores>
__device__ void Block<kDim, kRows, kScores>::raw_keys(uint32_t begin, uint32_t n) {
  if constexpr (!kScores) {  // values are needed later
    for (uint32_t i = threadIdx.x; i < n * (kDim / 64); i += kThreads) {
      prefetch(raw_row(shared_.raw_slots[i / (kDim / 64)], 1) + i % (kDim / 64) * 64);
    }
  }
#pragma unroll
  for (uint32_t more = 0; more < kRawTokens / 8 / kWarps; ++more) {
    const uint32_t tile = warp_ * (kRawTokens / 8 / kWarps) + more;
    const uint4* keys =
        reinterpret_cast<const uint4*>(raw_row(shared_.raw_slots[tile * 8 + g_], 0));
#pragma unroll
    for (uint32_t n_rows = 0; n_rows < kRows; n_rows += 8) {
      const uint32_t row = n_rows + g_ % kRows;
      float scores[2];
      half_dots<kDim>(
          shared_.halves[row], shared_.halves[kRows + row], t_,
          [&](uint32_t chunk) { return keys[chunk]; }, scores[0], scores[1]);
      if (g_ >= kRows) continue;
      const View view = view_of(row);
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const uint32_t i = tile * 8 + 2 * t_ + e;
        const uint32_t token = begin + i;
        const uint32_t position =
            token < state_.sinks ? token : state_.length - state_.tail + token - state_.sinks;
        const float score = i < n ? limited(a_, view, scores[e] * kLog2E, position) : -INFINITY;
        shared_.raw_scores[row][i] = score;
        if constexpr (kScores) {
          if (i < n && row < rows_) store_score(row, position, score);
        }
      }
    }
  }
}

template <int kDim, int kRows, bool kScores>
__device__ void Block<kDim, kRows, kScores>::raw_softmax(uint32_t r, uint32_t part, uint32_t n) {
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

template <int kDim, int kRows, bool kScores>
__device__ void Block<kDim, kRows, kScores>::raw_values(uint32_t part, uint32_t n) {
  for (uint32_t d = threadIdx.x; d < kDim; d += kThreads) {
    float sums[kRows] = {};
#pragma unroll(kRows < 16 ? 32 : 16)
    for (uint32_t i = 0; i < n; ++i) {
      const float value = __half2float(raw_row(shared_.raw_slots[i], 1)[d]);
#pragma unroll
      for (uint32_t r = 0; r < kRows; r += 4) {
        const float4 w = *reinterpret_cast<const float4*>(&shared_.raw_weights[i][r]);
        sums[r] = fmaf(w.x, value, sums[r]);
        sums[r + 1] = fmaf(w.y, value, sums[r + 1]);
        sums[r + 2] = fmaf(w.z, value, sums[r + 2]);
        sums[r + 3] = fmaf(w.w, value, sums[r + 3]);
      }
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
