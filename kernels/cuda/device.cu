#include <map>
#include <mutex>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/device.h"

namespace turboquant::cuda {

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it is not reported again by a later call
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess) device = -1;
  throw Error("CUDA: " + std::string(call) + ": " + cudaGetErrorName(error) + " (" +
                  cudaGetErrorString(error) + ") on device " + std::to_string(device),
              error, device);
}

void allow_shared_memory(const void* kernel, int device) {
  cudaFuncAttributes attributes;
  TQ_CUDA(cudaFuncGetAttributes(&attributes, kernel));
  const size_t most = device_properties(device).shared_bytes_of_block - attributes.sharedSizeBytes;
  TQ_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(most)));
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

const DeviceProperties& device_properties(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceProperties> known;
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  cudaDeviceProp p;
  TQ_CUDA(cudaGetDeviceProperties(&p, device));
  DeviceProperties properties;
  properties.name = p.name;
  properties.multiprocessors = p.multiProcessorCount;
  properties.compute_capability = p.major * 10 + p.minor;
  properties.memory_bytes = p.totalGlobalMem;
  properties.shared_bytes_of_block = p.sharedMemPerBlockOptin;
  properties.l2_bytes = static_cast<size_t>(p.l2CacheSize);
  return known.emplace(device, properties).first->second;
}

size_t free_memory(int device) {
  const DeviceGuard guard(device);
  size_t free = 0;
  size_t total = 0;
  TQ_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

DeviceGuard::DeviceGuard(int device) {
  TQ_CUDA(cudaGetDevice(&before_));
  TQ_CUDA(cudaSetDevice(device));
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(before_); }

Stream::Stream(int device) : device_(device) {
  const DeviceGuard guard(device);
  cudaStream_t stream;
  TQ_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_ = stream;
}

Stream::~Stream() {
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device_);
  cudaStreamDestroy(static_cast<cudaStream_t>(stream_));
  cudaSetDevice(before);
}

void synchronize(StreamPointer stream) {
  TQ_CUDA(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

}  // namespace turboquant::cuda
