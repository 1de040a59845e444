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
