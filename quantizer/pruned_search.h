// One query against all rows in two passes: sign bits first, then exact scores of the rows that
// they leave in question.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantizer/block_scan.h"
#include "quantizer/sign_plane.h"
#include "quantizer/top_k.h"

namespace turboquant {

/// The rows that can be among the k best, by the bound of `confidence`, go with their exact scores
/// into best[parts], one per thread. False, and best of no use, when so many rows are in question
/// that a scan of all of them is faster. Which rows are looked at depends on the data, the query
/// and the confidence alone, not on threads or instruction sets.
/// plane holds all rows; rows.mask is null; k at least 1 and at most rows.n.
bool pruned_search(const ScanQueries& queries, std::size_t q, const CodeRows& rows,
                   const SignPlane& plane, float confidence, std::size_t k,
                   std::vector<TopK>& best);

}  // namespace turboquant
