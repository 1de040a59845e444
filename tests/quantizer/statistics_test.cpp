// The numbers of the literature: distortion, variance, unbiasedness.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/quantizer/vectors.h"
#include "turboquant/quantizer.h"

namespace turboquant {
namespace {

QuantizerOptions options(std::size_t d, int bits, Estimator estimator, std::uint64_t seed = 1) {
  QuantizerOptions o;
  o.dimension = d;
  o.bits = bits;
  o.estimator = estimator;
  o.seed = seed;
  return o;
}

struct Moments {
  double mean = 0;
  double variance = 0;
};

Moments moments(const std::vector<double>& v) {
  Moments m;
  for (const double x : v) m.mean += x / static_cast<double>(v.size());
  for (const double x : v) {
    m.variance += (x - m.mean) * (x - m.mean) / static_cast<double>(v.size() - 1);
  }
  return m;
}

// Errors of the estimated products of nq unit queries with n unit vectors, for one seed.
std::vector<double> errors(const QuantizerOptions& o, std::size_t n, std::size_t nq) {
  const std::size_t d = o.dimension;
  const std::vector<float> x = unit_vectors(n, d, 1000 + o.seed);
  const std::vector<float> q = unit_vectors(nq, d, 2000 + o.seed);
  const Quantizer quantizer(o);
  std::vector<std::uint8_t> codes(n * quantizer.code_size());
  quantizer.quantize(x.data(), n, codes.data());
  std::vector<float> products(nq * n);
  quantizer.inner_products(q.data(), nq, codes.data(), n, products.data());
  std::vector<double> all;
  for (std::size_t i = 0; i < nq; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      all.push_back(products[i * n + j] - dot(&q[i * d], &x[j * d], d));
    }
  }
  return all;
}

TEST(Statistics, MseDistortionIsThePapers) {
  const double expected[] = {0.3634, 0.1175, 0.0345, 0.0095};
  constexpr std::size_t d = 1536, n = 400;
  const std::vector<float> x = unit_vectors(n, d, 3);
  for (int bits = 1; bits <= 4; ++bits) {
    const Quantizer quantizer(options(d, bits, Estimator::kMse));
    std::vector<std::uint8_t> codes(n * quantizer.code_size());
    quantizer.quantize(x.data(), n, codes.data());
    std::vector<float> y(n * d);
    quantizer.dequantize(codes.data(), n, y.data());
    double distortion = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      distortion += (y[i] - x[i]) * (y[i] - x[i]) / static_cast<double>(n);
    }
    EXPECT_NEAR(distortion, expected[bits - 1], 0.015 * expected[bits - 1]) << bits;
  }
}

TEST(Statistics, VarianceOfTurboQuant) {
  const double expected[] = {0.571, 0.133, 0.0358, 0.0096};
  for (int bits = 1; bits <= 4; ++bits) {
    const Moments m = moments(errors(options(1536, bits, Estimator::kTurboQuant), 1000, 40));
    EXPECT_NEAR(m.variance * 1536, expected[bits - 1], 0.03 * expected[bits - 1]) << bits;
  }
}

// What a trellis of 256 states reaches, at most; a scalar code is at 0.571, 0.133, 0.0358, 0.0096.
TEST(Statistics, VarianceOfTrellisCodes) {
  const double most[] = {0.39, 0.085, 0.0222, 0.0063};
  for (int bits = 1; bits <= 4; ++bits) {
    const Moments m = moments(errors(options(384, bits, Estimator::kTrellis), 1000, 40));
    EXPECT_LE(m.variance * 384, most[bits - 1]) << bits;
    EXPECT_GE(m.variance * 384, 0.9 * most[bits - 1]) << bits;
  }
}

// pi / 2 times the distortion of one bit less. The paper rounds the last to 0.047, from a
// distortion of 0.03 at 3 bits; 0.0345, which its own table gives elsewhere, makes 0.0543.
TEST(Statistics, VarianceOfQjlWithGaussianProjection) {
  const double expected[] = {1.571, 0.571, 0.1845, 0.0543};
  for (int bits = 1; bits <= 4; ++bits) {
    double sum = 0;
    constexpr int kSeeds = 3;
    for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
      QuantizerOptions o = options(1536, bits, Estimator::kQjl, seed);
      o.projection = Projection::kGaussian;
      sum += moments(errors(o, 120, 120)).variance * 1536 / kSeeds;
    }
    EXPECT_NEAR(sum, expected[bits - 1], 0.05 * expected[bits - 1]) << bits;
  }
}

TEST(Statistics, VarianceOfQjlWithOrthogonalProjectionIsSmaller) {
  // Measured on embeddings at 2 to 4 bits: 0.206, 0.067, 0.020; pi / 2 - 1 times the distortion.
  const double expected[] = {0.571, 0.2074, 0.0670, 0.0197};
  for (int bits = 1; bits <= 4; ++bits) {
    const Moments m = moments(errors(options(1536, bits, Estimator::kQjl), 600, 40));
    EXPECT_NEAR(m.variance * 1536, expected[bits - 1], 0.05 * expected[bits - 1]) << bits;
  }
}

// Estimates of <q, x> over seeds, one pair of vectors.
std::vector<double> over_seeds(QuantizerOptions o, const float* q, const float* x,
                               std::size_t seeds) {
  std::vector<double> estimates;
  for (std::size_t seed = 0; seed < seeds; ++seed) {
    o.seed = 77000 + seed;
    const Quantizer quantizer(o);
    std::vector<std::uint8_t> code(quantizer.code_size());
    quantizer.quantize(x, 1, code.data());
    float product;
    quantizer.inner_products(q, 1, code.data(), 1, &product);
    estimates.push_back(product);
  }
  return estimates;
}

TEST(Statistics, MeanOverSeedsIsTheProduct) {
  constexpr std::size_t kSeeds = 1000;
  for (const std::size_t d : {100, 384}) {
    const std::vector<float> x = unit_vectors(1, d, 11);
    std::vector<float> q = unit_vectors(1, d, 12);
    for (std::size_t i = 0; i < d; ++i) q[i] = 0.5f * q[i] + 0.7f * x[i];
    const double truth = dot(q.data(), x.data(), d);
    for (const Estimator estimator : {Estimator::kTurboQuant, Estimator::kQjl}) {
      for (int bits = 1; bits <= 4; ++bits) {
        const Moments m =
            moments(over_seeds(options(d, bits, estimator), q.data(), x.data(), kSeeds));
        const double error = std::sqrt(m.variance / kSeeds);
        EXPECT_LT(std::fabs(m.mean - truth), 3 * error)
            << d << " bits " << bits << " estimator " << static_cast<int>(estimator);
      }
    }
    QuantizerOptions gaussian = options(100, 2, Estimator::kQjl);
    gaussian.projection = Projection::kGaussian;
    if (d != 100) continue;
    const Moments m = moments(over_seeds(gaussian, q.data(), x.data(), kSeeds));
    EXPECT_LT(std::fabs(m.mean - truth), 3 * std::sqrt(m.variance / kSeeds));
  }
}

TEST(Statistics, MseShrinksByOneMinusDistortion) {
  const double distortion[] = {0.3634, 0.1175, 0.0345, 0.0095};
  constexpr std::size_t d = 384;
  const std::vector<float> x = unit_vectors(1, d, 21);
  for (int bits = 1; bits <= 4; ++bits) {
    const Moments m =
        moments(over_seeds(options(d, bits, Estimator::kMse), x.data(), x.data(), 300));
    EXPECT_NEAR(m.mean, 1 - distortion[bits - 1], 0.004) << bits;
  }
}

// No input is so concentrated that the estimate is biased or its variance grows.
TEST(Statistics, AdversarialInputsAreUnbiasedAtTheSameVariance) {
  constexpr std::size_t kSeeds = 400;
  struct Case {
    Estimator estimator;
    int bits;
    double variance;
  };
  const Case cases[] = {{Estimator::kTurboQuant, 1, 0.571},
                        {Estimator::kTurboQuant, 3, 0.0358},
                        {Estimator::kTrellis, 1, 0.378},
                        {Estimator::kTrellis, 3, 0.0216}};
  for (const std::size_t d : {100, 128, 384, 1536}) {
    const std::vector<float> q = unit_vectors(1, d, 31);
    for (const NamedVector& input : adversarial_vectors(d)) {
      for (const auto& [estimator, bits, variance] : cases) {
        const double truth = dot(q.data(), input.x.data(), d);
        const Moments m =
            moments(over_seeds(options(d, bits, estimator), q.data(), input.x.data(), kSeeds));
        // 128 comparisons: 4.5 standard errors.
        EXPECT_LT(std::fabs(m.mean - truth), 4.5 * std::sqrt(m.variance / kSeeds))
            << input.name << " d " << d << " bits " << bits;
        EXPECT_NEAR(m.variance * static_cast<double>(d), variance, 0.35 * variance)
            << input.name << " d " << d << " bits " << bits;
      }
    }
  }
}

}  // namespace
}  // namespace turboquant
