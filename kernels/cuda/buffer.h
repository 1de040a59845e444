// Owned memory of a device, and copies. Plain C++: no CUDA header is needed.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/cuda/device.h"

namespace turboquant::cuda {

/// Uninitialized bytes on one device, aligned to 256.
class Buffer {
 public:
  Buffer() = default;
  /// Throws OutOfMemory, and leaves the device as it was, when there is not enough.
  Buffer(int device, size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    swap(taken);
    return *this;
  }

  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
  }

  size_t bytes() const { return bytes_; }
  int device() const { return device_; }
  void* get() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

  /// Makes it at least so large; what it held is lost when it grows. The old memory is freed first,
  /// after the device has finished with it; after OutOfMemory it is empty.
  void reserve(int device, size_t bytes);

 private:
  int device_ = 0;
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

/// Memory of the host that copies reach without a detour.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

/// Copies bytes in stream order; each pointer may be of the host or of the current device. Pageable
/// host memory makes the call wait for the copy of it.
void copy(void* to, const void* from, size_t bytes, StreamPointer stream);
void fill(void* to, unsigned char value, size_t bytes, StreamPointer stream);

/// The device a pointer's memory is on; -1 for memory of the host.
int device_of(const void* pointer);

}  // namespace turboquant::cuda
