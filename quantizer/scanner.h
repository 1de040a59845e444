// Search over rows of codes: top-k, range, and one prepared query at a time. Everything here is
// deterministic: the same ids and score bits for every backend, thread count and batch size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "turboquant/quantizer.h"

namespace turboquant {

/// n rows of quantizer.code_size() bytes each, contiguous.
struct CodeRows {
  const std::uint8_t* codes = nullptr;
  std::size_t n = 0;
  /// Rows to consider: bit i % 64 of word i / 64. Null means all.
  const std::uint64_t* mask = nullptr;
};

class SignPlane;

/// Lets searches leave out rows: of few queries by the sign bits, of many by some coordinates.
struct Pruning {
  /// The signs of all the rows; null scans everything.
  const SignPlane* plane = nullptr;
  /// Between 1/2 and 1: how likely a row at the bound is kept, over the random rotation.
  float confidence = 0.999f;
};

/// Whether search_topk has a use for the signs of n rows.
bool can_prune(const Quantizer& quantizer, std::size_t nq, std::size_t n, std::size_t k);

/// The k best rows of each query: scores and ids are [nq][k], best first, equal scores by smaller
/// id. Scores are inner products (largest first) or squared distances (smallest first; estimates,
/// which can be slightly below 0). Slots that no row fills have id -1 and the lowest (inner
/// product) or largest (L2) finite float. kL2 needs a quantizer with_norm.
/// Uses OpenMP threads. Throws std::invalid_argument naming the first query with NaN or infinity.
/// With pruning and rows.mask null, where can_prune says so, a row of the k best can be missing;
/// the scores of those found are the same. For many queries which row is missing can depend on the
/// number of threads, the instruction set and the other queries.
void search_topk(const Quantizer& quantizer, Metric metric, const float* queries, std::size_t nq,
                 const CodeRows& rows, std::size_t k, float* scores, std::int64_t* ids,
                 const Pruning& pruning = {});

struct RangeHit {
  std::int64_t id;
  float score;
};

/// All rows whose score is strictly better than radius (FAISS's rule), ordered by id; one vector
/// per query.
std::vector<std::vector<RangeHit>> search_range(const Quantizer& quantizer, Metric metric,
                                                const float* queries, std::size_t nq,
                                                const CodeRows& rows, float radius);

/// Scores of single rows against one query: distance computers and inverted-list scanners.
/// Not thread-safe; make one per thread.
class QueryScorer {
 public:
  QueryScorer(const Quantizer& quantizer, Metric metric);
  ~QueryScorer();
  QueryScorer(QueryScorer&&) noexcept;
  QueryScorer& operator=(QueryScorer&&) noexcept;

  /// query: [d]. Throws std::invalid_argument on NaN or infinity.
  void set_query(const float* query);

  /// Score of the row at `code`.
  float score(const std::uint8_t* code) const;

  /// out[j] = score of the row at codes + code_size * (rows ? rows[j] : j).
  void score_rows(const std::uint8_t* codes, const std::uint32_t* rows, std::size_t n,
                  float* out) const;

  /// Estimate of the score between two encoded rows. Re-entrant: uses no state of this object.
  float symmetric(const std::uint8_t* a, const std::uint8_t* b) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace turboquant
