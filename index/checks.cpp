#include "index/checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernel_table.h"

namespace turboquant {
namespace {

constexpr std::int64_t kNoRow = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kParallelWork = std::size_t{1} << 18;  // floats that repay a team of threads

// Runs f(row), which tells whether the row is finite, for all rows; throws for the first that is
// not. Finite floats cannot overflow a sum of squares in double.
template <class F>
void for_finite_rows(std::int64_t n, std::size_t d, const char* what, std::int64_t first_row,
                     const F& f) {
  std::int64_t bad = kNoRow;
  [[maybe_unused]] const bool parallel = static_cast<std::size_t>(n) * d >= kParallelWork;
#pragma omp parallel for reduction(min : bad) if (parallel)
  for (std::int64_t row = 0; row < n; ++row) {
    if (!f(static_cast<std::size_t>(row))) bad = std::min(bad, row);
  }
  if (bad != kNoRow) {
    fail(std::string(what) + " " + std::to_string(first_row + bad) + " holds NaN or infinity");
  }
}

}  // namespace

void require_finite(const float* x, std::int64_t n, std::size_t d, const char* what) {
  const auto& kernel = kernels::active();
  for_finite_rows(n, d, what, 0, [&](std::size_t row) {
    return std::isfinite(kernel.norm_squared(x + row * d, d));
  });
}

void normalize_rows(const float* x, std::int64_t n, std::size_t d, const char* what, float* out,
                    std::int64_t first_row) {
  const auto& kernel = kernels::active();
  for_finite_rows(n, d, what, first_row, [&](std::size_t row) {
    const double sum = kernel.norm_squared(x + row * d, d);
    if (!std::isfinite(sum)) return false;
    kernel.scale(x + row * d, d, sum > 0 ? 1 / std::sqrt(sum) : 0, out + row * d);
    return true;
  });
}

Metric to_metric(faiss::MetricType metric) {
  if (metric == faiss::METRIC_INNER_PRODUCT) return Metric::kInnerProduct;
  if (metric == faiss::METRIC_L2) return Metric::kL2;
  fail("TurboQuant indexes have the metrics inner product and L2, not metric " +
       std::to_string(static_cast<int>(metric)));
}

Quantizer make_codec(std::int64_t dimension, const IndexOptions& options, faiss::MetricType metric,
                     const std::vector<float>& centre) {
  if (dimension < 1) fail("the dimension must be 1 or more, not " + std::to_string(dimension));
  if (options.estimator == Estimator::kQjl && options.projection == Projection::kGaussian &&
      dimension > kMaxGaussianDimension) {
    fail("the Gaussian projection is limited to dimension " +
         std::to_string(kMaxGaussianDimension) + ", not " + std::to_string(dimension));
  }
  QuantizerOptions codec;
  codec.dimension = static_cast<std::size_t>(dimension);
  codec.bits = options.bits;
  codec.estimator = options.estimator;
  codec.projection = options.projection;
  codec.with_norm = to_metric(metric) == Metric::kL2;
  codec.seed = options.seed;
  codec.centre = centre;
  if (options.centre && centre.empty()) codec.centre.assign(codec.dimension, 0.0f);
  return translate_errors([&] { return Quantizer(codec); });
}

void require_same_codes(const IndexOptions& a, const IndexOptions& b) {
  if (index_name(a) != index_name(b)) {
    fail("cannot merge " + index_name(b) + " into " + index_name(a));
  }
  if (a.seed != b.seed) {
    fail("cannot merge indexes with the seeds " + std::to_string(a.seed) + " and " +
         std::to_string(b.seed));
  }
}

}  // namespace turboquant
