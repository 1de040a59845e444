// Elements of a caller's arrays.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/kv.h"

namespace turboquant::cuda {

__device__ __forceinline__ float load_element(const void* from, size_t i, KvElement element) {
  switch (element) {
    case KvElement::kHalf:
      return __half2float(static_cast<const __half*>(from)[i]);
    case KvElement::kBfloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[i]);
    default:
      return static_cast<const float*>(from)[i];
  }
}

// kCount neighbours from a multiple of kCount on; the array is aligned to 16 bytes.
template <int kCount>
__device__ __forceinline__ void load_elements(const void* from, size_t i, KvElement element,
                                              float (&x)[kCount]) {
  struct alignas(2 * kCount) Halves {
    unsigned short v[kCount];
  };
  constexpr int kAlign = kCount < 4 ? 4 * kCount : 16;
  struct alignas(kAlign) Floats {
    float v[kCount];
  };
  if (element == KvElement::kFloat) {
    const Floats loaded = *reinterpret_cast<const Floats*>(static_cast<const float*>(from) + i);
#pragma unroll
    for (int e = 0; e < kCount; ++e) x[e] = loaded.v[e];
    return;
  }
  const Halves loaded = *reinterpret_cast<const Halves*>(static_cast<const __half*>(from) + i);
  const bool half = element == KvElement::kHalf;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    x[e] = half ? __half2float(__ushort_as_half(loaded.v[e]))
                : __uint_as_float(static_cast<uint32_t>(loaded.v[e]) << 16);
  }
}

__device__ __forceinline__ void store_element(void* to, size_t i, KvElement element, float x) {
  switch (element) {
    case KvElement::kHalf:
      static_cast<__half*>(to)[i] = __float2half_rn(x);
      break;
    case KvElement::kBfloat16:
      static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(x);
      break;
    default:
      static_cast<float*>(to)[i] = x;
  }
}

}  // namespace turboquant::cuda
