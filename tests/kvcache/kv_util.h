// Data and a plain attention for the tests of the KV cache.
#pragma once

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

inline Reference reference(const Cache& cache, std::size_t sequence, std::size_t queries,
                           const std::vector<float>& q, const AttentionOptions& a = {}) {
  const CacheOptions& o = cache.options();
  const std::size_t n = cache.length(0, sequence);
  std::vector<float> keys(n * o.kv_heads * o.key_dim);
  std::vector<float> values(n * o.kv_heads * o.value_dim);
  cache.dequantize(0, sequence, keys.data(), values.data());
  const double scale = a.scale != 0 ? a.scale : 1 / std::sqrt(static_cast<double>(o.key_dim));
  const std::size_t group = o.query_heads / o.kv_heads;
  Reference result;
  for (std::size_t i = 0; i < queries; ++i) {
    const std::size_t position = n - queries + i;
    for (std::size_t h = 0; h < o.query_heads; ++h) {
      const float* query = q.data() + (i * o.query_heads + h) * o.key_dim;
      double query_norm = 0;
      for (std::size_t c = 0; c < o.key_dim; ++c) query_norm += double{query[c]} * query[c];
      query_norm = std::sqrt(query_norm) * scale;
      std::vector<double> scores(n, -HUGE_VAL);
      double largest = a.sinks != nullptr ? a.sinks[h] : -HUGE_VAL;
      double key_norm = 0;
      for (std::size_t t = 0; t < n; ++t) {
        if (a.causal && t > position) continue;
        if (a.window != 0 && t + a.window <= (a.causal ? position : n - 1)) continue;
        const float* key = keys.data() + (t * o.kv_heads + h / group) * o.key_dim;
        double dot = 0;
        double norm = 0;
        for (std::size_t c = 0; c < o.key_dim; ++c) {
          dot += double{query[c]} * key[c];
          norm += double{key[c]} * key[c];
        }
        key_norm = std::max(key_norm, std::sqrt(norm));
        double score = dot * scale;
        if (a.softcap != 0) score = a.softcap * std::tanh(score / a.softcap);
        if (a.mask != nullptr) score += a.mask[i * a.mask_stride + t];
        scores[t] = score;
        largest = std::max(largest, score);
      }
      double total = a.sinks != nullptr && largest > -HUGE_VAL ? std::exp(a.sinks[h] - largest) : 0;
      std::vector<double> weights(n);
      for (std::size_t t = 0; t < n; ++t) {
        weights[t] = largest > -HUGE_VAL ? std::exp(scores[t] - largest) : 0;
        total += weights[t];
      }
      std::vector<double> out(o.value_dim);
      double squares = 0;
      double value_norm = 0;
      for (std::size_t t = 0; t < n && total > 0; ++t) {
        const float* value = values.data() + (t * o.kv_heads + h / group) * o.value_dim;
        const double weight = weights[t] / total;
        double norm = 0;
        for (std::size_t c = 0; c < o.value_dim; ++c) {
          out[c] += weight * value[c];
          norm += double{value[c]} * value[c];
        }
        value_norm = std::max(value_norm, std::sqrt(norm));
        // A weight is rounded to 1/127 of the largest of its page; half a step, and 64 neighbours.
        double page = 0;
        for (std::size_t s = t > 64 ? t - 64 : 0; s < std::min(n, t + 65); ++s) {
          page = std::max(page, weights[s] / total);
        }
        squares += std::pow(page / 254, 2);
        squares += std::pow(weight * 5 * query_norm * key_norm / 127, 2);
      }
      result.out.insert(result.out.end(), out.begin(), out.end());
      result.out_error.push_back(2 * value_norm * std::sqrt(squares) + 1e-4 * value_norm);
      result.lse.push_back(total > 0 ? largest + std::log(total) : -HUGE_VAL);
      // A coordinate of a rotated query is at most its length, in 127 steps, rounded by half of
      // one; independent errors add up to about 0.3 steps of the length of a key.
      result.lse_error.push_back(5 * 0.3 * query_norm * key_norm / 127 + 1e-4);
    }
  }
  return result;
}

}  // namespace turboquant::kv::test
