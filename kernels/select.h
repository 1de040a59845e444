// KernelTable::select_tile and select_rows over the float registers of a backend. Internal linkage,
// one copy per backend.
#pragma once

#include "kernels/kernel_table.h"

namespace turboquant::kernels {
namespace {

// Lanes: kWidth floats in a Float; load, broadcast, multiply; passing(dots, scale, term, cutoff)
// has bit i set unless float(dots[i]) * scale[i] - term[i] <= cutoff[i].

/// A hit per bit of mask: make(i) for bit i.
template <typename Make>
inline Hit* append_hits(Hit* out, unsigned mask, const Make& make) {
  for (; mask != 0; mask &= mask - 1)
    *out++ = make(static_cast<std::uint32_t>(__builtin_ctz(mask)));
  return out;
}

template <typename Lanes>
std::size_t select_tile_with(const std::int32_t* dots, std::size_t n_rows, const float* row_scale,
                             const float* row_term, const float* query_term, const float* cutoff,
                             Hit* hits) {
  constexpr std::size_t kParts = kLane / Lanes::kWidth;
  typename Lanes::Float cut[kParts];
  typename Lanes::Float of_query[kParts];
  for (std::size_t p = 0; p < kParts; ++p) {
    cut[p] = Lanes::load(cutoff + p * Lanes::kWidth);
    of_query[p] =
        row_term != nullptr ? Lanes::load(query_term + p * Lanes::kWidth) : Lanes::broadcast(0);
  }
  Hit* out = hits;
  for (std::size_t r = 0; r < n_rows; ++r) {
    const auto of_row = Lanes::broadcast(row_term != nullptr ? row_term[r] : 0);
    const auto scale = Lanes::broadcast(row_scale[r]);
    const std::int32_t* row = dots + r * kLane;
    unsigned mask = 0;
    for (std::size_t p = 0; p < kParts; ++p) {
      const auto term = Lanes::multiply(of_row, of_query[p]);
      mask |= Lanes::passing(row + p * Lanes::kWidth, scale, term, cut[p]) << (p * Lanes::kWidth);
    }
    out = append_hits(out, mask, [&](std::uint32_t q) {
      return Hit{static_cast<std::uint32_t>(r), q, row[q]};
    });
  }
  return static_cast<std::size_t>(out - hits);
}

template <typename Lanes>
std::size_t select_rows_with(const std::int32_t* dots, std::size_t n, const float* row_scale,
                             const float* row_term, float query_term, float cutoff, Hit* hits) {
  const auto cut = Lanes::broadcast(cutoff);
  const auto of_query = Lanes::broadcast(query_term);
  Hit* out = hits;
  std::size_t r = 0;
  for (; r + Lanes::kWidth <= n; r += Lanes::kWidth) {
    const auto term = row_term != nullptr ? Lanes::multiply(Lanes::load(row_term + r), of_query)
                                          : Lanes::broadcast(0);
    const unsigned mask = Lanes::passing(dots + r, Lanes::load(row_scale + r), term, cut);
    out = append_hits(out, mask, [&](std::uint32_t i) {
      return Hit{static_cast<std::uint32_t>(r) + i, 0, dots[r + i]};
    });
  }
  for (; r < n; ++r) {
    const float term = row_term != nullptr ? row_term[r] * query_term : 0;
    if (!(static_cast<float>(dots[r]) * row_scale[r] - term <= cutoff)) {
      *out++ = {static_cast<std::uint32_t>(r), 0, dots[r]};
    }
  }
  return static_cast<std::size_t>(out - hits);
}

}  // namespace
}  // namespace turboquant::kernels
