// The walk over rows of KernelTable::dot_rows: four at a time, so that each load of the query
// serves four products. Internal linkage, one copy per backend.
#pragma once

#include <cstring>

#include "kernels/kernel_table.h"

namespace turboquant::kernels {
namespace {

constexpr std::size_t kPrefetchBytes = 4096;

/// dot_four(row) gives the products of four rows as a register of four int32, dot_one(row) that of
/// one: graphs ask for one at a time. PrefetchBytes: how far ahead of a scan of consecutive rows
/// memory is asked for; 0 leaves that to the processor.
template <std::size_t PrefetchBytes, typename DotFour, typename DotOne>
inline void dot_by_four(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                        std::size_t n, std::int32_t* dots, const DotFour& dot_four,
                        const DotOne& dot_one) {
  const auto address = [&](std::size_t j) {
    return codes + stride * (rows != nullptr ? rows[j] : j);
  };
  std::size_t j = 0;
  for (; j + 4 <= n; j += 4) {
    const std::uint8_t* row[4] = {address(j), address(j + 1), address(j + 2), address(j + 3)};
    if (PrefetchBytes > 0 && rows == nullptr) {
      // Hardware prefetchers stop at page ends; a scan of rows must not.
      for (std::size_t at = 0; at < 4 * stride; at += 64) {
        __builtin_prefetch(row[0] + PrefetchBytes + at);
      }
    }
    const auto four = dot_four(row);
    std::memcpy(dots + j, &four, 4 * sizeof(std::int32_t));
  }
  if (j + 1 == n) {
    dots[j] = dot_one(address(j));
  } else if (j < n) {
    const std::uint8_t* row[4];
    for (std::size_t r = 0; r < 4; ++r) row[r] = address(j + r < n ? j + r : n - 1);
    const auto four = dot_four(row);
    std::memcpy(dots + j, &four, (n - j) * sizeof(std::int32_t));
  }
}

}  // namespace
}  // namespace turboquant::kernels
