// The operands of KernelTable::dot_tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/kernel_table.h"
#include "quantizer/quantizer_impl.h"

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

/// Decodes rows to what dot_tile wants. impl must outlive it.
class TileDecoder {
 public:
  /// table: the levels or the signs of impl.
  TileDecoder(const Quantizer::Impl& impl, const kernels::CodeTable& table)
      : impl_(impl), levels_(impl.kernels, table) {}

  void decode(const std::uint8_t* row, std::int8_t* out) const {
    const auto& options = impl_.options;
    if (impl_.trellis != nullptr) {
      const std::int32_t add = impl_.kernels.unsigned_rows ? impl_.trellis->offset : 0;
      impl_.kernels.trellis_decode(row, options.dimension, *impl_.trellis, add, out);
    } else {
      impl_.kernels.decode(row, options.dimension, options.bits, levels_.values, out);
    }
  }

 private:
  const Quantizer::Impl& impl_;
  TileLevels levels_;
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
