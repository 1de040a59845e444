#include "tools/commands/eval.h"

#include <omp.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <set>

#include "tools/commands/exact_search.h"
#include "tools/commands/index_file.h"
#include "tools/commands/index_tree.h"
#include "tools/commands/search.h"
#include "tools/io/errors.h"
#include "tools/io/ids_file.h"
#include "tools/io/interrupt.h"

namespace turboquant::tools {
namespace {

constexpr std::array<std::size_t, 3> kRanks = {1, 10, 100};
constexpr std::size_t kLatencyQueries = 2000;
constexpr int kMaxBatchRuns = 7;
constexpr double kBatchSeconds = 2;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The smallest value that at least `share` of the sorted values do not exceed.
double percentile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::max<std::size_t>(rank, 1) - 1];
}

class Evaluation {
 public:
  Evaluation(const EvalOptions& options, Progress& progress)
      : options_(options), progress_(progress) {
    if (options.k == 0) throw io::UsageError("-k must be at least 1");
    if (options.base.empty() && options.ground_truth.empty()) {
      throw io::UsageError("eval needs --base or --ground-truth");
    }
    reader_ = io::open_vectors(options.queries, options.format, io::kTestDataset);
    index_ = load_index(options.index);
    require_dimension(*reader_, *index_);
    set_search_parameters(*index_, options.parameters);
    nq_ = static_cast<std::size_t>(
        std::min(options.limit.value_or(reader_->rows()), reader_->rows()));
    if (nq_ == 0) throw io::DataError(reader_->name() + ": no queries");
    queries_.resize(nq_ * reader_->dimension());
    io::read_finite(*reader_, 0, nq_, queries_.data());
    if (!options.base.empty()) open_base();
  }

  EvalReport run() {
    describe_index();
    load_truth();
    measure();
    count_recall(truth_, truth_k_, found_, options_.k, report_);
    if (base_) report_.estimate = estimate_statistics(*index_, *base_, queries_.data(), nq_);
    return report_;
  }

 private:
  void open_base() {
    base_ = io::open_vectors(options_.base, options_.format, io::kTrainDataset);
    if (base_->dimension() != reader_->dimension() ||
        base_->rows() != static_cast<std::uint64_t>(index_->ntotal)) {
      throw io::DataError(base_->name() + ": has " + std::to_string(base_->rows()) +
                          " rows of dimension " + std::to_string(base_->dimension()) +
                          ", the index " + std::to_string(index_->ntotal) + " of " +
                          std::to_string(index_->d));
    }
    if (options_.ids.empty()) {
      if (ids_are_rows(*index_)) return;
      throw io::UsageError("the index was built with ids of its own; name them with --ids");
    }
    ids_ = io::read_ids(options_.ids);
    if (ids_.size() != base_->rows()) {
      throw io::DataError(options_.ids + ": holds " + std::to_string(ids_.size()) + " ids for " +
                          std::to_string(base_->rows()) + " rows");
    }
  }

  void describe_index() {
    report_.index = options_.index;
    report_.description = describe(*index_);
    report_.metric = metric_of(*index_);
    report_.vectors = static_cast<std::uint64_t>(index_->ntotal);
    report_.dimension = reader_->dimension();
    report_.queries = nq_;
    report_.k = options_.k;
    report_.threads = omp_get_max_threads();
    report_.vector_bytes = vector_bytes(*index_);
    struct stat status {};
    if (::stat(options_.index.c_str(), &status) == 0) {
      report_.file_bytes = static_cast<std::uint64_t>(status.st_size);
    }
  }

  void load_truth() {
    if (options_.ground_truth.empty()) {
      const Neighbors exact =
          exact_search(*base_, queries_.data(), nq_, options_.k, report_.metric, progress_);
      truth_ = exact.ids;
      truth_k_ = options_.k;
      for (std::int64_t& id : truth_) {
        if (id >= 0 && !ids_.empty()) id = ids_[static_cast<std::size_t>(id)];
      }
      return;
    }
    const auto file = io::open_vectors(options_.ground_truth, std::nullopt, io::kNeighborsDataset);
    truth_k_ = file->dimension();
    if (truth_k_ < options_.k || file->rows() < nq_) {
      throw io::DataError(file->name() + ": holds " + std::to_string(truth_k_) + " neighbours of " +
                          std::to_string(file->rows()) + " queries; " + std::to_string(options_.k) +
                          " of " + std::to_string(nq_) + " are needed");
    }
    truth_.resize(nq_ * truth_k_);
    file->read_integers(0, nq_, truth_.data());
  }

  void search(std::size_t first, std::size_t n, float* scores, std::int64_t* ids) const {
    index_->search(static_cast<std::int64_t>(n), queries_.data() + first * reader_->dimension(),
                   static_cast<std::int64_t>(options_.k), scores, ids);
  }

  void measure() {
    found_.resize(nq_ * options_.k);
    std::vector<float> scores(nq_ * options_.k);
    search(0, nq_, scores.data(), found_.data());  // also warms the caches
    std::vector<double> runs;
    double total = 0;
    while (runs.empty() || (total < kBatchSeconds && runs.size() < kMaxBatchRuns)) {
      io::check_interrupt();
      runs.push_back(seconds_of([&] { search(0, nq_, scores.data(), found_.data()); }));
      total += runs.back();
    }
    std::sort(runs.begin(), runs.end());
    report_.batch_qps = static_cast<double>(nq_) / percentile(runs, 0.5);

    const std::size_t singles = std::min(nq_, kLatencyQueries);
    std::vector<double> latency(singles);
    std::vector<std::int64_t> ids(options_.k);
    progress_.begin("latency", singles);
    for (std::size_t q = 0; q < singles; ++q) {
      io::check_interrupt();
      latency[q] = 1e3 * seconds_of([&] { search(q, 1, scores.data(), ids.data()); });
      report_.latency_mean_ms += latency[q] / static_cast<double>(singles);
      progress_.update(q + 1);
    }
    progress_.end();
    std::sort(latency.begin(), latency.end());
    report_.latency_p50_ms = percentile(latency, 0.50);
    report_.latency_p95_ms = percentile(latency, 0.95);
    report_.latency_p99_ms = percentile(latency, 0.99);
  }

  const EvalOptions& options_;
  Progress& progress_;
  std::unique_ptr<io::VectorReader> reader_;
  std::unique_ptr<io::VectorReader> base_;
  std::unique_ptr<faiss::Index> index_;
  std::size_t nq_ = 0;
  std::vector<float> queries_;
  std::vector<std::int64_t> ids_;
  std::size_t truth_k_ = 0;
  std::vector<std::int64_t> truth_;
  std::vector<std::int64_t> found_;
  EvalReport report_;
};

}  // namespace

void count_recall(const std::vector<std::int64_t>& truth, std::size_t truth_k,
                  const std::vector<std::int64_t>& found, std::size_t k, EvalReport& report) {
  const std::size_t nq = found.size() / k;
  std::set<std::size_t> depths = {k};
  for (const std::size_t rank : kRanks) {
    if (rank <= k) depths.insert(rank);
  }
  for (const std::size_t depth : depths) {
    std::size_t nearest = 0;
    std::size_t shared = 0;
    std::size_t wanted = 0;
    for (std::size_t q = 0; q < nq; ++q) {
      const std::int64_t* t = truth.data() + q * truth_k;
      const std::set<std::int64_t> first(
          found.begin() + static_cast<std::ptrdiff_t>(q * k),
          found.begin() + static_cast<std::ptrdiff_t>(q * k + depth));
      nearest += t[0] >= 0 && first.count(t[0]) > 0;
      for (std::size_t i = 0; i < depth; ++i) {
        wanted += t[i] >= 0;  // -1: the base has fewer rows than that
        shared += t[i] >= 0 && first.count(t[i]) > 0;
      }
    }
    if (std::find(kRanks.begin(), kRanks.end(), depth) != kRanks.end()) {
      report.recall_at[depth] = static_cast<double>(nearest) / static_cast<double>(nq);
    }
    report.k_recall_at[depth] =
        wanted > 0 ? static_cast<double>(shared) / static_cast<double>(wanted) : 0;
  }
}

EvalReport evaluate_index(const EvalOptions& options, Progress& progress) {
  return Evaluation(options, progress).run();
}

}  // namespace turboquant::tools
