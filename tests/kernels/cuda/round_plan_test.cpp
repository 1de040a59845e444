#include "kernels/cuda/round_plan.h"

#include <gtest/gtest.h>

#include <vector>

namespace turboquant::cuda {
namespace {

void expect_every_tile_once(const std::vector<Round>& plan, std::size_t tiles) {
  std::vector<int> seen(tiles);
  for (const Round& round : plan) {
    for (std::uint32_t j = 0; j < round.tiles; ++j) {
      ASSERT_LT(round.tile(j), tiles);
      ++seen[round.tile(j)];
    }
  }
  for (std::size_t t = 0; t < tiles; ++t) ASSERT_EQ(seen[t], 1) << "tile " << t;
}

TEST(RoundPlan, EveryTileOnceAndTheSampleHasRoom) {
  for (const std::size_t tile_rows : {16, 32}) {
    for (const std::size_t k : {1, 10, 100, 1000, 2048}) {
      for (const std::size_t queries : {1, 1000}) {
        const std::size_t capacity = candidate_capacity(queries, k);
        EXPECT_GE(capacity, 4 * k);
        for (const std::size_t n : {1, 15, 16, 17, 4096, 4097, 16384, 16400, 50000, 1000003}) {
          const std::size_t tiles = (n + tile_rows - 1) / tile_rows;
          const std::vector<Round> plan = plan_rounds(n, tile_rows, k, capacity);
          expect_every_tile_once(plan, tiles);
          EXPECT_TRUE(plan[0].positional);
          EXPECT_LE(plan[0].tiles * tile_rows, capacity);
          for (std::size_t i = 1; i < plan.size(); ++i) EXPECT_FALSE(plan[i].positional);
        }
      }
    }
  }
}

TEST(RoundPlan, RowsInNoOrderFillAtMostHalfOfTheRoom) {
  for (const std::size_t k : {1, 10, 100, 1000, 2048}) {
    const std::size_t capacity = candidate_capacity(1000, k);
    const std::vector<Round> plan = plan_rounds(5000000, 32, k, capacity);
    double done = plan[0].tiles;
    for (std::size_t i = 1; i < plan.size(); ++i) {
      // Of the rows of a round, as many beat the k-th best so far as in proportion.
      EXPECT_LE(static_cast<double>(k) * (1 + plan[i].tiles / done),
                static_cast<double>(capacity) * 0.51);
      done += plan[i].tiles;
    }
  }
}

TEST(RoundPlan, SafeRoundsHaveRoomForEverything) {
  for (const std::size_t k : {1, 100, 2048}) {
    const std::size_t capacity = candidate_capacity(1000, k);
    const std::vector<Round> plan = plan_safe_rounds(1000003, 32, k, capacity);
    expect_every_tile_once(plan, (1000003 + 31) / 32);
    EXPECT_LE(plan[0].tiles * 32, capacity);
    for (std::size_t i = 1; i < plan.size(); ++i) EXPECT_LE(plan[i].tiles * 32 + k, capacity);
  }
}

TEST(RoundPlan, NoRows) {
  const std::vector<Round> plan = plan_rounds(0, 32, 10, 4096);
  ASSERT_EQ(plan.size(), 1U);
  EXPECT_EQ(plan[0].tiles, 0U);
}

}  // namespace
}  // namespace turboquant::cuda
