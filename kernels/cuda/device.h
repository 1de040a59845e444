// Devices and streams. Plain C++: no CUDA header is needed.
#pragma once

#include <cstddef>
#include <string>

namespace turboquant::cuda {

/// A cudaStream_t; nullptr is the default stream. Owned by who made it.
using StreamPointer = void*;

struct DeviceProperties {
  std::string name;
  int multiprocessors;
  int compute_capability;        // 90 for 9.0
  size_t memory_bytes;           // of the device
  size_t shared_bytes_of_block;  // that a block may ask for
  size_t l2_bytes;
};

/// Number of devices; 0 where there is none, or no driver.
int device_count();
/// Throws Error when there is no such device. Asked once a device, then remembered.
const DeviceProperties& device_properties(int device);
/// Bytes of memory that nobody uses now.
size_t free_memory(int device);

/// Makes a device the thread's current one until the end of its life.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

/// A stream of its own, which does not wait for the default stream.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  StreamPointer get() const { return stream_; }

 private:
  int device_;
  StreamPointer stream_;
};

/// Waits for all work of the stream; errors of its kernels appear here.
void synchronize(StreamPointer stream);

}  // namespace turboquant::cuda
