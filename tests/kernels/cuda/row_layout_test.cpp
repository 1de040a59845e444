#include "kernels/cuda/row_layout.h"

#include <gtest/gtest.h>

#include <vector>

namespace turboquant::cuda {
namespace {

TEST(RowLayout, EveryCoordinateHasOnePlaceInADecodedRow) {
  for (int bits = 1; bits <= 4; ++bits) {
    for (const int d : {1, 64, 65, 200, 1000, 1536}) {
      const RowLayout layout(d, bits);
      std::vector<int> seen(static_cast<std::size_t>(layout.operand_bytes()));
      for (int chunk = 0; chunk < layout.groups * kLanesOfRow; ++chunk) {
        for (int reg = 0; reg < 4 * quads_of(layout.code); ++reg) {
          for (int byte = 0; byte < 4; ++byte) {
            const int i = coordinate_of(bits, chunk, reg, byte);
            ASSERT_GE(i, 0);
            ASSERT_LT(static_cast<std::size_t>(i), seen.size());
            ++seen[static_cast<std::size_t>(i)];
          }
        }
      }
      for (const int times : seen) ASSERT_EQ(times, 1) << bits << " bits, d " << d;
      EXPECT_EQ(layout.stride % 16, 0);
      EXPECT_GE(layout.stride * 8, layout.blocks * 64 * bits);
    }
  }
}

TEST(RowLayout, EveryCoordinateOfATrellisCodeHasOnePlace) {
  for (int bits = 1; bits <= 4; ++bits) {
    for (const int d : {1, 2, 7, 50, 63, 64, 65, 100, 200, 384, 1000, 1536}) {
      const RowLayout layout(d, bits, true);
      std::vector<int> seen(static_cast<std::size_t>(d));
      for (int chunk = 0; chunk < layout.groups * kLanesOfRow; ++chunk) {
        for (int reg = 0; reg < 4 * quads_of(layout.code); ++reg) {
          for (int byte = 0; byte < 4; ++byte) {
            const int i = trellis_coordinate_of(layout, layout.code, chunk, reg, byte);
            ASSERT_GE(i, 0);
            if (i < d) ++seen[static_cast<std::size_t>(i)];
          }
        }
      }
      for (const int times : seen) ASSERT_EQ(times, 1) << bits << " bits, d " << d;
      EXPECT_EQ(layout.stride % 16, 0);
    }
  }
}

}  // namespace
}  // namespace turboquant::cuda
