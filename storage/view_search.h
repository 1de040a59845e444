// Searches over one state of a collection, served by the quantizer's scanner block by block.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "quantizer/scanner.h"
#include "quantizer/top_k.h"
#include "storage/block.h"
#include "storage/compiled_filter.h"
#include "turboquant/store.h"

namespace turboquant::storage {

/// A row of a view with its score. `position` is the block's place in the view times kBlockRows
/// plus the offset, so views of up to 2^32 rows can be searched.
struct Candidate {
  float score;
  std::uint32_t position;
};

/// Where a position lies.
inline const Block& block_at(const View& view, std::uint32_t position) {
  return *view.blocks[position / kBlockRows];
}
inline std::uint32_t offset_at(std::uint32_t position) { return position % kBlockRows; }
inline std::uint64_t row_at(const View& view, std::uint32_t position) {
  return block_at(view, position).first_row() + offset_at(position);
}
RecordId id_at(const View& view, std::uint32_t position);

/// Better scores first, equal ones by smaller id.
class CandidateOrder {
 public:
  CandidateOrder(const View& view, Metric metric) : view_(&view), metric_(metric) {}
  bool operator()(const Candidate& a, const Candidate& b) const;

 private:
  const View* view_;
  Metric metric_;
};

/// Keeps the k best of what it is offered; O(1) amortised unless very many scores are equal.
class BestRows {
 public:
  BestRows(const CandidateOrder& order, Metric metric, std::size_t k);

  /// The worst score that still matters, or NaN when every score does.
  float bound() const {
    return limit_ == kNoLimit ? std::numeric_limits<float>::quiet_NaN()
                              : key_score(metric_, limit_);
  }
  /// True when the bound moved.
  bool offer(Candidate candidate);
  /// Best first.
  std::vector<Candidate> take();

 private:
  static constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();
  void cut();
  Candidate at(std::uint64_t key) const { return {key_score(metric_, key), key_row(key)}; }

  CandidateOrder order_;
  Metric metric_;
  std::size_t k_;
  std::size_t most_;
  std::uint64_t limit_ = kNoLimit;   // keys above it do not matter
  std::vector<std::uint64_t> keys_;  // candidate_key of score and position
};

struct ScanRequest {
  const Quantizer* quantizer = nullptr;
  Metric metric = Metric::kInnerProduct;
  const float* queries = nullptr;  ///< [nq][dimension], finite; of length 1 for cosines
  std::size_t nq = 0;
  const FilterNode* filter = nullptr;  ///< null: all live rows
  ReadControl control;
};

/// The k best rows of each query, best first. Uses OpenMP threads.
absl::StatusOr<std::vector<std::vector<Candidate>>> scan_top_k(const View& view,
                                                               const ScanRequest& request,
                                                               std::size_t k);

/// All rows with a score better than the radius, best first; fails when they are more than
/// max_hits.
absl::StatusOr<std::vector<std::vector<Candidate>>> scan_range(const View& view,
                                                               const ScanRequest& request,
                                                               float radius, std::size_t max_hits);

/// OK, or why a read has to stop.
absl::Status check_control(const ReadControl& control);

/// Live rows of a block that satisfy the filter, if any; null when all rows of the block do.
const RowBits* select_rows(const Block& block, const FilterNode* filter, RowBits& scratch);

}  // namespace turboquant::storage
