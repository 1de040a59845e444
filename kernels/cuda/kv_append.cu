// Append: the same pages as kvcache/page.cpp makes, bit for bit, so float operations have its order
// (and are not fused: see the flags of this library).
#include <algorithm>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/kv.h"
#include "kernels/cuda/kv_element.cuh"
#include "kernels/cuda/kv_mma.cuh"

namespace turboquant::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kEncodeWarps = kThreads / 32;

// What an append of n tokens does to a state.
struct Plan {
  uint32_t sinks;  // tokens that become sinks
  uint32_t tail;   // tokens of the tail before pages are released, old ones first
  uint32_t pages;
  bool fits;
};

__device__ Plan plan_of(const KvLayer& layer, const KvState& state, uint32_t n) {
  Plan plan;
  plan.sinks = state.length < layer.sink_tokens ? min(n, layer.sink_tokens - state.sinks) : 0;
  plan.tail = state.tail + n - plan.sinks;
  plan.pages = plan.tail >= layer.ring() ? (plan.tail - layer.tail_tokens) / layer.page_tokens : 0;
  plan.fits = state.tiles + plan.pages * (layer.page_tokens / kTileTokens) <= state.reserved;
  return plan;
}

__device__ __forceinline__ __half to_half(float x) {
  return __float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f));
}

__device__ __forceinline__ size_t raw_offset(const KvLayer& layer, uint32_t sequence, uint32_t slot,
                                             uint32_t side, uint32_t head) {
  return (((static_cast<size_t>(sequence) * layer.slots() + slot) * 2 + side) * layer.kv_heads +
          head) *
         layer.format.dim;
}

__device__ __forceinline__ uint32_t tail_slot(const KvLayer& layer, const KvState& state,
                                              uint32_t i) {
  return layer.sink_tokens + (state.head + i) % layer.ring();
}

// One block makes one side of one head of a page.
template <int kDim>
class Encoder {
 public:
  static constexpr int kEach = kDim / 32;
  static constexpr int kStride = kDim + 4;

  __device__ Encoder(const KvLayer& layer, const KvAppend& append, unsigned char* memory)
      : layer_(layer),
        append_(append),
        rows_(reinterpret_cast<float*>(memory)),
        codes_(memory + layer.page_tokens * kStride * sizeof(float)),
        head_(blockIdx.y / 2),
        keys_(blockIdx.y % 2 == 0),
        side_(keys_ ? layer.keys : layer.values),
        sequence_(append.sequence[blockIdx.z]),
        state_(layer.states[sequence_]),
        plan_(plan_of(layer, state_, append.tokens)),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    if (blockIdx.x >= plan_.pages || !plan_.fits) return;
    float factors[2][kEach];
#pragma unroll
    for (int round = 0; round < 2; ++round) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        factors[round][e] = layer_.factors[round * kDim + lane_ * kEach + e];
      }
    }
    for (uint32_t t = warp_; t < layer_.page_tokens; t += kEncodeWarps) rotate(t, factors);
    __syncthreads();
    if (keys_) centre();
    for (uint32_t tile = 0; tile < layer_.page_tokens / kTileTokens; ++tile) {
      __syncthreads();
      for (uint32_t t = threadIdx.x / 16; t < kTileTokens; t += kThreads / 16) encode(tile, t);
      __syncthreads();
      pack(tile);
    }
  }

 private:
  __device__ unsigned char* tile_memory(uint32_t tile) const {
    const uint32_t i = state_.tiles + blockIdx.x * (layer_.page_tokens / kTileTokens) + tile;
    const uint32_t number = layer_.table[static_cast<size_t>(sequence_) * layer_.table_stride + i];
    return layer_.pool +
           (static_cast<size_t>(number) * layer_.kv_heads + head_) * layer_.format.bytes();
  }

  __device__ void rotate(uint32_t t, const float (&factors)[2][kEach]) {
    const uint32_t i = blockIdx.x * layer_.page_tokens + t;
    float y[kEach];
    if (i < state_.tail) {
      const __half* from =
          reinterpret_cast<const __half*>(layer_.raw) +
          raw_offset(layer_, sequence_, tail_slot(layer_, state_, i), keys_ ? 0 : 1, head_);
#pragma unroll
      for (int e = 0; e < kEach; ++e) y[e] = __half2float(from[lane_ * kEach + e]);
    } else {
      const uint32_t token = plan_.sinks + i - state_.tail;
      const size_t from =
          ((static_cast<size_t>(blockIdx.z) * append_.tokens + token) * layer_.kv_heads + head_) *
          kDim;
      const void* array = keys_ ? append_.keys : append_.values;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        y[e] =
            __half2float(to_half(load_element(array, from + lane_ * kEach + e, append_.element)));
      }
    }
    rotate_warp<kEach>(y, factors, lane_);
#pragma unroll
    for (int e = 0; e < kEach; ++e) rows_[t * kStride + lane_ * kEach + e] = y[e];
  }

  __device__ void centre() {
    const float share = 1.0f / static_cast<float>(layer_.page_tokens);
    for (uint32_t d = threadIdx.x; d < kDim; d += kThreads) {
      __half stored = __ushort_as_half(0);
      if (layer_.centre) {
        float mean = 0;
        for (uint32_t t = 0; t < layer_.page_tokens; ++t) mean += rows_[t * kStride + d] * share;
        stored = to_half(mean);
        mean = __half2float(stored);
        for (uint32_t t = 0; t < layer_.page_tokens; ++t) rows_[t * kStride + d] -= mean;
      }
      for (uint32_t tile = 0; tile < layer_.page_tokens / kTileTokens; ++tile) {
        reinterpret_cast<__half*>(tile_memory(tile) + layer_.format.mean())[d] = stored;
      }
    }
  }

  // Half a warp encodes a token: lane l has coordinates l, l + 16, ... Every lane stays, since they
  // exchange values.
  __device__ void encode(uint32_t tile, uint32_t t) {
    constexpr int kMine = kDim / 16;
    const uint32_t l = threadIdx.x % 16;
    const float* row = rows_ + (tile * kTileTokens + t) * kStride;
    double squares_of_norm = 0;
    for (uint32_t i = l % 8; i < kDim; i += 8) {
      squares_of_norm += static_cast<double>(row[i]) * row[i];
    }
#pragma unroll
    for (int span = 4; span > 0; span /= 2) {
      squares_of_norm += __shfl_xor_sync(~0u, squares_of_norm, span);
    }
    const double norm = sqrt(squares_of_norm);
    const double sqrt_d = sqrt(static_cast<double>(kDim));
    const double factor = norm > 0 ? sqrt_d / norm : 0;
    float y[kMine];
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      y[k] = static_cast<float>(static_cast<double>(row[l + 16 * k]) * factor);
    }
    const int half = 1 << (side_.bits - 1);
    const float lowest = side_.levels[half];
    double best_product = 0;
    double best_squares = 1;
    uint32_t best[kMine / 4];
    for (int s = 0; s < kKvStretches; ++s) {
      float sum = 0;
      int level_squares = 0;
      uint32_t codes[kMine / 4] = {};
#pragma unroll
      for (int k = 0; k < kMine; ++k) {
        const float magnitude = fabsf(y[k]);
        int above = 0;
        float level = lowest;
#pragma unroll
        for (int i = 0; i < 7; ++i) {
          if (side_.thresholds[s][i] <= magnitude) {
            ++above;
            level = side_.levels[half + above];
          }
        }
        const int code = y[k] >= 0 ? half + above : half - 1 - above;
        codes[k / 4] |= static_cast<uint32_t>(code) << (k % 4 * 8);
        sum += magnitude * level;
        level_squares += static_cast<int>(level) * static_cast<int>(level);
      }
#pragma unroll
      for (int span = 8; span > 0; span /= 2) {
        sum += __shfl_xor_sync(~0u, sum, span);
        level_squares += __shfl_xor_sync(~0u, level_squares, span);
      }
      const double p = sum;
      const double q = level_squares;
      if (s > 0 && p * p * best_squares <= best_product * best_product * q) continue;
      best_product = p;
      best_squares = q;
#pragma unroll
      for (int i = 0; i < kMine / 4; ++i) best[i] = codes[i];
    }
#pragma unroll
    for (int k = 0; k < kMine; ++k) {
      codes_[t * kStride + l + 16 * k] = static_cast<unsigned char>(best[k / 4] >> (k % 4 * 8));
    }
    if (l != 0) return;
    const double scale =
        side_.bits == 4 ? norm / sqrt_d * best_product / best_squares : norm / sqrt(best_squares);
    const uint32_t at = keys_ ? layer_.format.key_scales() : layer_.format.value_scales();
    reinterpret_cast<__half*>(tile_memory(tile) + at)[t] =
        to_half(static_cast<float>(scale / side_.unit_exactly));
  }

  __device__ void pack(uint32_t tile) {
    unsigned char* to = tile_memory(tile) + (keys_ ? 0 : layer_.format.values());
    for (uint32_t i = threadIdx.x; i < kDim / 16 * 32; i += kThreads) {
      const uint32_t unit = i / 32;
      const uint32_t lane = i % 32;
      uint32_t words[4];
      kv_pack_unit(keys_, kDim, side_.bits, unit, lane, codes_, kStride, 1, words);
      for (uint32_t w = 0; w < side_.bits; ++w) {
        *reinterpret_cast<uint32_t*>(to + kv_word_offset(side_.bits, unit, lane, w)) = words[w];
      }
    }
  }

  const KvLayer& layer_;
  const KvAppend& append_;
  float* const rows_;           // [page tokens][kStride]
  unsigned char* const codes_;  // [64][kStride]
  const uint32_t head_;
  const bool keys_;
  const KvSide& side_;
  const uint32_t sequence_;
  const KvState state_;
  const Plan plan_;
  const uint32_t warp_, lane_;
};

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    encode_kernel(const __grid_constant__ KvLayer layer, const __grid_constant__ KvAppend append) {
  extern __shared__ __align__(16) unsigned char memory[];
  Encoder<kDim>(layer, append, memory).run();
}

__device__ void update(const KvLayer& layer, uint32_t sequence, const KvState& before,
                       const Plan& plan, uint32_t n) {
  KvState& state = layer.states[sequence];
  if (!plan.fits) {
    state.refused = before.refused + n;
    return;
  }
  const uint32_t released = plan.pages * layer.page_tokens;
  const uint32_t tiles = released / kTileTokens;
  uint32_t position = before.length - before.tail + plan.sinks;
  for (uint32_t i = 0; i < tiles; ++i, position += kTileTokens) {
    layer.spans[static_cast<size_t>(sequence) * layer.table_stride + before.tiles + i] =
        position * 128 + kTileTokens;
  }
  state.length = before.length + n;
  state.sinks = before.sinks + plan.sinks;
  state.tiles = before.tiles + tiles;
  state.tail = plan.tail - released;
  state.head = (before.head + released) % layer.ring();
}

// Sinks and what stays in the tail. A block a token; the only block of a sequence updates its
// state.
__global__ void write_kernel(const __grid_constant__ KvLayer layer,
                             const __grid_constant__ KvAppend append) {
  const uint32_t sequence = append.sequence[blockIdx.y];
  const KvState state = layer.states[sequence];
  const uint32_t n = append.tokens;
  const Plan plan = plan_of(layer, state, n);
  // The first tokens and the last ones: others can only be in pages.
  const uint32_t token = blockIdx.x < layer.sink_tokens ? blockIdx.x : n - (gridDim.x - blockIdx.x);
  uint32_t slot = ~0u;
  if (plan.fits && token < plan.sinks) slot = state.sinks + token;
  if (plan.fits && token >= plan.sinks) {
    const uint32_t i = state.tail + token - plan.sinks;
    if (i >= plan.pages * layer.page_tokens) slot = tail_slot(layer, state, i);
  }
  if (slot != ~0u) {
    const uint32_t width = layer.kv_heads * layer.format.dim;
    const size_t from = (static_cast<size_t>(blockIdx.y) * n + token) * width;
    __half* raw = reinterpret_cast<__half*>(layer.raw);
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
      raw[raw_offset(layer, sequence, slot, 0, 0) + i] =
          to_half(load_element(append.keys, from + i, append.element));
      raw[raw_offset(layer, sequence, slot, 1, 0) + i] =
          to_half(load_element(append.values, from + i, append.element));
    }
  }
  if (gridDim.x > 1) return;
  __syncthreads();
  if (threadIdx.x == 0) update(layer, sequence, state, plan, n);
}

__global__ void update_kernel(const __grid_constant__ KvLayer layer,
                              const __grid_constant__ KvAppend append) {
  if (threadIdx.x >= append.sequences) return;
  const uint32_t sequence = append.sequence[threadIdx.x];
  const KvState state = layer.states[sequence];
  update(layer, sequence, state, plan_of(layer, state, append.tokens), append.tokens);
}

template <int kDim>
void launch_encode(const KvLayer& layer, const KvAppend& append, uint32_t pages,
                   cudaStream_t stream) {
  const uint32_t stride = static_cast<uint32_t>(Encoder<kDim>::kStride);
  const uint32_t bytes = layer.page_tokens * stride * 4 + kTileTokens * stride;
  TQ_CUDA(cudaFuncSetAttribute(encode_kernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
  const dim3 grid(pages, 2 * layer.kv_heads, append.sequences);
  encode_kernel<kDim><<<grid, kThreads, bytes, stream>>>(layer, append);
  TQ_CUDA_LAUNCHED("encode");
}

}  // namespace

void kv_append(const KvLayer& layer, const KvAppend& append, StreamPointer stream) {
  if (append.tokens == 0 || append.sequences == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  const uint32_t pages = (append.tokens + layer.page_tokens - 1) / layer.page_tokens;
  switch (layer.format.dim) {
    case 64:
      launch_encode<64>(layer, append, pages, on);
      break;
    case 128:
      launch_encode<128>(layer, append, pages, on);
      break;
    default:
      launch_encode<256>(layer, append, pages, on);
  }
  const uint32_t tokens = std::min(append.tokens, layer.slots());
  write_kernel<<<dim3(tokens, append.sequences), kThreads, 0, on>>>(layer, append);
  TQ_CUDA_LAUNCHED("write");
  if (tokens == 1) return;
  update_kernel<<<1, kKvBatch, 0, on>>>(layer, append);
  TQ_CUDA_LAUNCHED("update");
}

}  // namespace turboquant::cuda
