// Partial results of blocks to the answers of query rows.
#pragma once

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/kv_query.cuh"

namespace turboquant::cuda {
namespace {

// One block a query row: partial results to the answer. kShares threads a channel share the parts.
template <int kDim, uint32_t kShares>
__global__ void __launch_bounds__(kDim* kShares)
    combine_kernel(const __grid_constant__ KvLayer layer, const __grid_constant__ KvAttend a,
                   const __grid_constant__ Shape shape) {
  extern __shared__ float weights[];  // [parts]
  __shared__ float sums[2][kShares][kDim];
  __shared__ float reduced[2][32];
  const uint32_t row = blockIdx.x;  // of the kv head
  const uint32_t z = blockIdx.z;
  const uint32_t parts = shape.parts();
  const size_t first = partial_row(layer, shape, blockIdx.y, 0) + row;
  const uint32_t head = blockIdx.y * layer.group + row % layer.group;
  const float2* pairs = partial_pairs(layer, a, shape) + first;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  constexpr uint32_t kWarpsHere = kDim * kShares / 32;
  const float sink = a.sinks != nullptr ? a.sinks[head] * kLog2E : -INFINITY;
  constexpr int kEach = kDim / 32;
  float factors[2][kEach];
  load_factors<kDim>(layer, lane, factors);
  let_next_start();
  wait_for_preceding();

  // Partial sums are on their way while their weights are made. Those of weight 0 were never
  // written.
  constexpr uint32_t kAhead = 8;
  const uint32_t d = threadIdx.x % kDim;
  const uint32_t share = threadIdx.x / kDim;
  const float* from = a.workspace + first * kDim + d;
  const auto part = [&](uint32_t p) {
    return from[static_cast<size_t>(p) * shape.head_rows * kDim];
  };
  float ahead[kAhead];
#pragma unroll
  for (uint32_t i = 0; i < kAhead; ++i) {
    const uint32_t p = share + i * kShares;
    ahead[i] = p < parts ? part(p) : 0;
  }

  float largest = sink;
  for (uint32_t p = threadIdx.x; p < parts; p += blockDim.x) {
    const float2 pair = pairs[static_cast<size_t>(p) * shape.head_rows];
    if (pair.y > 0) largest = fmaxf(largest, pair.x);
  }
  for (int span = 1; span < 32; span *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, span));
  }
  if (lane == 0) reduced[0][warp] = largest;
  __syncthreads();
  for (uint32_t w = 0; w < kWarpsHere; ++w) largest = fmaxf(largest, reduced[0][w]);
  float total = 0;
  for (uint32_t p = threadIdx.x; p < parts; p += blockDim.x) {
    const float2 pair = pairs[static_cast<size_t>(p) * shape.head_rows];
    const float weight = pair.y > 0 ? exp2_fast(pair.x - largest) : 0;
    weights[p] = weight;
    total += weight * pair.y;
  }
  for (int span = 1; span < 32; span *= 2) total += __shfl_xor_sync(~0u, total, span);
  if (lane == 0) reduced[1][warp] = total;
  __syncthreads();
  total = sink == -INFINITY ? 0 : exp2_fast(sink - largest);
  for (uint32_t w = 0; w < kWarpsHere; ++w) total += reduced[1][w];

  float coded = 0;
  float raw = 0;
  const auto add = [&](uint32_t p, float value) {
    const float weight = weights[p];
    value = weight > 0 ? value : 0;
    if (p < shape.splits) {
      coded = fmaf(weight, value, coded);
    } else {
      raw = fmaf(weight, value, raw);
    }
  };
#pragma unroll
  for (uint32_t i = 0; i < kAhead; ++i) {
    const uint32_t p = share + i * kShares;
    if (p < parts) add(p, ahead[i]);
  }
#pragma unroll 8
  for (uint32_t p = share + kAhead * kShares; p < parts; p += kShares) add(p, part(p));
  sums[0][share][d] = coded;
  sums[1][share][d] = raw;
  __syncthreads();
  if (warp != 0) return;
  float rotated[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    rotated[e] = 0;
    for (uint32_t s = 0; s < kShares; ++s) rotated[e] += sums[0][s][lane * kEach + e];
  }
#pragma unroll
  for (int round = 1; round >= 0; --round) {
    fwht_warp<kEach>(rotated, lane);
#pragma unroll
    for (int e = 0; e < kEach; ++e) rotated[e] *= factors[round][e];
  }
  const float inverse = total > 0 ? 1 / total : 0;
  const size_t at =
      (static_cast<size_t>(z) * a.queries + row / layer.group) * (layer.kv_heads * layer.group) +
      head;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    float sum = rotated[e];
    for (uint32_t s = 0; s < kShares; ++s) sum += sums[1][s][lane * kEach + e];
    store_element(a.out, at * kDim + lane * kEach + e, a.element, sum * inverse);
  }
  if (lane == 0 && a.lse != nullptr) {
    a.lse[at] = total > 0 ? (largest + log2f(total)) / kLog2E : -INFINITY;
  }
}

}  // namespace
}  // namespace turboquant::cuda
