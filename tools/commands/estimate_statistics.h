// How an index estimates inner products, over pairs of queries and rows.
#pragma once

#include <faiss/Index.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/commands/metric.h"
#include "tools/io/vector_file.h"

namespace turboquant::tools {

/// Over pairs scaled to unit length: estimate = slope * truth + error.
struct EstimateStatistics {
  double slope = 0;             ///< 1 when unbiased
  double variance_times_d = 0;  ///< mean square of the error, times the dimension
  std::size_t pairs = 0;
  std::string method;  ///< "distance_computer" (as searches do) or "reconstruct"
};

/// base: the indexed vectors, row i of it being vector i of the index; queries[nq][d]. nullopt when
/// the index type can do neither. May add a direct map to an IVF index.
std::optional<EstimateStatistics> estimate_statistics(faiss::Index& index, io::VectorReader& base,
                                                      const float* queries, std::size_t nq);

}  // namespace turboquant::tools
