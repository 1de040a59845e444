// The tables of the trellis codes, pinned. derive_trellis, a test of its own, derives them again.
#include "quantizer/trellis.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace turboquant {
namespace {

TEST(Trellis, TablesAreTheFormats) {
  const std::vector<int> upper[] = {{1, 5},
                                    {1, 3, 6, 11},
                                    {1, 4, 6, 9, 12, 16, 22, 31},
                                    {1, 3, 5, 7, 9, 11, 13, 16, 18, 21, 24, 28, 33, 39, 47, 59}};
  const double steps[] = {0.24779434330210054, 0.17292780504915067, 0.080766106959691997,
                          0.050246606625615461};
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::TrellisTable& table = trellis_table(bits);
    EXPECT_EQ(table.bits, bits);
    const std::vector<int>& expected = upper[bits - 1];
    const std::size_t half = expected.size();
    for (std::size_t r = 0; r < half; ++r) {
      EXPECT_EQ(table.levels[half + r], expected[r]) << bits;
      EXPECT_EQ(table.levels[half - 1 - r], -expected[r]) << bits;
    }
    EXPECT_EQ(trellis_step(bits), steps[bits - 1]);
  }
  EXPECT_THROW(trellis_table(0), std::invalid_argument);
  EXPECT_THROW(trellis_table(5), std::invalid_argument);
}

// As many pair sums as AVX2 adds fit in 16 bits.
TEST(Trellis, LevelsAreSmall) {
  const int sums[] = {8, 4, 2, 1};
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::TrellisTable& table = trellis_table(bits);
    EXPECT_EQ(table.offset, table.levels[(2 << bits) - 1]);
    EXPECT_LE(sums[bits - 1] * 2 * (2 * table.offset) * 127, 32767);
  }
}

// What the encoder and the kernels rely on: the present bit and the oldest one turn the same bit of
// a label, and a path whose bits are all turned has all labels turned.
TEST(Trellis, LabelsTurn) {
  for (int bits = 1; bits <= 4; ++bits) {
    EXPECT_EQ(kernels::trellis_label(0, bits), 0u);
    for (unsigned window = 0; window < 512; ++window) {
      const unsigned label = kernels::trellis_label(window, bits);
      EXPECT_EQ(kernels::trellis_label(window ^ 1, bits), label ^ 2);
      EXPECT_EQ(kernels::trellis_label(window ^ 256, bits), label ^ 2);
      EXPECT_EQ(kernels::trellis_label(window ^ 511, bits), label ^ 3);
    }
  }
}

TEST(Trellis, TargetsAreLevelsInUnitsOfTheEncoder) {
  for (int bits = 1; bits <= 4; ++bits) {
    const kernels::TrellisTable& table = trellis_table(bits);
    const int units = static_cast<int>(8192 * trellis_step(bits));
    const int most = 8192 / units + 1;
    EXPECT_NEAR(table.factor, 8192, most);
    for (int r = 0; r < 2 << bits; ++r) {
      EXPECT_EQ(table.targets[r], table.levels[r] * units);
      EXPECT_LE(std::abs(table.levels[r] * units), 32767);
    }
  }
}

TEST(Trellis, BytesOfARow) {
  for (std::size_t d = 1; d <= 300; ++d) {
    for (int bits = 1; bits <= 4; ++bits) {
      EXPECT_EQ(kernels::trellis_bytes(d, bits), 1 + (d * static_cast<std::size_t>(bits) + 7) / 8);
    }
  }
}

// Every coordinate has a place of its own in the planes, and the places give it back.
TEST(Trellis, PlacesOfCoordinates) {
  for (std::size_t d = 1; d <= 300; ++d) {
    for (int bits = 1; bits <= 4; ++bits) {
      const int width = kernels::coded_width(bits);
      const std::size_t bytes = kernels::packed_bytes(d, width);
      std::vector<bool> taken(bytes * 8);
      for (std::size_t i = 0; i < d; ++i) {
        const kernels::PlanePlace at = kernels::plane_place(i, d, width);
        ASSERT_LT(at.byte, bytes);
        ASSERT_LT(at.field, 8 / static_cast<std::size_t>(width));
        EXPECT_FALSE(taken[at.byte * 8 + at.field]);
        taken[at.byte * 8 + at.field] = true;
        EXPECT_EQ(kernels::plane_coordinate(at, d, width), i);
      }
      for (std::size_t byte = 0; byte < bytes; ++byte) {
        for (std::size_t field = 0; field < 8 / static_cast<std::size_t>(width); ++field) {
          if (!taken[byte * 8 + field]) {
            EXPECT_GE(kernels::plane_coordinate({byte, field}, d, width), d);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace turboquant
