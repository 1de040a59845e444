// The operands of KernelTable::dot_tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/kernel_table.h"

namespace turboquant {

/// The table that KernelTable::decode takes so that decoded rows are what dot_tile wants.
struct TileLevels {
  TileLevels(const kernels::KernelTable& kernels, const kernels::CodeTable& table) {
    for (int code = 0; code < 16; ++code) {
      const int level = table.levels[code] + (kernels.unsigned_rows ? table.offset : 0);
      values[code] = static_cast<std::int8_t>(level);
    }
  }
  std::int8_t values[16];
};

/// Puts query q, values[width], among `packed` [groups][width / 4][kLane][4].
inline void pack_tile_query(const std::int8_t* values, std::size_t q, std::size_t width,
                            std::int8_t* packed) {
  using kernels::kLane;
  std::int8_t* to = packed + q / kLane * kLane * width + q % kLane * 4;
  for (std::size_t i = 0; i < width; i += 4, to += 4 * kLane) std::memcpy(to, values + i, 4);
}

/// What the products of a query with that sum of values start from.
inline std::int32_t tile_bias(const kernels::KernelTable& kernels, const kernels::CodeTable& table,
                              std::int32_t sum) {
  return kernels.unsigned_rows ? -table.offset * sum : 0;
}

}  // namespace turboquant
