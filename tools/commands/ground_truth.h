// `ground-truth`: the true neighbours of every query, to a file.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "tools/commands/metric.h"
#include "tools/commands/progress.h"
#include "tools/io/vector_file.h"

namespace turboquant::tools {

struct GroundTruthOptions {
  std::string base;
  std::string queries;
  std::optional<io::Format> format;  ///< of both inputs
  SearchMetric metric = SearchMetric::kInnerProduct;
  std::size_t k = 100;
  std::string output;     ///< row numbers: .ibin, .ivecs or .npy
  std::string distances;  ///< scores: .fbin, .fvecs or .npy; empty: not written
};

/// Number of queries. Throws io::UsageError, io::DataError, io::IoError, io::Interrupted.
std::size_t write_ground_truth(const GroundTruthOptions& options, Progress& progress);

}  // namespace turboquant::tools
