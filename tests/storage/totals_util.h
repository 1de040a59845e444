// What the counters of a collection have to be.
#pragma once

#include <gtest/gtest.h>

#include "storage/block.h"
#include "turboquant/store.h"

namespace turboquant::test {

/// info, of the state that the view shows, is what a walk over its rows finds.
inline void expect_totals(const storage::View& view, const CollectionInfo& info) {
  CollectionInfo walked;
  for (const auto& block : view.blocks) {
    const std::uint32_t live = block->live->count();
    walked.records += live;
    walked.dead_rows += block->rows - live;
    walked.memory_bytes += block->bytes();
    walked.block_bytes += block->disk_bytes;
  }
  EXPECT_EQ(walked.records, info.records);
  EXPECT_EQ(walked.records, view.live_rows);
  EXPECT_EQ(walked.dead_rows, info.dead_rows);
  EXPECT_EQ(walked.memory_bytes, info.memory_bytes);
  EXPECT_EQ(walked.block_bytes, info.block_bytes);
}

}  // namespace turboquant::test
