// A cache of keys and values of all layers of a model, for many sequences.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "kvcache/options.h"
#include "kvcache/page.h"

namespace turboquant::kv {

/// A page as a sequence sees it: its first `tokens` ones, fewer than a page after a truncation.
struct PageRef {
  std::shared_ptr<const Page> page;
  std::size_t tokens = 0;
};

/// Tokens kept as halves; keys [n][kv_heads][key_dim], values likewise.
struct RawTokens {
  std::vector<std::uint16_t> keys;
  std::vector<std::uint16_t> values;
  std::size_t n = 0;
};

struct MemoryUse {
  std::size_t allocated = 0;  ///< bytes of pages and raw tokens as the allocator gave them
  std::size_t half = 0;       ///< what the same tokens take in half precision
};

/// One layer of a sequence, in order of position: sinks, pages, tail.
struct LayerState {
  RawTokens sinks;
  std::vector<PageRef> pages;
  RawTokens tail;
  std::size_t paged = 0;  ///< tokens in pages
  MemoryUse counted;      ///< its part of the cache's use, less the pages' bytes
  std::size_t length() const { return sinks.n + paged + tail.n; }
};

struct Sequence {
  std::vector<LayerState> layers;
};

/// Sequences may be used from different threads at once, one thread per sequence that is written
/// to. Throws std::invalid_argument or std::out_of_range with a sentence; a failed call has changed
/// nothing.
class Cache {
 public:
  explicit Cache(CacheOptions options);

  const CacheOptions& options() const { return options_; }
  const LayerFormat& format(std::size_t layer) const { return formats_[layer]; }
  const kernels::KernelTable& kernels() const { return kernels_; }
  std::size_t group() const { return options_.query_heads / options_.kv_heads; }

  std::size_t create_sequence();
  std::size_t copy_sequence(std::size_t sequence);  ///< shares the pages
  void free_sequence(std::size_t sequence);
  void truncate(std::size_t sequence, std::size_t tokens);
  std::size_t length(std::size_t layer, std::size_t sequence) const;

  /// keys [n][kv_heads][key_dim] and values [n][kv_heads][value_dim] of the tokens from
  /// `position` on, which must be the layer's length.
  void append(std::size_t layer, std::size_t sequence, std::size_t position, std::size_t n,
              const float* keys, const float* values);

  /// What attention sees, as floats: keys [length][kv_heads][key_dim], values likewise.
  void dequantize(std::size_t layer, std::size_t sequence, float* keys, float* values) const;

  MemoryUse memory() const;

  /// pack: the codes at about their entropy.
  std::vector<std::uint8_t> serialize(std::size_t sequence, bool pack = false) const;
  std::size_t restore(const std::uint8_t* bytes, std::size_t n);

  const Sequence& sequence(std::size_t number) const;
  /// A sequence made elsewhere with this cache's options; its number.
  std::size_t place(std::unique_ptr<Sequence> sequence);
  std::shared_ptr<Page> new_page(std::size_t layer) const {
    return std::make_shared<Page>(formats_[layer].page_bytes, page_bytes_);
  }
  /// The channels of a head in the order of its parts, null when the side has one part.
  const std::uint16_t* channels(std::size_t layer, std::size_t head, bool keys) const;

 private:
  Sequence& mutable_sequence(std::size_t number);
  LayerState& layer_state(std::size_t layer, std::size_t sequence);
  void check_layer(std::size_t layer) const;
  /// What a layer takes has changed. Whoever changes a sequence does this, so that memory() need
  /// not look at sequences that others change meanwhile.
  void count(LayerState& state);
  MemoryUse use_of(const LayerState& state) const;
  void count_locked(LayerState& state, const MemoryUse& now);
  void append_raw(RawTokens& raw, std::size_t n, const std::uint16_t* keys,
                  const std::uint16_t* values) const;
  void release_page(std::size_t layer, LayerState& state);
  void choose_outliers(std::size_t layer, const RawTokens& raw);
  void adopt_channels(std::vector<std::vector<ChannelOrder>> read, const std::vector<bool>& paged);
  std::size_t key_width() const { return options_.kv_heads * options_.key_dim; }
  std::size_t value_width() const { return options_.kv_heads * options_.value_dim; }

  CacheOptions options_;
  const kernels::KernelTable& kernels_;
  std::vector<LayerFormat> formats_;
  std::shared_ptr<std::atomic<std::size_t>> page_bytes_;
  mutable std::mutex mutex_;  ///< guards the table of sequences, their use, the choice of channels
  std::vector<std::unique_ptr<Sequence>> sequences_;
  MemoryUse counted_;                                ///< over all sequences; guarded by mutex_
  std::vector<std::vector<ChannelOrder>> channels_;  ///< [layer][head]
};

}  // namespace turboquant::kv
