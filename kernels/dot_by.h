// The walk over rows of KernelTable::dot_rows: several at a time, so that each load of the query
// serves as many products. Internal linkage, one copy per backend.
#pragma once

#include <cstring>

#include "kernels/kernel_table.h"

namespace turboquant::kernels {
namespace {

constexpr std::size_t kPrefetchBytes = 4096;

/// dot(row) gives the products of so many Rows as a register of int32, dot_one(row) that of one.
/// PrefetchBytes: how far ahead of a scan of consecutive rows memory is asked for; 0 leaves that to
/// the processor.
template <std::size_t Rows, std::size_t PrefetchBytes, typename Dot, typename DotOne>
inline void dot_by(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                   std::size_t n, std::int32_t* dots, const Dot& dot, const DotOne& dot_one) {
  const auto address = [&](std::size_t j) {
    const std::uint8_t* at = codes + stride * (rows != nullptr ? rows[j] : j);
    __asm__("" : "+r"(at));  // else the compiler computes four of them in a vector register
    return at;
  };
  const std::uint8_t* row[Rows];
  std::size_t j = 0;
  for (; j + Rows <= n; j += Rows) {
    for (std::size_t r = 0; r < Rows; ++r) row[r] = address(j + r);
    if (PrefetchBytes > 0 && rows == nullptr) {
      // Hardware prefetchers stop at page ends; a scan of rows must not.
      for (std::size_t at = 0; at < Rows * stride; at += 64) {
        __builtin_prefetch(row[0] + PrefetchBytes + at);
      }
    }
    const auto products = dot(row);
    std::memcpy(dots + j, &products, Rows * sizeof(std::int32_t));
  }
  if (n - j == 1) {
    dots[j] = dot_one(address(j));
  } else if (j < n) {
    for (std::size_t r = 0; r < Rows; ++r) row[r] = address(j + r < n ? j + r : n - 1);
    const auto products = dot(row);
    std::memcpy(dots + j, &products, (n - j) * sizeof(std::int32_t));
  }
}

/// The same without a way to take one row by itself.
template <std::size_t Rows, std::size_t PrefetchBytes, typename Dot>
inline void dot_by(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                   std::size_t n, std::int32_t* dots, const Dot& dot) {
  dot_by<Rows, PrefetchBytes>(codes, stride, rows, n, dots, dot, [&](const std::uint8_t* row) {
    const std::uint8_t* same[Rows];
    for (const std::uint8_t*& r : same) r = row;
    const auto products = dot(same);
    std::int32_t first;
    std::memcpy(&first, &products, sizeof first);
    return first;
  });
}

}  // namespace
}  // namespace turboquant::kernels
