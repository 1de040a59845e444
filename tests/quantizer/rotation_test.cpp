#include "quantizer/rotation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/quantizer/vectors.h"

namespace turboquant {
namespace {

const kernels::KernelTable& table() { return kernels::active(); }

TEST(Rotation, KeepsProductsAndInverts) {
  for (const std::size_t d : {1,   2,   3,   5,   31,  32,   33,   50,   64,    96,
                              100, 127, 128, 200, 384, 1000, 1536, 3072, 65535, 65536}) {
    const Rotation rotation(d, 42);
    std::vector<float> x = gaussian_vectors(2, d, d);
    const double before = dot(&x[0], &x[d], d);
    const double norms = std::sqrt(dot(&x[0], &x[0], d) * dot(&x[d], &x[d], d));
    std::vector<float> y = x;
    rotation.apply(table(), &y[0]);
    rotation.apply(table(), &y[d]);
    EXPECT_NEAR(dot(&y[0], &y[d], d), before, 2e-6 * norms) << d;
    rotation.apply_inverse(table(), &y[0]);
    // A few roundings of each of log2(d) stages in each round.
    const double size = std::sqrt(norms / static_cast<double>(d));
    for (std::size_t i = 0; i < d; ++i) EXPECT_NEAR(y[i], x[i], 1e-5 * (size + 1)) << d;
  }
}

TEST(Rotation, SeedsDiffer) {
  std::vector<float> a = gaussian_vectors(1, 100, 1), b = a, c = a;
  Rotation(100, 1).apply(table(), a.data());
  Rotation(100, 1).apply(table(), b.data());
  Rotation(100, 2).apply(table(), c.data());
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

// Over seeds, a coordinate of sqrt(d) R x has the first moments of N(0, 1) at every place, however
// concentrated x is.
TEST(Rotation, CoordinatesOfAdversarialInputsLookGaussian) {
  constexpr std::size_t kSeeds = 400;
  for (const std::size_t d : {100, 128, 384, 1536}) {
    for (const NamedVector& input : adversarial_vectors(d)) {
      double second = 0, fourth = 0;
      std::vector<double> place(d, 0);
      for (std::size_t seed = 0; seed < kSeeds; ++seed) {
        std::vector<float> y = input.x;
        Rotation(d, seed).apply(table(), y.data());
        for (std::size_t i = 0; i < d; ++i) {
          const double v = y[i] * std::sqrt(static_cast<double>(d));
          place[i] += v * v / kSeeds;
          second += v * v;
          fourth += v * v * v * v;
        }
      }
      const double n = static_cast<double>(kSeeds * d);
      EXPECT_NEAR(second / n, 1, 1e-4) << input.name << " " << d;
      EXPECT_NEAR(fourth / n, 3, 0.2) << input.name << " " << d;
      // Mean square of one place over 400 seeds: standard deviation about 0.07.
      for (std::size_t i = 0; i < d; ++i) EXPECT_NEAR(place[i], 1, 0.45) << input.name << " " << d;
    }
  }
}

}  // namespace
}  // namespace turboquant
