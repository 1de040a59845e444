// One thread's pass over inverted lists: the rows of a list against the queries that visit it, many
// queries by tiles and few by rows, with a cut-off for each. The caller supplies a sink.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantizer/block_rows.h"
#include "quantizer/block_scan.h"
#include "quantizer/prepared_queries.h"
#include "quantizer/scanner.h"

namespace turboquant {

/// A query that visits a list. Sinks know it by its place among the visits of a scan.
struct ListVisit {
  std::size_t prepared = 0;  ///< its number among the prepared queries
  float offset = 0;          ///< what its products lack, e.g. the product with the list's centroid
  std::size_t rows = 0;      ///< it sees the rows below this one
};

/// Buffers that are reused from list to list. One per thread.
class ListScan {
 public:
  /// impl: without a centre; must outlive this object.
  ListScan(const Quantizer::Impl& impl, Metric metric);

  /// Offers to `sink` every row that is not worse than the sink's bound, in order of rows for each
  /// visit. The scores do not depend on what else is scanned with them.
  void run(const PreparedQueries& prepared, const ListVisit* visits, std::size_t n,
           const CodeRows& rows, ScanSink& sink);

 private:
  struct Pass;

  void pack(const Pass& pass);
  void update_cutoff(const Pass& pass, std::size_t v);
  std::size_t next_block(const Pass& pass, std::size_t row, std::size_t most);
  BlockRows block_rows(const Pass& pass) const;
  void load_factors(const BlockRows& rows);
  void fetch(const Pass& pass, std::size_t row, std::size_t n) const;
  void scan_rows(const Pass& pass, std::size_t v);
  void scan_tiles(const Pass& pass);
  void scan_both_parts(const Pass& pass, std::size_t v);
  void offer(const Pass& pass, std::size_t v, std::size_t j, float product);

  const Quantizer::Impl& impl_;
  const Metric metric_;
  const std::size_t size_;

  // The block of rows at hand.
  std::size_t first_ = 0;           // number of its first row
  std::size_t count_ = 0;           // rows in it
  std::vector<std::uint32_t> ids_;  // their numbers, where a mask chose them
  std::vector<float> scale_, norm_, term_;

  std::vector<float> cutoff_, query_term_;  // of each visit
  AlignedVector<std::int8_t> packed_;       // [groups][padded / 4][kLane][4]
  AlignedVector<std::int32_t> bias_;        // [groups][kLane]
  AlignedVector<std::int8_t> decoded_;      // [rows][padded]
  AlignedVector<std::int32_t> dots_;        // [groups][rows][kLane]
  std::vector<kernels::Hit> hits_;
};

}  // namespace turboquant
