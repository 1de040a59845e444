// Decoding steps captured into a CUDA graph.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "tests/kvcache/cuda/device_util.h"

namespace turboquant::kv::test {
namespace {

#define EXPECT_CUDA(call) ASSERT_EQ(call, cudaSuccess)

TEST(DeviceGraph, ReplaysAppendAndAttendAsCallsDo) {
  TQ_NEEDS_DEVICE();
  CacheOptions o = options(2, 4, 128, 128, 4, 3);
  o.sink_tokens = 4;
  o.tail_tokens = 16;
  Cache host(o);
  DeviceCache device(o, device_options(1024));
  for (const std::size_t sequence : {0, 1}) {
    ASSERT_EQ(host.create_sequence(), device.create_sequence());
    append_to_both(host, device, sequence, 90 + 100 * sequence,
                   static_cast<std::uint32_t>(10 + sequence));
    device.reserve(sequence, 300);
  }
  const auto width = static_cast<std::size_t>(2 * 128);
  const DeviceArray<float> keys(std::vector<float>(2 * width));
  const DeviceArray<float> values(std::vector<float>(2 * width));
  const DeviceArray<float> q(std::vector<float>(2 * 4 * width));
  const DeviceArray<float> out(std::vector<float>(2 * 4 * width));
  const std::vector<std::size_t> sequences{0, 1}, queries{1, 1};
  DeviceAttention attention;
  attention.q = q.get();
  attention.out = out.get();
  cudaStream_t stream;
  EXPECT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  EXPECT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  device.append(0, sequences, 1, cuda::KvElement::kFloat, keys.get(), values.get(), stream);
  device.attend(0, {2, sequences.data(), queries.data()}, {}, attention, stream);
  EXPECT_CUDA(cudaStreamEndCapture(stream, &graph));
  EXPECT_CUDA(cudaGraphInstantiate(&ready, graph, 0));
  for (std::uint32_t step = 0; step < 200; ++step) {
    const auto k = normals(2 * width, 1000 + step);
    const auto v = normals(2 * width, 2000 + step);
    const auto asked = normals(8 * width, 3000 + step);
    cuda::copy(keys.get(), k.data(), k.size() * 4, stream);
    cuda::copy(values.get(), v.data(), v.size() * 4, stream);
    cuda::copy(q.get(), asked.data(), asked.size() * 4, stream);
    EXPECT_CUDA(cudaGraphLaunch(ready, stream));
    for (const std::size_t sequence : {0, 1}) {
      host.append(0, sequence, host.length(0, sequence), 1, k.data() + sequence * width,
                  v.data() + sequence * width);
    }
    if (step % 20 != 0) {
      EXPECT_CUDA(cudaStreamSynchronize(stream));
      continue;
    }
    const std::vector<float> got = out.values();
    for (const std::size_t sequence : {0, 1}) {
      const std::vector<float> mine(
          asked.begin() + static_cast<std::ptrdiff_t>(sequence * 4 * width),
          asked.begin() + static_cast<std::ptrdiff_t>((sequence + 1) * 4 * width));
      const Answer wanted = attend(host, sequence, 1, mine);
      for (std::size_t i = 0; i < 4 * width; ++i) {
        ASSERT_NEAR(got[sequence * 4 * width + i], wanted.out[i], 5e-3) << step << ", " << i;
      }
    }
  }
  device.refresh();
  for (const std::size_t sequence : {0, 1}) {
    EXPECT_EQ(device.length(0, sequence), host.length(0, sequence));
    EXPECT_EQ(device.serialize(sequence), host.serialize(sequence));
  }
  // 100 tokens more were reserved for; what goes past them is dropped, and said.
  for (int step = 0; step < 300; ++step) EXPECT_CUDA(cudaGraphLaunch(ready, stream));
  EXPECT_THROW(device.refresh(), NoMemory);
  EXPECT_NO_THROW(device.refresh());
  EXPECT_GE(device.length(0, 0), host.length(0, 0) + 100);
  EXPECT_CUDA(cudaGraphExecDestroy(ready));
  EXPECT_CUDA(cudaGraphDestroy(graph));
  EXPECT_CUDA(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace turboquant::kv::test
