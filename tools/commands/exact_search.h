// The true nearest neighbours, by going through every row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tools/commands/metric.h"
#include "tools/commands/progress.h"
#include "tools/io/vector_file.h"

namespace turboquant::tools {

/// ids and scores are [queries][k], best first. Slots that no row fills have id -1 and the lowest
/// (l2: largest) finite float.
struct Neighbors {
  std::size_t k = 0;
  std::vector<std::int64_t> ids;
  std::vector<float> scores;  ///< inner products, cosines or squared distances
};

/// The k best rows of the base for each of queries[nq][base.dimension()]. Scores that decide are
/// computed in double, so the result depends on nothing but the data; equal scores are ordered by
/// row. A zero vector has cosine 0. The base is streamed; memory is about 16 bytes * nq * k and
/// two blocks. Throws io::DataError for NaN and infinity, io::Interrupted.
Neighbors exact_search(io::VectorReader& base, const float* queries, std::size_t nq, std::size_t k,
                       SearchMetric metric, Progress& progress);

}  // namespace turboquant::tools
