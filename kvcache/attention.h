// Attention of query heads over the compressed cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvcache/cache.h"

namespace turboquant::kv {

struct AttentionOptions {
  float scale = 0;               ///< of a score; 0: 1 / sqrt(key_dim)
  bool causal = true;            ///< a query sees tokens up to its own position
  std::size_t window = 0;        ///< and, if not 0, only the last `window` of them
  float softcap = 0;             ///< if not 0, a score becomes softcap * tanh(score / softcap)
  const float* mask = nullptr;   ///< [queries][mask_stride], added to scores; -infinity hides
  std::size_t mask_stride = 0;   ///< at least the longest sequence
  const float* sinks = nullptr;  ///< [query_heads]: scores without a value
  int threads = 0;               ///< 0: OpenMP's default
};

/// The last `queries` tokens of a sequence ask.
struct AttentionBatch {
  std::size_t n = 0;
  const std::size_t* sequences = nullptr;  ///< [n]
  const std::size_t* queries = nullptr;    ///< [n], each 1 to the length of its sequence
};

/// q [sum of queries][query_heads][key_dim], out [sum of queries][query_heads][value_dim], lse
/// [sum of queries][query_heads] or null: the logarithm of the sum of the exponentials, -infinity
/// where everything is hidden (out is 0 there). Query i of n of a sequence of length m stands at
/// position m - n + i. Throws std::invalid_argument or std::out_of_range.
void attend(const Cache& cache, std::size_t layer, const AttentionBatch& batch,
            const AttentionOptions& options, const float* q, float* out, float* lse);

}  // namespace turboquant::kv
