// The constants of the format: pinned, and derived once more.
#include "quantizer/levels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace turboquant {
namespace {

double density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0)); }
double below(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }

// Distortion of N(0, 1) when magnitudes are cut at `edges` and replaced by `levels`.
double distortion(const std::vector<double>& levels, const std::vector<double>& edges) {
  double product = 0, square = 0;
  for (std::size_t i = 0; i < levels.size(); ++i) {
    const double low = i == 0 ? 0 : edges[i - 1];
    const double high_density = i < edges.size() ? density(edges[i]) : 0;
    const double high_below = i < edges.size() ? below(edges[i]) : 1;
    product += 2 * levels[i] * (density(low) - high_density);
    square += 2 * levels[i] * levels[i] * (high_below - below(low));
  }
  return 1 - 2 * product + square;
}

TEST(Levels, AreTheFormats) {
  const std::vector<std::vector<int>> positive = {
      {1}, {3, 10}, {3, 9, 16, 26}, {3, 9, 15, 21, 28, 36, 46, 61}};
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::CodeTable& table = level_table(bits);
    const int half = 1 << (bits - 1);
    EXPECT_EQ(table.bits, bits);
    EXPECT_EQ(table.offset, positive[bits - 1].back());
    for (int i = 0; i < half; ++i) {
      EXPECT_EQ(table.levels[half + i], positive[bits - 1][i]);
      EXPECT_EQ(table.levels[half - 1 - i], -positive[bits - 1][i]);
    }
    for (int i = 2 * half; i < 16; ++i) EXPECT_EQ(table.levels[i], table.levels[i % (2 * half)]);
  }
  EXPECT_THROW(level_table(0), std::invalid_argument);
  EXPECT_THROW(level_table(5), std::invalid_argument);
}

// One pair sum of u8 x s8 must fit in the int16 of AVX2's maddubs, and as many as the kernels add.
TEST(Levels, PairSumsFitInSixteenBits) {
  const int sums[] = {16, 4, 2, 1};
  for (int bits = 1; bits <= 4; ++bits) {
    EXPECT_LE(sums[bits - 1] * 2 * (2 * level_table(bits).offset) * 127, 32767);
  }
}

TEST(Levels, ThresholdsAreMidpointsOfScaledLevels) {
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::CodeTable& table = level_table(bits);
    const int half = 1 << (bits - 1);
    for (int i = 0; i + 1 < half; ++i) {
      const double middle =
          level_step(bits) * (table.levels[half + i] + table.levels[half + i + 1]) / 2;
      EXPECT_EQ(table.thresholds[i], static_cast<float>(middle));
    }
    for (int i = half - 1; i < 8; ++i) EXPECT_TRUE(std::isinf(table.thresholds[i]));
  }
}

// Distortion of the integer tables, and that no other step does better.
TEST(Levels, StepIsOptimalAndDistortionIsLloydMax) {
  const double lloyd_max[] = {0.363380, 0.117482, 0.034548, 0.009501};
  const double loss[] = {1e-5, 1e-5, 0.0013, 0.0023};
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::CodeTable& table = level_table(bits);
    const int half = 1 << (bits - 1);
    const auto at_step = [&](double step) {
      std::vector<double> levels, edges;
      for (int i = 0; i < half; ++i) levels.push_back(step * table.levels[half + i]);
      for (int i = 0; i + 1 < half; ++i) edges.push_back((levels[i] + levels[i + 1]) / 2);
      return distortion(levels, edges);
    };
    const double best = at_step(level_step(bits));
    EXPECT_NEAR(best, lloyd_max[bits - 1], lloyd_max[bits - 1] * loss[bits - 1] + 1e-6);
    EXPECT_LT(best, at_step(level_step(bits) * 1.001));
    EXPECT_LT(best, at_step(level_step(bits) * 0.999));
  }
}

TEST(Levels, QjlTablesSplitACode) {
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::CodeTable levels = qjl_level_table(bits);
    const kernels::CodeTable signs = qjl_sign_table(bits);
    for (int code = 0; code < 1 << bits; ++code) {
      const int low = code & ((1 << (bits - 1)) - 1);
      EXPECT_EQ(levels.levels[code], bits == 1 ? 0 : level_table(bits - 1).levels[low]);
      EXPECT_EQ(signs.levels[code], code >> (bits - 1) != 0 ? 1 : -1);
    }
  }
}

}  // namespace
}  // namespace turboquant
