#include "tools/commands/estimate_statistics.h"

#include <faiss/IndexIVF.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/DistanceComputer.h>
#include <faiss/impl/FaissException.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "tools/commands/index_tree.h"
#include "tools/commands/sampling.h"

namespace turboquant::tools {
namespace {

constexpr std::size_t kQueries = 200;
constexpr std::size_t kRows = 1000;
constexpr std::uint64_t kSeed = 7;

double product(const float* a, const float* b, std::size_t d) {
  double sum = 0;
  for (std::size_t i = 0; i < d; ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

std::vector<float> transformed(const IndexParts& parts, const float* query, std::size_t d) {
  std::vector<float> x(query, query + d);
  for (const faiss::VectorTransform* transform : parts.transforms) {
    std::vector<float> out(static_cast<std::size_t>(transform->d_out));
    transform->apply_noalloc(1, x.data(), out.data());
    x = std::move(out);
  }
  return x;
}

// Estimates of <query, vector> in the space of the core. A core that measures distances gives the
// product by way of the two norms, which the caller knows exactly.
class ProductEstimator {
 public:
  explicit ProductEstimator(faiss::Index& core) : core_(core) {
    try {
      computer_.reset(core.get_distance_computer());
      return;
    } catch (const faiss::FaissException&) {
      if (auto* ivf = dynamic_cast<faiss::IndexIVF*>(&core)) ivf->make_direct_map(true);
      vector_.resize(static_cast<std::size_t>(core.d));
    }
  }

  const char* method() const { return computer_ ? "distance_computer" : "reconstruct"; }

  void set_query(const std::vector<float>& query) {
    query_ = query;
    if (computer_) computer_->set_query(query_.data());
  }

  double operator()(std::int64_t row, double squared_norms) {
    if (!computer_) {
      core_.reconstruct(row, vector_.data());
      return product(query_.data(), vector_.data(), vector_.size());
    }
    const double value = (*computer_)(row);
    return core_.metric_type == faiss::METRIC_L2 ? (squared_norms - value) / 2 : value;
  }

 private:
  faiss::Index& core_;
  std::unique_ptr<faiss::DistanceComputer> computer_;
  std::vector<float> query_;
  std::vector<float> vector_;
};

struct Pair {
  double truth;
  double estimate;
};

EstimateStatistics summarize(const std::vector<Pair>& pairs, std::size_t d) {
  EstimateStatistics result;
  double tt = 0;
  double te = 0;
  for (const Pair& pair : pairs) {
    tt += pair.truth * pair.truth;
    te += pair.truth * pair.estimate;
  }
  result.slope = te / tt;
  double squares = 0;
  for (const Pair& pair : pairs) {
    const double error = pair.estimate - result.slope * pair.truth;
    squares += error * error;
  }
  result.pairs = pairs.size();
  result.variance_times_d = squares / static_cast<double>(pairs.size()) * static_cast<double>(d);
  return result;
}

}  // namespace

std::optional<EstimateStatistics> estimate_statistics(faiss::Index& index, io::VectorReader& base,
                                                      const float* queries, std::size_t nq) {
  const IndexParts parts = parts_of(index);
  const bool cosine = metric_of(index) == SearchMetric::kCosine;
  const std::size_t d = base.dimension();
  const std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(kRows, base.rows()));
  const std::vector<std::uint64_t> rows = sample_rows(base.rows(), n, kSeed);
  const std::vector<float> x = read_sample(base, n, kSeed);
  std::vector<Pair> pairs;
  try {
    ProductEstimator estimator(*parts.core);
    for (std::size_t q = 0; q < std::min(nq, kQueries); ++q) {
      const float* query = queries + q * d;
      const double qq = product(query, query, d);
      if (!(qq > 0)) continue;
      estimator.set_query(transformed(parts, query, d));
      for (std::size_t i = 0; i < n; ++i) {
        const float* row = x.data() + i * d;
        const double xx = product(row, row, d);
        if (!(xx > 0)) continue;
        const double length = std::sqrt(qq * xx);
        // The core of a normalising index has seen unit vectors.
        const double estimate = estimator(static_cast<std::int64_t>(rows[i]), cosine ? 2 : qq + xx);
        pairs.push_back({product(query, row, d) / length, cosine ? estimate : estimate / length});
      }
    }
    if (pairs.empty()) return std::nullopt;
    EstimateStatistics result = summarize(pairs, d);
    result.method = estimator.method();
    return result;
  } catch (const faiss::FaissException&) {
    return std::nullopt;
  }
}

}  // namespace turboquant::tools
