// What the CUDA side throws. Plain C++: no CUDA header is needed.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace turboquant::cuda {

/// A CUDA call that failed. what() names the call, the error and the device.
class Error : public std::runtime_error {
 public:
  Error(const std::string& what, int code, int device)
      : std::runtime_error(what), code_(code), device_(device) {}

  /// cudaError_t of the call.
  int code() const { return code_; }
  /// The device that was current; -1 when not even that could be asked.
  int device() const { return device_; }

 private:
  int code_;
  int device_;
};

/// The device has not enough memory. The device is as before the call.
class OutOfMemory : public Error {
 public:
  OutOfMemory(const std::string& what, int code, int device, size_t bytes)
      : Error(what, code, device), bytes_(bytes) {}

  /// What was asked for.
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
};

}  // namespace turboquant::cuda
