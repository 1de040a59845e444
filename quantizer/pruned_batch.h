// Many queries against all rows: products of the first coordinates leave most rows out, the others
// get their exact scores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantizer/block_scan.h"
#include "quantizer/sign_plane.h"
#include "quantizer/top_k.h"

namespace turboquant {

/// Shared by all threads. rows.mask is null.
class PrunedBatch {
 public:
  /// plane holds all rows and has a levels_prefix().
  PrunedBatch(const ScanQueries& queries, const CodeRows& rows, const SignPlane& plane,
              float confidence, std::size_t k);

  /// One thread's part: rows [begin, end) for the queries of groups [first_group, last_group).
  /// best[size of queries] takes candidates. certain[size of queries]: every row whose key is at
  /// most that was scored, or left out at the bound of the confidence.
  void scan(std::size_t begin, std::size_t end, std::size_t first_group, std::size_t last_group,
            std::vector<TopK>& best, std::vector<std::uint64_t>& certain) const;

 private:
  class Part;

  const ScanQueries& queries_;
  const CodeRows& rows_;
  const SignPlane& plane_;
  const SignPlane::Prefix& prefix_;
  std::size_t width_;  // coordinates of the prefix
  std::size_t k_;
  AlignedVector<std::int8_t> packed_;  // operands of KernelTable::dot_tile, [groups][width][kLane]
  AlignedVector<std::int32_t> bias_;   // [groups][kLane]
  std::vector<float> deviations_;      // of the query's integers, times the number asked for
};

}  // namespace turboquant
