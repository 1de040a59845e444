// Attention of DeviceCache: what a batch becomes on its way to kernels.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kvcache/device_cache.h"

namespace turboquant::kv {
namespace {

using cuda::kKvBatch;
using cuda::StreamPointer;

constexpr std::size_t kChunkQueries = 512;  // of one launch, which bounds the workspace

void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

}  // namespace

void DeviceCache::run(std::size_t layer, const cuda::KvAttend& attend, StreamPointer stream) {
  cuda::KvAttend ready = attend;
  if (ready.scores == nullptr) {
    const std::size_t bytes = cuda::kv_workspace_bytes(layers_[layer].view, ready, device_.device);
    if (bytes > workspace_.bytes()) {
      require(!cuda::capturing(stream),
              "so many queries need more memory than decoding; attend once before capturing");
      cuda::synchronize_device();
      workspace_ = device_buffer(device_.device, bytes);
    }
    ready.workspace = workspace_.as<float>();
  }
  cuda::kv_attend(layers_[layer].view, ready, device_.device, stream);
}

void DeviceCache::attend(std::size_t layer, const AttentionBatch& batch,
                         const AttentionOptions& options, const DeviceAttention& attention,
                         StreamPointer stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  require(std::isfinite(options.scale) && std::isfinite(options.softcap) && options.softcap >= 0,
          "the scale must be finite and the softcap finite and not negative");
  require(reinterpret_cast<std::uintptr_t>(attention.q) % 16 == 0, "q is not aligned to 16 bytes");
  const bool captured = cuda::capturing(stream);
  const CacheOptions& o = host_.options();
  std::size_t longest = 0;
  for (std::size_t b = 0; b < batch.n; ++b) {
    const std::size_t length = shadow(layer, batch.sequences[b]).state.length;
    longest = std::max(longest, length);
    require(batch.queries[b] >= 1, "a sequence must ask at least one query");
    if (captured) continue;
    require(batch.queries[b] <= length, "sequence " + std::to_string(batch.sequences[b]) + " has " +
                                            std::to_string(length) + " tokens, and " +
                                            std::to_string(batch.queries[b]) + " of them ask");
    require(options.mask == nullptr || options.mask_stride >= length,
            "the mask has fewer columns than sequence " + std::to_string(batch.sequences[b]) +
                " has tokens");
    require(attention.scores == nullptr || attention.score_stride >= length,
            "there is less room for scores than sequence " + std::to_string(batch.sequences[b]) +
                " has tokens");
  }
  cuda::KvAttend a;
  a.element = attention.element;
  a.sinks = options.sinks;
  a.mask_stride = static_cast<std::uint32_t>(options.mask_stride);
  a.score_stride = static_cast<std::uint32_t>(attention.score_stride);
  a.scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<float>(o.key_dim));
  a.softcap = options.softcap;
  a.window = static_cast<std::uint32_t>(std::min<std::size_t>(options.window, UINT32_MAX));
  a.causal = options.causal;
  a.most_tokens = static_cast<std::uint32_t>(captured ? device_.sequence_tokens : longest);
  const std::size_t width =
      o.query_heads * o.key_dim * (a.element == cuda::KvElement::kFloat ? 4 : 2);
  std::size_t query = 0;  // before those of the launch
  const auto launch = [&](std::size_t b, std::size_t n, std::size_t skipped, std::size_t queries) {
    a.sequences = static_cast<std::uint32_t>(n);
    for (std::size_t i = 0; i < n; ++i) {
      a.sequence[i] = static_cast<std::uint32_t>(batch.sequences[b + i]);
    }
    a.queries = static_cast<std::uint32_t>(queries);
    a.after = static_cast<std::uint32_t>(batch.queries[b] - skipped - queries);
    a.q = static_cast<const std::uint8_t*>(attention.q) + query * width;
    a.out = static_cast<std::uint8_t*>(attention.out) + query * width;
    if (attention.lse != nullptr) a.lse = attention.lse + query * o.query_heads;
    if (options.mask != nullptr) a.mask = options.mask + query * options.mask_stride;
    if (attention.scores != nullptr) {
      a.scores = attention.scores + query * o.query_heads * attention.score_stride;
    }
    run(layer, a, stream);
    query += n * queries;
  };
  // Sequences with equally many queries share a launch, and many queries of one are cut.
  for (std::size_t b = 0; b < batch.n;) {
    const std::size_t queries = batch.queries[b];
    if (queries > kChunkQueries) {
      for (std::size_t skipped = 0; skipped < queries; skipped += kChunkQueries) {
        launch(b, 1, skipped, std::min(kChunkQueries, queries - skipped));
      }
      ++b;
      continue;
    }
    std::size_t n = 1;
    const std::size_t most =
        std::max<std::size_t>(1, std::min<std::size_t>(kKvBatch, kChunkQueries / queries));
    while (b + n < batch.n && n < most && batch.queries[b + n] == queries) ++n;
    launch(b, n, 0, queries);
    b += n;
  }
}

}  // namespace turboquant::kv
