// Arrays in device memory, and the same tokens in a cache of the host and one of a device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/buffer.h"
#include "kvcache/device_cache.h"
#include "tests/kvcache/kv_util.h"

#define TQ_NEEDS_DEVICE()                                                                        \
  do {                                                                                           \
    if (turboquant::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device on this machine"; \
  } while (false)

namespace turboquant::kv::test {

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values)
      : n_(values.size()), buffer_(0, std::max<std::size_t>(1, n_ * sizeof(T))) {
    cuda::copy(buffer_.get(), values.data(), n_ * sizeof(T), nullptr);
    cuda::synchronize(nullptr);
  }
  T* get() const { return buffer_.as<T>(); }
  std::vector<T> values() const {
    cuda::synchronize_device();
    std::vector<T> back(n_);
    cuda::copy(back.data(), buffer_.get(), n_ * sizeof(T), nullptr);
    cuda::synchronize(nullptr);
    return back;
  }

 private:
  std::size_t n_;
  cuda::Buffer buffer_;
};

inline DeviceOptions device_options(std::size_t sequence_tokens, std::size_t pool_tokens = 0) {
  DeviceOptions made;
  made.sequence_tokens = sequence_tokens;
  made.pool_tokens = pool_tokens;
  return made;
}

// Appends n tokens to layer 0 of a sequence of both.
inline void append_to_both(Cache& host, DeviceCache& device, std::size_t sequence, std::size_t n,
                           std::uint32_t seed) {
  const CacheOptions& o = host.options();
  const auto keys = normals(n * o.kv_heads * o.key_dim, seed);
  const auto values = normals(n * o.kv_heads * o.value_dim, seed + 1);
  host.append(0, sequence, host.length(0, sequence), n, keys.data(), values.data());
  const DeviceArray<float> on_keys(keys);
  const DeviceArray<float> on_values(values);
  device.append(0, {sequence}, n, cuda::KvElement::kFloat, on_keys.get(), on_values.get(), nullptr);
  cuda::synchronize_device();
}

// The options' arrays are of the host here.
inline Answer attend_on_device(DeviceCache& cache, const std::vector<std::size_t>& sequences,
                               const std::vector<std::size_t>& queries, const std::vector<float>& q,
                               AttentionOptions options = {}) {
  const CacheOptions& o = cache.options();
  std::size_t all = 0;
  for (const std::size_t n : queries) all += n;
  const DeviceArray<float> on_q(q);
  const DeviceArray<float> out(std::vector<float>(all * o.query_heads * o.value_dim, 7));
  const DeviceArray<float> lse(std::vector<float>(all * o.query_heads, 7));
  const DeviceArray<float> mask(
      options.mask == nullptr
          ? std::vector<float>()
          : std::vector<float>(options.mask, options.mask + all * options.mask_stride));
  const DeviceArray<float> sinks(
      options.sinks == nullptr ? std::vector<float>()
                               : std::vector<float>(options.sinks, options.sinks + o.query_heads));
  if (options.mask != nullptr) options.mask = mask.get();
  if (options.sinks != nullptr) options.sinks = sinks.get();
  DeviceAttention attention;
  attention.q = on_q.get();
  attention.out = out.get();
  attention.lse = lse.get();
  cache.attend(0, {sequences.size(), sequences.data(), queries.data()}, options, attention,
               nullptr);
  return {out.values(), lse.values()};
}

}  // namespace turboquant::kv::test
