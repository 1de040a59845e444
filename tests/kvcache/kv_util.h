// Data and a plain attention for the tests of the KV cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kvcache/attention.h"
#include "kvcache/cache.h"

namespace turboquant::kv::test {

inline std::vector<float> normals(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& value : x) value = normal(random);
  return x;
}

inline CacheOptions options(std::size_t kv_heads, std::size_t group, std::size_t key_dim,
                            std::size_t value_dim, int key_bits, int value_bits) {
  CacheOptions made;
  made.kv_heads = kv_heads;
  made.query_heads = kv_heads * group;
  made.key_dim = key_dim;
  made.value_dim = value_dim;
  made.max_sequences = 8;
  made.sink_tokens = 0;
  made.tail_tokens = 0;
  made.layers.resize(1);
  made.layers[0].keys = {key_bits, 0, key_bits != kRawBits};
  made.layers[0].values = {value_bits, 0, false};
  return made;
}

/// Adds the tokens that x says to a sequence's layer 0: seeds give each its own contents.
inline void fill(Cache& cache, std::size_t sequence, std::size_t n, std::uint32_t seed) {
  const CacheOptions& o = cache.options();
  const auto keys = normals(n * o.kv_heads * o.key_dim, seed);
  const auto values = normals(n * o.kv_heads * o.value_dim, seed + 1);
  for (std::size_t layer = 0; layer < o.layers.size(); ++layer) {
    cache.append(layer, sequence, cache.length(layer, sequence), n, keys.data(), values.data());
  }
}

struct Answer {
  std::vector<float> out;
  std::vector<float> lse;
};

inline Answer attend(const Cache& cache, std::size_t sequence, std::size_t queries,
                     const std::vector<float>& q, const AttentionOptions& options = {},
                     std::size_t layer = 0) {
  const CacheOptions& o = cache.options();
  Answer answer{std::vector<float>(queries * o.query_heads * o.value_dim, 7),
                std::vector<float>(queries * o.query_heads, 7)};
  kv::attend(cache, layer, {1, &sequence, &queries}, options, q.data(), answer.out.data(),
             answer.lse.data());
  return answer;
}

/// Attention in double on what the cache dequantizes to, and what integer rounding may change:
/// out_error is a bound of the length of the difference per row, lse_error of the difference.
struct Reference {
  std::vector<double> out;
  std::vector<double> lse;
  std::vector<double> out_error;
  std::vector<double> lse_error;
};

/// A sequence's tokens and queries that ask them; products are made once for all options.
class Exact {
 public:
  /// q [queries][query_heads][key_dim]
  Exact(const Cache& cache, std::size_t sequence, std::size_t queries, const std::vector<float>& q)
      : o_(cache.options()),
        n_(cache.length(0, sequence)),
        group_(o_.query_heads / o_.kv_heads),
        values_(n_ * o_.kv_heads * o_.value_dim) {
    std::vector<float> keys(n_ * o_.kv_heads * o_.key_dim);
    cache.dequantize(0, sequence, keys.data(), values_.data());
    key_norms_ = norms(keys, o_.key_dim);
    value_norms_ = norms(values_, o_.value_dim);
    query_norms_ = norms(q, o_.key_dim);
    dots_.resize(queries * o_.query_heads * n_);
    for (std::size_t r = 0; r < queries * o_.query_heads; ++r) {
      const std::size_t kv_head = r % o_.query_heads / group_;
      const float* query = q.data() + r * o_.key_dim;
      for (std::size_t t = 0; t < n_; ++t) {
        const float* key = keys.data() + (t * o_.kv_heads + kv_head) * o_.key_dim;
        double dot = 0;
        for (std::size_t c = 0; c < o_.key_dim; ++c) dot += double{query[c]} * key[c];
        dots_[r * n_ + t] = dot;
      }
    }
  }

  /// What the first `queries` queries get when they are those of the last tokens.
  Reference operator()(std::size_t queries, const AttentionOptions& a) const {
    Reference result;
    for (std::size_t i = 0; i < queries; ++i) {
      for (std::size_t h = 0; h < o_.query_heads; ++h) add_row(i, h, n_ - queries + i, a, result);
    }
    return result;
  }

 private:
  static std::vector<double> norms(const std::vector<float>& rows, std::size_t dim) {
    std::vector<double> made(rows.size() / dim);
    for (std::size_t r = 0; r < made.size(); ++r) {
      for (std::size_t c = 0; c < dim; ++c)
        made[r] += double{rows[r * dim + c]} * rows[r * dim + c];
      made[r] = std::sqrt(made[r]);
    }
    return made;
  }

  void add_row(std::size_t i, std::size_t h, std::size_t position, const AttentionOptions& a,
               Reference& result) const {
    const double scale = a.scale != 0 ? a.scale : 1 / std::sqrt(static_cast<double>(o_.key_dim));
    const std::size_t end = a.causal ? position + 1 : n_;
    const std::size_t begin = a.window != 0 && end > a.window ? end - a.window : 0;
    const double* dots = dots_.data() + (i * o_.query_heads + h) * n_;
    std::vector<double> weights(n_);  // first scores
    double largest = a.sinks != nullptr ? a.sinks[h] : -HUGE_VAL;
    double key_norm = 0;
    for (std::size_t t = begin; t < end; ++t) {
      key_norm = std::max(key_norm, key_norms_[t * o_.kv_heads + h / group_]);
      double score = dots[t] * scale;
      if (a.softcap != 0) score = a.softcap * std::tanh(score / a.softcap);
      if (a.mask != nullptr) score += a.mask[i * a.mask_stride + t];
      weights[t] = score;
      largest = std::max(largest, score);
    }
    const bool any = largest > -HUGE_VAL;
    double total = a.sinks != nullptr && any ? std::exp(a.sinks[h] - largest) : 0;
    for (std::size_t t = begin; t < end; ++t) {
      weights[t] = any ? std::exp(weights[t] - largest) : 0;
      total += weights[t];
    }
    for (std::size_t t = begin; t < end && total > 0; ++t) weights[t] /= total;
    // A coordinate of a rotated query is at most its length, in 127 steps, rounded by half of
    // one; independent errors add up to about 0.3 steps of the length of a key.
    const double step = query_norms_[i * o_.query_heads + h] * scale * key_norm / 127;
    result.lse.push_back(total > 0 ? largest + std::log(total) : -HUGE_VAL);
    result.lse_error.push_back(5 * 0.3 * step + 1e-4);
    add_output(weights, begin, end, h, step, result);
  }

  void add_output(const std::vector<double>& weights, std::size_t begin, std::size_t end,
                  std::size_t h, double step, Reference& result) const {
    const std::size_t first = result.out.size();
    result.out.resize(first + o_.value_dim);
    double* out = result.out.data() + first;
    double squares = 0;
    double value_norm = 0;
    double near = 0;  // the largest weight from 64 tokens before t to 64 behind it
    std::size_t near_at = 0;
    for (std::size_t t = begin; t < end; ++t) {
      const std::size_t row = t * o_.kv_heads + h / group_;
      const float* value = values_.data() + row * o_.value_dim;
      for (std::size_t c = 0; c < o_.value_dim; ++c) out[c] += weights[t] * value[c];
      value_norm = std::max(value_norm, value_norms_[row]);
      const std::size_t last = std::min(end, t + 65);
      if (t == begin || near_at + 64 < t) {
        const auto from =
            weights.begin() + static_cast<std::ptrdiff_t>(std::max(begin + 64, t) - 64);
        const auto most =
            std::max_element(from, weights.begin() + static_cast<std::ptrdiff_t>(last));
        near_at = static_cast<std::size_t>(most - weights.begin());
        near = *most;
      } else if (weights[last - 1] >= near) {
        near_at = last - 1;
        near = weights[near_at];
      }
      // A weight is rounded to 1/127 of the largest of its page; half a step, and 64 neighbours.
      squares += std::pow(near / 254, 2);
      squares += std::pow(weights[t] * 5 * step, 2);
    }
    result.out_error.push_back(2 * value_norm * std::sqrt(squares) + 1e-4 * value_norm);
  }

  const CacheOptions o_;
  const std::size_t n_;
  const std::size_t group_;
  std::vector<float> values_;
  std::vector<double> key_norms_, value_norms_, query_norms_, dots_;
};

inline Reference reference(const Cache& cache, std::size_t sequence, std::size_t queries,
                           const std::vector<float>& q, const AttentionOptions& a = {}) {
  return Exact(cache, sequence, queries, q)(queries, a);
}

}  // namespace turboquant::kv::test
