// What a cache is made with, checked once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace turboquant::kv {

inline constexpr int kRawBits = 16;

struct SideOptions {
  int bits = 4;              ///< 1 to 4, or kRawBits: half precision, not quantized
  std::size_t outliers = 0;  ///< channels per head that get one bit more; below the head size
  bool centre = false;       ///< subtract the mean of a page before quantizing (keys alone)
};

struct LayerOptions {
  SideOptions keys;
  SideOptions values;
};

struct CacheOptions {
  std::size_t kv_heads = 0;
  std::size_t query_heads = 0;  ///< a multiple of kv_heads
  std::size_t key_dim = 0;      ///< head sizes, 1 to 1,024
  std::size_t value_dim = 0;
  std::size_t max_sequences = 1;
  std::size_t page_tokens = 64;  ///< 64 or 128
  std::size_t sink_tokens = 4;   ///< first tokens, kept raw
  std::size_t tail_tokens = 64;  ///< last tokens, kept raw; up to page_tokens more wait for a page
  std::uint64_t seed = 0;
  std::vector<LayerOptions> layers;
};

/// Throws std::invalid_argument with a sentence.
void validate(const CacheOptions& options);

}  // namespace turboquant::kv
