#include <string>

#include "kernels/cuda/buffer.h"
#include "kernels/cuda/check.cuh"

namespace turboquant::cuda {

Buffer::Buffer(int device, size_t bytes) : device_(device), bytes_(bytes) {
  if (bytes == 0) return;
  const DeviceGuard guard(device);
  const cudaError_t error = cudaMalloc(&data_, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    data_ = nullptr;
    size_t free = 0;
    size_t total = 0;
    cudaMemGetInfo(&free, &total);
    throw OutOfMemory("CUDA: cudaMalloc: " + std::to_string(bytes) + " bytes needed, " +
                          std::to_string(free) + " of " + std::to_string(total) +
                          " free on device " + std::to_string(device),
                      error, device, bytes);
  }
  check(error, "cudaMalloc");
}

Buffer::~Buffer() {
  if (data_ != nullptr) cudaFree(data_);
}

void Buffer::reserve(int device, size_t bytes) {
  if (device == device_ && bytes <= bytes_) return;
  *this = Buffer();
  *this = Buffer(device, bytes);
}

PinnedBuffer::PinnedBuffer(size_t bytes) { TQ_CUDA(cudaMallocHost(&data_, bytes)); }

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

void copy(void* to, const void* from, size_t bytes, StreamPointer stream) {
  if (bytes == 0) return;
  TQ_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)));
}

void fill(void* to, unsigned char value, size_t bytes, StreamPointer stream) {
  if (bytes == 0) return;
  TQ_CUDA(cudaMemsetAsync(to, value, bytes, static_cast<cudaStream_t>(stream)));
}

int device_of(const void* pointer) {
  cudaPointerAttributes attributes;
  TQ_CUDA(cudaPointerGetAttributes(&attributes, pointer));
  const bool on_device =
      attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return on_device ? attributes.device : -1;
}

}  // namespace turboquant::cuda
