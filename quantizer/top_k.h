// The k best candidates of one query, under a total order: score, then smaller row.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "turboquant/quantizer.h"

namespace turboquant {

/// A candidate as one integer, smaller is better: the score mapped to an ordered 32-bit integer,
/// then the row. Scores come back from keys bit for bit (-0 becomes +0).
inline std::uint64_t candidate_key(Metric metric, float score, std::uint32_t row) {
  const float canonical = score + 0.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &canonical, 4);
  bits ^= (bits >> 31) != 0 ? 0xffffffffu : 0x80000000u;  // ascending
  if (metric == Metric::kInnerProduct) bits = ~bits;
  return std::uint64_t{bits} << 32 | row;
}

inline float key_score(Metric metric, std::uint64_t key) {
  auto bits = static_cast<std::uint32_t>(key >> 32);
  if (metric == Metric::kInnerProduct) bits = ~bits;
  bits ^= (bits >> 31) != 0 ? 0x80000000u : 0xffffffffu;
  float score;
  std::memcpy(&score, &bits, 4);
  return score;
}

/// What stands for the score of a result that there is none of.
inline float worst_score(Metric metric) {
  return metric == Metric::kInnerProduct ? std::numeric_limits<float>::lowest()
                                         : std::numeric_limits<float>::max();
}

inline std::uint32_t key_row(std::uint64_t key) { return static_cast<std::uint32_t>(key); }

__extension__ typedef unsigned __int128 WideKey;  // NOLINT(modernize-use-using)

/// The part of a key that orders by score alone.
inline std::uint32_t score_bits(Metric metric, float score) {
  return static_cast<std::uint32_t>(candidate_key(metric, score, 0) >> 32);
}

/// The same for candidates with ids of 64 bits, of which the smaller comes first.
inline WideKey wide_key(std::uint32_t score_bits, std::int64_t id) {
  const auto ordered = static_cast<std::uint64_t>(id) ^ std::uint64_t{1} << 63;
  return static_cast<WideKey>(score_bits) << 64 | ordered;
}
inline WideKey wide_key(Metric metric, float score, std::int64_t id) {
  return wide_key(score_bits(metric, score), id);
}

inline std::uint32_t score_bits(WideKey key) { return static_cast<std::uint32_t>(key >> 64); }

inline float bits_score(Metric metric, std::uint32_t bits) {
  return key_score(metric, std::uint64_t{bits} << 32);
}

inline std::int64_t wide_key_id(WideKey key) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(key) ^ std::uint64_t{1} << 63);
}

/// Scores and ids of the first k of `sorted`; the worst score and -1 where there are no more.
inline void write_results(Metric metric, const std::vector<WideKey>& sorted, std::size_t k,
                          float* scores, std::int64_t* ids) {
  for (std::size_t j = 0; j < k; ++j) {
    const bool found = j < sorted.size();
    scores[j] = found ? bits_score(metric, score_bits(sorted[j])) : worst_score(metric);
    ids[j] = found ? wide_key_id(sorted[j]) : -1;
  }
}

/// Keeps up to twice k candidates and cuts them back to k by selection, so that an offer costs
/// O(1) amortised.
template <typename Key>
class BestKeys {
 public:
  explicit BestKeys(std::size_t k) : k_(k), capacity_(k + std::max<std::size_t>(k, 32)) {}

  /// Candidates at or above this key cannot be among the k best; the largest key until a first cut.
  Key limit() const { return limit_; }
  bool limited() const { return limit_ != kNoLimit; }

  /// True when the limit moved.
  bool offer(Key key) {
    if (key >= limit_) return false;
    if (keys_.capacity() == 0) keys_.reserve(capacity_);
    keys_.push_back(key);
    if (keys_.size() < capacity_) return false;
    cut();
    return true;
  }

  /// The k best of those offered, and perhaps others; in no order.
  const std::vector<Key>& candidates() const { return keys_; }

  /// The candidates, best first.
  const std::vector<Key>& sorted() {
    if (keys_.size() > k_) cut_exactly();
    std::sort(keys_.begin(), keys_.end());
    return keys_;
  }

 private:
  static constexpr Key kNoLimit = static_cast<Key>(-1);

  // Drops most of what is past the k best. Which of them stays is decided by a pivot from a small
  // sample: any key that k candidates do not exceed is a valid limit, and one branch-free pass is
  // several times cheaper than exact selection.
  void cut() {
    if (k_ == 0) {
      keys_.clear();
      return;
    }
    constexpr std::size_t kSample = 16;
    Key sample[kSample];
    const std::size_t step = keys_.size() / kSample;
    for (std::size_t i = 0; i < kSample; ++i) sample[i] = keys_[i * step];
    std::sort(sample, sample + kSample);
    const std::size_t rank = k_ * kSample / keys_.size() + 2;
    const Key pivot = sample[std::min(rank, kSample - 1)];
    std::size_t kept = 0;
    for (const Key key : keys_) kept += key <= pivot ? 1 : 0;
    if (kept < k_ || kept > keys_.size() - k_ / 4) return cut_exactly();
    kept = 0;
    for (const Key key : keys_) {
      keys_[kept] = key;
      kept += key <= pivot ? 1 : 0;
    }
    keys_.resize(kept);
    limit_ = pivot + 1;
  }

  void cut_exactly() {
    const auto last = keys_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
    std::nth_element(keys_.begin(), last, keys_.end());
    limit_ = *last;
    keys_.resize(k_);
  }

  std::size_t k_;
  std::size_t capacity_;
  Key limit_ = kNoLimit;
  std::vector<Key> keys_;
};

using TopK = BestKeys<std::uint64_t>;

}  // namespace turboquant
