#include "kernels/cuda/device.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/buffer.h"
#include "kernels/cuda/error.h"
#include "tests/kernels/cuda/device.h"

namespace turboquant::cuda {
namespace {

TEST(Device, WithoutOneEveryCallSaysSo) {
  if (device_count() > 0) GTEST_SKIP() << "there is a CUDA device on this machine";
  try {
    device_properties(0);
    FAIL() << "properties of no device";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("cudaGetDeviceProperties"), std::string::npos);
    EXPECT_NE(error.code(), 0);
  }
  EXPECT_THROW(DeviceGuard{0}, Error);
  EXPECT_THROW(Buffer(0, 16), Error);
  EXPECT_THROW(Stream{0}, Error);
}

TEST(Device, AnEmptyBufferNeedsNone) {
  Buffer buffer(0, 0);
  Buffer moved(std::move(buffer));
  EXPECT_EQ(moved.bytes(), 0U);
  EXPECT_EQ(moved.get(), nullptr);
}

TEST(Device, BytesComeBackAsTheyWent) {
  TQ_NEEDS_DEVICE();
  const Stream stream(0);
  std::vector<uint8_t> bytes(100003);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 31 % 251);
  const Buffer buffer(0, bytes.size());
  std::vector<uint8_t> back(bytes.size());
  copy(buffer.get(), bytes.data(), bytes.size(), stream.get());
  copy(back.data(), buffer.get(), bytes.size(), stream.get());
  synchronize(stream.get());
  EXPECT_EQ(back, bytes);
  EXPECT_EQ(device_of(buffer.get()), 0);
  EXPECT_EQ(device_of(bytes.data()), -1);
}

TEST(Device, NotEnoughMemoryNamesTheBytesAndChangesNothing) {
  TQ_NEEDS_DEVICE();
  const size_t before = free_memory(0);
  const size_t bytes = device_properties(0).memory_bytes * 2;
  try {
    const Buffer buffer(0, bytes);
    FAIL() << "more memory than there is";
  } catch (const OutOfMemory& error) {
    EXPECT_EQ(error.bytes(), bytes);
    EXPECT_NE(std::string(error.what()).find(std::to_string(bytes)), std::string::npos);
  }
  EXPECT_EQ(free_memory(0), before);
  EXPECT_NO_THROW(Buffer(0, 1024));
}

TEST(Device, AnUnknownDeviceIsNamed) {
  TQ_NEEDS_DEVICE();
  EXPECT_THROW(DeviceGuard{device_count()}, Error);
  EXPECT_THROW(device_properties(device_count()), Error);
}

}  // namespace
}  // namespace turboquant::cuda
