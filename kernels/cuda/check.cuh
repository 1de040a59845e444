// For CUDA sources: turns the result of a CUDA call into an exception.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/error.h"

namespace turboquant::cuda {

/// Throws Error with the call, CUDA's name for the error and the device, unless it is cudaSuccess.
void check(cudaError_t error, const char* call);

/// Lets a kernel use all the shared memory of a block that the device has. Always all: the attribute
/// belongs to the kernel, not to a launch, and callers of different needs share it.
void allow_shared_memory(const void* kernel, int device);

}  // namespace turboquant::cuda

#define TQ_CUDA(call) ::turboquant::cuda::check((call), #call)

/// After a kernel launch: what the launch itself got wrong.
#define TQ_CUDA_LAUNCHED(kernel) ::turboquant::cuda::check(cudaGetLastError(), "launch of " kernel)
