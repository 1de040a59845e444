// The nearest points by integers and bounds against scores of all of them.
#include "quantizer/nearest_points.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/forced_isa.h"
#include "tests/quantizer/vectors.h"

namespace turboquant {
namespace {

Quantizer quantizer(std::size_t d, Metric metric) {
  QuantizerOptions options;
  options.dimension = d;
  options.bits = 3;
  options.with_norm = metric == Metric::kL2;
  return Quantizer(options);
}

struct Case {
  std::size_t n, d, nq;
  Metric metric;
};

class NearestPointsTest : public testing::TestWithParam<Case> {
 protected:
  NearestPointsTest()
      : codec_(quantizer(GetParam().d, GetParam().metric)),
        points_(gaussian_vectors(GetParam().n, GetParam().d, 1)),
        queries_(gaussian_vectors(GetParam().nq, GetParam().d, 2)) {}

  void compare() {
    const auto [n, d, nq, metric] = GetParam();
    const NearestPoints nearest(codec_.impl(), metric, points_.data(), n);
    EXPECT_EQ(nearest.size(), n);
    EXPECT_GT(nearest.bytes(), n * d);
    for (const std::size_t k : {std::size_t{1}, std::size_t{3}, n / 10 + 1, n / 2 + 1, n, n + 4}) {
      std::vector<std::int64_t> found(nq * k, -7);
      std::vector<std::int64_t> expected(nq * k, -8);
      nearest.search(points_.data(), queries_.data(), nq, k, found.data());
      for (std::size_t q = 0; q < nq; ++q) {
        NearestPoints::scan(codec_.impl().kernels, metric, points_.data(), n, d, &queries_[q * d],
                            k, &expected[q * k]);
      }
      ASSERT_EQ(found, expected) << "k = " << k;
    }
  }

  void multiply(std::vector<float>& x, float factor) {
    for (float& value : x) value *= factor;
  }

  Quantizer codec_;
  std::vector<float> points_, queries_;
};

INSTANTIATE_TEST_SUITE_P(
    All, NearestPointsTest,
    testing::Values(Case{1, 8, 3, Metric::kInnerProduct}, Case{15, 100, 17, Metric::kL2},
                    Case{300, 20, 40, Metric::kInnerProduct}, Case{700, 384, 33, Metric::kL2},
                    Case{1030, 64, 50, Metric::kInnerProduct}, Case{2000, 3, 16, Metric::kL2}),
    [](const auto& instance) {
      return std::to_string(instance.param.n) + "x" + std::to_string(instance.param.d) +
             (instance.param.metric == Metric::kL2 ? "_L2" : "_IP");
    });

TEST_P(NearestPointsTest, Independent) {
  compare();
  const int threads = omp_get_max_threads();
  omp_set_num_threads(3);
  compare();
  omp_set_num_threads(threads);
}

// Points all in one direction, so that integers alone tell few of them apart.
TEST_P(NearestPointsTest, CloseTogether) {
  multiply(points_, 1e-4f);
  for (std::size_t i = 0; i < points_.size(); ++i) points_[i] += 1 + float(i % GetParam().d % 3);
  compare();
}

TEST_P(NearestPointsTest, EqualPointsAndQueriesAmongThem) {
  const std::size_t d = GetParam().d;
  for (std::size_t i = 0; i < GetParam().n; ++i) {
    std::copy_n(&points_[i % 5 * d % points_.size()], d, &points_[i * d]);
  }
  std::copy_n(points_.begin(), d, queries_.begin());
  compare();
}

TEST_P(NearestPointsTest, ZerosAndOneLargeCoordinate) {
  const std::size_t d = GetParam().d;
  std::fill_n(points_.begin(), d, 0.0f);
  std::fill_n(queries_.begin(), d, 0.0f);
  for (std::size_t i = d; i < points_.size(); i += d) points_[i] = 300;
  compare();
}

TEST_P(NearestPointsTest, LongAndShortVectors) {
  for (const float factor : {1e-30f, 1e-12f, 1e7f, 1e14f, 1e18f, 1e30f}) {
    points_ = gaussian_vectors(GetParam().n, GetParam().d, 1);
    queries_ = gaussian_vectors(GetParam().nq, GetParam().d, 2);
    multiply(points_, factor);
    compare();
    multiply(queries_, factor);
    compare();
  }
}

TEST_P(NearestPointsTest, VectorsOfManyLengths) {
  const std::size_t d = GetParam().d;
  for (std::size_t i = 0; i < points_.size(); ++i) {
    points_[i] *= std::pow(10.0f, static_cast<float>(i / d % 9) - 4);
  }
  compare();
}

}  // namespace
}  // namespace turboquant
