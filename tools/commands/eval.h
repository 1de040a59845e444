// `eval`: how good and how fast an index is on given queries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "tools/commands/estimate_statistics.h"
#include "tools/commands/metric.h"
#include "tools/commands/progress.h"
#include "tools/io/vector_file.h"

namespace turboquant::tools {

struct EvalOptions {
  std::string index;
  std::string queries;
  std::optional<io::Format> format;  ///< of queries and base
  std::string base;          ///< the indexed vectors; truth and estimate statistics come from it
  std::string ids;           ///< of the base rows, if the index was built with --ids
  std::string ground_truth;  ///< .ivecs, .ibin, .npy or HDF5 (neighbors); instead of the base's
  std::size_t k = 10;
  std::optional<std::uint64_t> limit;
  std::string parameters;
};

struct EvalReport {
  std::string index;
  std::string description;
  SearchMetric metric = SearchMetric::kInnerProduct;
  std::uint64_t vectors = 0;
  std::size_t dimension = 0;
  std::size_t queries = 0;
  std::size_t k = 0;
  int threads = 1;

  /// R -> share of queries whose true nearest row is among the first R found; R = 1, 10, 100 up to
  /// k.
  std::map<std::size_t, double> recall_at;
  /// K -> mean share of the true first K among the first K found; K = 1, 10, 100 up to k, and k.
  std::map<std::size_t, double> k_recall_at;

  double latency_mean_ms = 0;  ///< one query at a time
  double latency_p50_ms = 0;
  double latency_p95_ms = 0;
  double latency_p99_ms = 0;
  double batch_qps = 0;  ///< all queries in one call, median of the runs

  std::optional<std::size_t> vector_bytes;  ///< in memory, ids and links included
  std::uint64_t file_bytes = 0;
  std::optional<EstimateStatistics> estimate;  ///< when the base was given and the type can tell
};

/// Throws io::UsageError, io::DataError, io::IoError, io::Interrupted, or what FAISS throws.
EvalReport evaluate_index(const EvalOptions& options, Progress& progress);

void print_report(const EvalReport& report, std::ostream& out);
void print_report_json(const EvalReport& report, std::ostream& out);

/// Shares as in EvalReport from truth[nq][truth_k] and found[nq][k].
void count_recall(const std::vector<std::int64_t>& truth, std::size_t truth_k,
                  const std::vector<std::int64_t>& found, std::size_t k, EvalReport& report);

}  // namespace turboquant::tools
