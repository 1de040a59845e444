// One thread's pass over a range of rows for a range of queries: integer products, a cheap float
// cut-off, exact scores for what passes. The caller supplies a sink.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "quantizer/prepared_queries.h"
#include "quantizer/scanner.h"
#include "quantizer/top_k.h"

namespace turboquant {

/// What a scan needs to know of its queries, laid out for the kernels. Shared by all threads.
class ScanQueries {
 public:
  static constexpr std::size_t kFew = 3;

  ScanQueries(const Quantizer::Impl& impl, Metric metric, const float* queries, std::size_t nq);

  /// Scans so few queries that rows are read straight from the codes.
  bool few() const { return nq_ <= kFew; }
  std::size_t size() const { return nq_; }
  std::size_t groups() const { return (nq_ + kernels::kLane - 1) / kernels::kLane; }

  const PreparedQueries& prepared() const { return prepared_; }
  Metric metric() const { return metric_; }

  /// Operands of KernelTable::dot_tile from group g on.
  const std::int8_t* packed(std::size_t g, bool signs) const {
    return (signs ? packed_signs_ : packed_levels_).data() +
           g * kernels::kLane * prepared_.impl().padded;
  }
  const std::int32_t* bias(std::size_t g, bool signs) const {
    return (signs ? bias_signs_ : bias_levels_).data() + g * kernels::kLane;
  }

  /// Exact score of a pair from its integer products.
  float score(std::size_t q, float product, float row_norm) const {
    if (metric_ == Metric::kInnerProduct) return product;
    return squared_distance(prepared_.norms_squared[q], row_norm, product);
  }

  /// Fills the terms of KernelTable::select_*: pairs whose score is no better than `bound` by more
  /// than rounding pass. NaN lets everything pass.
  void cutoff(std::size_t q, float bound, float* cutoff, float* query_term) const {
    this->cutoff(q, prepared_.levels.scales[q], bound, cutoff, query_term);
  }
  /// The same for products that become scores by another factor than the query's.
  void cutoff(std::size_t q, float scale, float bound, float* cutoff, float* query_term) const;

 private:
  void pack(const QueryPart& part, const kernels::CodeTable& table,
            AlignedVector<std::int8_t>& packed, AlignedVector<std::int32_t>& bias) const;

  PreparedQueries prepared_;
  Metric metric_;
  std::size_t nq_;
  AlignedVector<std::int8_t> packed_levels_, packed_signs_;  // [groups][padded / 4][kLane][4]
  AlignedVector<std::int32_t> bias_levels_, bias_signs_;     // [groups][kLane]
};

/// The cutoff and query_term of KernelTable::select_* for one query. scale: of its products.
/// offset: what they lack. norm: its squared length, for L2. row_terms: rows have terms for inner
/// products too.
void lower_bound_to_dots(Metric metric, float scale, float bound, float offset, float norm,
                         bool row_terms, float* cutoff, float* query_term);

/// How one scan is divided among threads: contiguous parts of the queries times parts of the rows.
struct ScanPlan {
  ScanPlan(const ScanQueries& queries, std::size_t rows);
  std::size_t query_parts = 1;
  std::size_t row_parts = 1;
};

/// Where candidates go. q counts from the first query of the scan.
class ScanSink {
 public:
  virtual ~ScanSink() = default;
  /// Worst score that is still of interest, or NaN when every score is.
  virtual float bound(std::size_t q) const = 0;
  /// True when the bound moved.
  virtual bool offer(std::size_t q, float score, std::uint32_t row) = 0;
};

/// Keeps the best candidates of each query.
class TopKSink final : public ScanSink {
 public:
  /// best: one for each query of the scan. Borrowed.
  TopKSink(Metric metric, std::vector<TopK>& best) : metric_(metric), best_(best) {}
  float bound(std::size_t q) const override {
    return best_[q].limited() ? key_score(metric_, best_[q].limit())
                              : std::numeric_limits<float>::quiet_NaN();
  }
  bool offer(std::size_t q, float score, std::uint32_t row) override {
    return best_[q].offer(candidate_key(metric_, score, row));
  }

 private:
  Metric metric_;
  std::vector<TopK>& best_;
};

/// Offers the n rows chosen with their exact scores. True when the limit moved.
bool offer_rows(const ScanQueries& queries, std::size_t q, const CodeRows& rows,
                const std::uint32_t* chosen, std::size_t n, TopK& best);

/// Scans rows [begin, end) for the queries of groups [first_group, last_group) (all queries when
/// queries.few()). Rows are visited in order.
void scan_block(const ScanQueries& queries, const CodeRows& rows, std::size_t begin,
                std::size_t end, std::size_t first_group, std::size_t last_group, ScanSink& sink);

}  // namespace turboquant
