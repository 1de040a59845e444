// A QueryScorer for FAISS's callbacks, which run in parallel regions that no exception may leave.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "quantizer/scanner.h"
#include "quantizer/top_k.h"

namespace turboquant {

/// After a query with NaN or infinity every score is the worst finite one.
class SafeScorer {
 public:
  SafeScorer(const Quantizer& codec, Metric metric)
      : scorer_(codec, metric), worst_(worst_score(metric)) {}

  void set_query(const float* query) {
    try {
      scorer_.set_query(query);
      valid_ = true;
    } catch (const std::invalid_argument&) {
      valid_ = false;
    }
  }

  float score(const std::uint8_t* code) const { return valid_ ? scorer_.score(code) : worst_; }

  /// As QueryScorer::score_rows.
  void score_rows(const std::uint8_t* codes, const std::uint32_t* rows, std::size_t n,
                  float* out) const {
    if (valid_) {
      scorer_.score_rows(codes, rows, n, out);
    } else {
      std::fill_n(out, n, worst_);
    }
  }

  float symmetric(const std::uint8_t* a, const std::uint8_t* b) const {
    return scorer_.symmetric(a, b);
  }

 private:
  QueryScorer scorer_;
  float worst_;
  bool valid_ = false;
};

}  // namespace turboquant
