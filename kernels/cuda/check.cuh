// For CUDA sources: turns the result of a CUDA call into an exception.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/error.h"

namespace turboquant::cuda {

/// Throws Error with the call, CUDA's name for the error and the device, unless it is cudaSuccess.
void check(cudaError_t error, const char* call);

/// Lets a kernel use all the shared memory of a block that the device has. Always all: the
/// attribute belongs to the kernel, not to a launch, and callers of different needs share it.
void allow_shared_memory(const void* kernel, int device);

/// Launches a kernel. overlapping: its blocks may be there before the kernel that precedes it in
/// the stream has ended; it must call wait_for_preceding before it reads what that one writes.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const char* name, dim3 blocks, unsigned threads,
            size_t shared, cudaStream_t stream, bool overlapping, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = overlapping ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

#ifdef __CUDACC__
/// Blocks of the next kernel may come as soon as there is room for them.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Until the preceding kernel has ended and what it wrote is there.
__device__ __forceinline__ void wait_for_preceding() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

}  // namespace turboquant::cuda

#define TQ_CUDA(call) ::turboquant::cuda::check((call), #call)

/// After a kernel launch: what the launch itself got wrong.
#define TQ_CUDA_LAUNCHED(kernel) ::turboquant::cuda::check(cudaGetLastError(), "launch of " kernel)
