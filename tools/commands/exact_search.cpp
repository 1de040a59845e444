#include "tools/commands/exact_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "tools/io/errors.h"
#include "tools/io/interrupt.h"

// BLAS, as FAISS links it; column-major.
// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int sgemm_(const char* transa, const char* transb, const int* m, const int* n,
                      const int* k, const float* alpha, const float* a, const int* lda,
                      const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace turboquant::tools {
namespace {

constexpr std::size_t kQueryBlock = 512;
constexpr std::size_t kBaseBlock = 4096;

double dot(const float* a, const float* b, std::size_t d) {
  double sum = 0;
  for (std::size_t i = 0; i < d; ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

double squared_distance(const float* a, const float* b, std::size_t d) {
  double sum = 0;
  for (std::size_t i = 0; i < d; ++i) {
    const double difference = double{a[i]} - double{b[i]};
    sum += difference * difference;
  }
  return sum;
}

std::vector<double> norms_of(const float* x, std::size_t n, std::size_t d) {
  std::vector<double> norms(n);
#pragma omp parallel for
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(n); ++i) {
    const float* row = x + static_cast<std::size_t>(i) * d;
    norms[static_cast<std::size_t>(i)] = std::sqrt(dot(row, row, d));
  }
  return norms;
}

// Keys order candidates: smaller is better.
struct Measure {
  SearchMetric metric;
  std::size_t dimension;

  double exact(const float* q, const float* x, double qn, double xn) const {
    if (metric == SearchMetric::kL2) return squared_distance(q, x, dimension);
    const double product = dot(q, x, dimension);
    if (metric == SearchMetric::kInnerProduct) return -product;
    return qn > 0 && xn > 0 ? -product / (qn * xn) : 0;
  }

  // A key that the exact one is certainly not below, from the float product s: rounding errors of
  // a sum of d products are at most d eps |q||x|.
  double lower_bound(double s, double qn, double xn) const {
    if (!std::isfinite(s)) return -std::numeric_limits<double>::infinity();  // overflow: look
    const double error = 1.01 * static_cast<double>(dimension + 1) * 0x1p-24 * qn * xn +
                         static_cast<double>(dimension) * 0x1p-126;
    if (metric == SearchMetric::kL2) return qn * qn + xn * xn - 2 * s - 3 * error;
    if (metric == SearchMetric::kInnerProduct) return -s - error;
    return qn > 0 && xn > 0 ? -(s + error) / (qn * xn) - 1e-12 : 0;
  }

  float score(double key) const {
    return static_cast<float>(metric == SearchMetric::kL2 ? key : -key);
  }
};

// The k smallest (key, id) pairs, as a heap with the worst on top.
class TopK {
 public:
  explicit TopK(std::size_t k) : k_(k) {}
  bool may_take(double lower_bound) const {
    return heap_.size() < k_ || lower_bound <= heap_.front().first;
  }
  void offer(double key, std::int64_t id) {
    const std::pair<double, std::int64_t> entry(key, id);
    if (heap_.size() == k_) {
      if (!(entry < heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.back() = entry;
    } else {
      heap_.push_back(entry);
    }
    std::push_heap(heap_.begin(), heap_.end());
  }
  std::vector<std::pair<double, std::int64_t>> sorted() {
    std::sort_heap(heap_.begin(), heap_.end());
    return std::move(heap_);
  }

 private:
  std::size_t k_;
  std::vector<std::pair<double, std::int64_t>> heap_;
};

struct Block {
  const float* x;
  const double* norms;
  std::size_t n;
};

// scores[q][x] = <q, x> in float.
void products(const Block& queries, const Block& base, std::size_t d, float* scores) {
  const int rows = static_cast<int>(base.n);
  const int columns = static_cast<int>(queries.n);
  const int depth = static_cast<int>(d);
  const float one = 1;
  const float zero = 0;
  sgemm_("T", "N", &rows, &columns, &depth, &one, base.x, &depth, queries.x, &depth, &zero, scores,
         &rows);
}

void take_block(const Measure& measure, const Block& queries, const Block& base,
                std::uint64_t first_row, const float* scores, TopK* best) {
  const std::size_t d = measure.dimension;
#pragma omp parallel for schedule(dynamic, 8)
  for (std::int64_t q = 0; q < static_cast<std::int64_t>(queries.n); ++q) {
    const auto i = static_cast<std::size_t>(q);
    const double qn = queries.norms[i];
    const float* row = scores + i * base.n;
    for (std::size_t j = 0; j < base.n; ++j) {
      const double xn = base.norms[j];
      if (!best[i].may_take(measure.lower_bound(row[j], qn, xn))) continue;
      best[i].offer(measure.exact(queries.x + i * d, base.x + j * d, qn, xn),
                    static_cast<std::int64_t>(first_row + j));
    }
  }
}

Neighbors collect(const Measure& measure, std::vector<TopK>& best, std::size_t k) {
  Neighbors result;
  result.k = k;
  result.ids.assign(best.size() * k, -1);
  const float worst = measure.metric == SearchMetric::kL2 ? std::numeric_limits<float>::max()
                                                          : std::numeric_limits<float>::lowest();
  result.scores.assign(best.size() * k, worst);
  for (std::size_t q = 0; q < best.size(); ++q) {
    const auto sorted = best[q].sorted();
    for (std::size_t rank = 0; rank < sorted.size(); ++rank) {
      result.scores[q * k + rank] = measure.score(sorted[rank].first);
      result.ids[q * k + rank] = sorted[rank].second;
    }
  }
  return result;
}

}  // namespace

Neighbors exact_search(io::VectorReader& base, const float* queries, std::size_t nq, std::size_t k,
                       SearchMetric metric, Progress& progress) {
  const std::size_t d = base.dimension();
  const Measure measure{metric, d};
  const std::vector<double> query_norms = norms_of(queries, nq, d);
  std::vector<TopK> best(nq, TopK(k));
  std::vector<float> rows(std::min<std::uint64_t>(kBaseBlock, base.rows()) * d);
  std::vector<float> scores(std::min(kQueryBlock, nq) * kBaseBlock);
  progress.begin("exact", base.rows());
  for (std::uint64_t first = 0; first < base.rows();) {
    io::check_interrupt();
    const auto n =
        static_cast<std::size_t>(std::min<std::uint64_t>(kBaseBlock, base.rows() - first));
    io::read_finite(base, first, n, rows.data());
    const std::vector<double> norms = norms_of(rows.data(), n, d);
    const Block block{rows.data(), norms.data(), n};
    for (std::size_t q = 0; q < nq; q += kQueryBlock) {
      const Block some{queries + q * d, query_norms.data() + q, std::min(kQueryBlock, nq - q)};
      products(some, block, d, scores.data());
      take_block(measure, some, block, first, scores.data(), best.data() + q);
    }
    first += n;
    progress.update(first);
  }
  progress.end();
  return collect(measure, best, k);
}

}  // namespace turboquant::tools
