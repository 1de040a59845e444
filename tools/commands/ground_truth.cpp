#include "tools/commands/ground_truth.h"

#include <algorithm>
#include <vector>

#include "tools/commands/exact_search.h"
#include "tools/commands/result_files.h"
#include "tools/io/errors.h"

namespace turboquant::tools {
namespace {

// Queries and their candidates are in memory; more of them go through the base again.
constexpr std::uint64_t kQueryBytes = std::uint64_t{512} << 20;

}  // namespace

std::size_t write_ground_truth(const GroundTruthOptions& options, Progress& progress) {
  const auto base = io::open_vectors(options.base, options.format, io::kTrainDataset);
  const auto queries = io::open_vectors(options.queries, options.format, io::kTestDataset);
  const std::size_t d = base->dimension();
  if (queries->dimension() != d) {
    throw io::DataError(queries->name() + ": its dimension is " +
                        std::to_string(queries->dimension()) + ", that of " + base->name() +
                        " is " + std::to_string(d));
  }
  if (options.k == 0) throw io::UsageError("-k must be at least 1");
  const std::uint64_t nq = queries->rows();
  ResultFiles files(options.output, options.distances, nq, options.k);
  const std::uint64_t per_query = d * sizeof(float) + options.k * 32;
  const auto chunk = static_cast<std::size_t>(std::max<std::uint64_t>(1, kQueryBytes / per_query));
  for (std::uint64_t first = 0; first < nq;) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(chunk, nq - first));
    std::vector<float> x(n * d);
    io::read_finite(*queries, first, n, x.data());
    const Neighbors found = exact_search(*base, x.data(), n, options.k, options.metric, progress);
    files.append(found.ids.data(), found.scores.data(), n);
    first += n;
  }
  files.commit();
  return static_cast<std::size_t>(nq);
}

}  // namespace turboquant::tools
