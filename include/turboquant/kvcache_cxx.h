// The KV cache's C API (turboquant/kvcache.h, which says what everything means) with owners and
// exceptions. Header only: link turboquant::kvcache or turboquant::kv.
//
//   tq_kv_config config = turboquant::KvCache::config();
//   config.layers = ...;
//   turboquant::KvCache cache(config);
//   turboquant::KvSequence sequence = cache.create();
//   sequence.append(layer, n, keys, values);
//   cache.attend(attention);
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "turboquant/kvcache.h"

namespace turboquant {

/// A call that failed; what() is the library's sentence.
class KvError : public std::runtime_error {
 public:
  explicit KvError(tq_kv_status status) : std::runtime_error(tq_kv_last_error()), status_(status) {}
  tq_kv_status status() const { return status_; }
  static void check(tq_kv_status status) {
    if (status != TQ_KV_OK) throw KvError(status);
  }

 private:
  tq_kv_status status_;
};

/// A sequence of a cache, freed with this object. Keeps the cache alive.
class KvSequence {
 public:
  KvSequence(std::shared_ptr<tq_kv_cache> cache, std::uint32_t number)
      : cache_(std::move(cache)), number_(number) {}
  ~KvSequence() {
    if (cache_ != nullptr) tq_kv_sequence_free(cache_.get(), number_);
  }
  KvSequence(KvSequence&& other) noexcept = default;
  KvSequence& operator=(KvSequence&& other) noexcept {
    std::swap(cache_, other.cache_);
    std::swap(number_, other.number_);
    return *this;
  }

  std::uint32_t number() const { return number_; }

  std::size_t length(std::uint32_t layer) const {
    std::size_t tokens = 0;
    KvError::check(tq_kv_sequence_length(cache_.get(), layer, number_, &tokens));
    return tokens;
  }

  /// Behind what the layer has.
  void append(std::uint32_t layer, std::size_t n, const float* keys, const float* values) {
    KvError::check(tq_kv_append(cache_.get(), layer, number_, length(layer), n, keys, values));
  }

  void truncate(std::size_t tokens) {
    KvError::check(tq_kv_sequence_truncate(cache_.get(), number_, tokens));
  }

  /// Shares the pages.
  KvSequence copy() const {
    std::uint32_t made = 0;
    KvError::check(tq_kv_sequence_copy(cache_.get(), number_, &made));
    return {cache_, made};
  }

  void dequantize(std::uint32_t layer, float* keys, float* values) const {
    KvError::check(tq_kv_dequantize(cache_.get(), layer, number_, keys, values));
  }

  std::vector<std::uint8_t> save(bool pack = false) const {
    const auto write = pack ? tq_kv_sequence_save_packed : tq_kv_sequence_save;
    std::size_t needed = 0;
    const tq_kv_status asked = write(cache_.get(), number_, nullptr, 0, &needed);
    if (asked != TQ_KV_OUT_OF_RANGE || needed == 0) KvError::check(asked);
    std::vector<std::uint8_t> bytes(needed);
    KvError::check(write(cache_.get(), number_, bytes.data(), bytes.size(), &needed));
    return bytes;
  }

 private:
  std::shared_ptr<tq_kv_cache> cache_;
  std::uint32_t number_;
};

class KvCache {
 public:
  static tq_kv_config config() {
    tq_kv_config made;
    KvError::check(tq_kv_config_init(&made));
    return made;
  }
  static tq_kv_attention attention() {
    tq_kv_attention made;
    KvError::check(tq_kv_attention_init(&made));
    return made;
  }

  explicit KvCache(const tq_kv_config& config) {
    tq_kv_cache* made = nullptr;
    KvError::check(tq_kv_create(&config, &made));
    cache_.reset(made, tq_kv_destroy);
  }

  KvSequence create() {
    std::uint32_t number = 0;
    KvError::check(tq_kv_sequence_create(cache_.get(), &number));
    return {cache_, number};
  }

  KvSequence restore(const std::vector<std::uint8_t>& bytes) {
    std::uint32_t number = 0;
    KvError::check(tq_kv_sequence_restore(cache_.get(), bytes.data(), bytes.size(), &number));
    return {cache_, number};
  }

  void attend(const tq_kv_attention& attention) const {
    KvError::check(tq_kv_attend(cache_.get(), &attention));
  }

  tq_kv_memory memory() const {
    tq_kv_memory use;
    KvError::check(tq_kv_get_memory(cache_.get(), &use));
    return use;
  }

  tq_kv_cache* get() const { return cache_.get(); }

 private:
  std::shared_ptr<tq_kv_cache> cache_;
};

}  // namespace turboquant
