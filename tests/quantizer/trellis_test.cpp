// The tables of the trellis codes, pinned. derive_trellis, a test of its own, derives them again.
#include "quantizer/trellis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace turboquant {
namespace {

std::uint64_t digest(const std::int8_t* levels) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t s = 0; s < kernels::kStates; ++s) {
    hash = (hash ^ static_cast<std::uint8_t>(levels[s])) * 0x100000001b3u;
  }
  return hash;
}

TEST(Trellis, TablesAreTheFormats) {
  const std::uint64_t expected[] = {0x944e37d0b9c927dd, 0xc1d0bf715125928d, 0x4d078b12fa80b035,
                                    0xed22e57d2f2e5e0d};
  const double steps[] = {0.13398935510341931, 0.1796399665517526, 0.10202524091311271,
                          0.054085903718304275};
  for (int bits = 1; bits <= 4; ++bits) {
    EXPECT_EQ(trellis_table(bits).bits, bits);
    EXPECT_EQ(digest(trellis_table(bits).levels), expected[bits - 1])
        << bits << std::hex << " 0x" << digest(trellis_table(bits).levels);
    EXPECT_EQ(trellis_step(bits), steps[bits - 1]);
  }
  EXPECT_THROW(trellis_table(0), std::invalid_argument);
  EXPECT_THROW(trellis_table(5), std::invalid_argument);
}

// What kernels rely on: a state and its complement mirror each other, levels stay within the
// offset, and as many pair sums as AVX2 adds fit in 16 bits.
TEST(Trellis, LevelsAreSymmetricAndSmall) {
  const int sums[] = {4, 4, 2, 1};
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::TrellisTable& table = trellis_table(bits);
    int largest = 0;
    for (std::size_t s = 0; s < kernels::kStates; ++s) {
      EXPECT_EQ(table.levels[s], -table.levels[kernels::kStates - 1 - s]);
      largest = std::max(largest, std::abs(int{table.levels[s]}));
    }
    EXPECT_LE(largest, table.offset);
    EXPECT_LE(sums[bits - 1] * 2 * (2 * table.offset) * 127, 32767);
  }
}

TEST(Trellis, TargetsAreLevelsInUnitsOfTheEncoder) {
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::TrellisTable& table = trellis_table(bits);
    const int units = static_cast<int>(8192 * trellis_step(bits));
    EXPECT_NEAR(table.factor, 8192, 8192 / units + 1);
    for (std::size_t s = 0; s < kernels::kStates; ++s) {
      EXPECT_EQ(table.targets[s], table.levels[s] * units);
      EXPECT_LE(std::abs(table.levels[s] * units), 32767);
    }
  }
}

}  // namespace
}  // namespace turboquant
