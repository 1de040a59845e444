// For CUDA sources: turns the result of a CUDA call into an exception.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/error.h"

namespace turboquant::cuda {

/// Throws Error with the call, CUDA's name for the error and the device, unless it is cudaSuccess.
void check(cudaError_t error, const char* call);

}  // namespace turboquant::cuda

#define TQ_CUDA(call) ::turboquant::cuda::check((call), #call)

/// After a kernel launch: what the launch itself got wrong.
#define TQ_CUDA_LAUNCHED(kernel) ::turboquant::cuda::check(cudaGetLastError(), "launch of " kernel)
