// A decoding loop over the compressed KV cache, beside the same attention in floats: per step, the
// new token's keys and values go in, its queries ask, and the answers differ by the codes' error
// alone.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "turboquant/kvcache_cxx.h"

namespace {

constexpr std::size_t kHeads = 8, kKvHeads = 2, kDim = 64, kTokens = 500;

std::vector<float> attention(const std::vector<float>& keys, const std::vector<float>& values,
                             const std::vector<float>& q, std::size_t n) {
  std::vector<float> out(kHeads * kDim);
  for (std::size_t h = 0; h < kHeads; ++h) {
    const std::size_t kv = h / (kHeads / kKvHeads);
    double total = 0;
    for (std::size_t t = 0; t < n; ++t) {
      const std::size_t at = (t * kKvHeads + kv) * kDim;
      double score = 0;
      for (std::size_t i = 0; i < kDim; ++i) score += double{q[h * kDim + i]} * keys[at + i];
      const double weight = std::exp(score / std::sqrt(static_cast<double>(kDim)));
      total += weight;
      for (std::size_t i = 0; i < kDim; ++i) {
        out[h * kDim + i] += static_cast<float>(weight * values[at + i]);
      }
    }
    for (std::size_t i = 0; i < kDim; ++i) out[h * kDim + i] /= static_cast<float>(total);
  }
  return out;
}

}  // namespace

int main() {
  tq_kv_config config = turboquant::KvCache::config();
  config.layers = 1;
  config.query_heads = kHeads;
  config.kv_heads = kKvHeads;
  config.key_dim = config.value_dim = kDim;
  turboquant::KvCache cache(config);
  turboquant::KvSequence sequence = cache.create();

  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> keys(kTokens * kKvHeads * kDim), values(keys.size());
  std::vector<float> q(kHeads * kDim), out(kHeads * kDim);
  for (float& x : keys) x = normal(random);
  for (float& x : values) x = normal(random);

  double error = 0, size = 0;
  for (std::size_t t = 0; t < kTokens; ++t) {
    const std::size_t at = t * kKvHeads * kDim;
    sequence.append(0, 1, keys.data() + at, values.data() + at);
    for (float& x : q) x = 2 * normal(random);
    const std::uint32_t number = sequence.number(), queries = 1;
    tq_kv_attention attend = turboquant::KvCache::attention();
    attend.sequences = 1;
    attend.sequence = &number;
    attend.queries = &queries;
    attend.q = q.data();
    attend.out = out.data();
    cache.attend(attend);
    const std::vector<float> exact = attention(keys, values, q, t + 1);
    for (std::size_t i = 0; i < out.size(); ++i) {
      error += std::pow(out[i] - exact[i], 2);
      size += std::pow(exact[i], 2);
    }
  }
  const tq_kv_memory memory = cache.memory();
  std::printf("%zu tokens: %zu bytes, %zu in half precision; outputs differ by %.1f%%\n", kTokens,
              memory.allocated, memory.half, 100 * std::sqrt(error / size));
  return error < 0.01 * size && memory.allocated < memory.half ? 0 : 1;
}
