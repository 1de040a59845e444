// A block of the rows of a scan: which they are, and the floats behind their codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "quantizer/quantizer_impl.h"

namespace turboquant {

/// Row j of n starts at codes + size * (chosen ? chosen[j] : j).
struct BlockRows {
  const std::uint8_t* codes;
  std::size_t size;
  const std::uint32_t* chosen;
  std::size_t n;

  const std::uint8_t* operator[](std::size_t j) const {
    return codes + size * (chosen != nullptr ? chosen[j] : j);
  }
};

/// Collects the numbers of up to `most` rows that the mask names, from `row` on and below `end`, in
/// ids; *count is how many. Returns where to go on.
inline std::size_t take_rows(const std::uint64_t* mask, std::size_t row, std::size_t end,
                             std::size_t most, std::uint32_t* ids, std::size_t* count) {
  std::size_t n = 0;
  while (row < end && n < most) {
    const std::uint64_t word = mask[row / 64] >> (row % 64);
    if (word == 0) {
      row = (row / 64 + 1) * 64;
      continue;
    }
    row += static_cast<std::size_t>(__builtin_ctzll(word));
    if (row < end) ids[n++] = static_cast<std::uint32_t>(row++);
  }
  *count = n;
  return row;
}

namespace block_rows {
using Four = float __attribute__((vector_size(16)));  // a store of four takes less time than four

inline std::int64_t read_two(const std::uint8_t* at) {
  std::int64_t both;
  std::memcpy(&both, at, 8);
  return both;
}
}  // namespace block_rows

/// to[j] = the factor of row j that stands `offset` bytes behind its start.
inline void load_factor(const BlockRows& rows, std::size_t offset, float* to) {
  using block_rows::Four;
  const auto read = [](const std::uint8_t* at) { return Quantizer::Impl::read_float(at); };
  std::size_t j = 0;
  if (rows.chosen == nullptr) {
    const std::size_t size = rows.size;
    const std::uint8_t* at = rows.codes + offset;
    for (; j + 4 <= rows.n; j += 4, at += 4 * size) {
      const Four four = {read(at), read(at + size), read(at + 2 * size), read(at + 3 * size)};
      std::memcpy(to + j, &four, sizeof four);
    }
  }
  for (; j < rows.n; ++j) to[j] = read(rows[j] + offset);
}

/// The same for two neighbouring factors.
inline void load_factors(const BlockRows& rows, std::size_t offset, float* first, float* second) {
  using block_rows::Four;
  using block_rows::read_two;
  using Pairs = std::int64_t __attribute__((vector_size(16)));
  std::size_t j = 0;
  if (rows.chosen == nullptr) {
    const std::size_t size = rows.size;
    const std::uint8_t* at = rows.codes + offset;
    for (; j + 4 <= rows.n; j += 4, at += 4 * size) {
      const auto a = reinterpret_cast<Four>(Pairs{read_two(at), read_two(at + size)});
      const auto b =
          reinterpret_cast<Four>(Pairs{read_two(at + 2 * size), read_two(at + 3 * size)});
      const Four firsts = __builtin_shufflevector(a, b, 0, 2, 4, 6);
      const Four seconds = __builtin_shufflevector(a, b, 1, 3, 5, 7);
      std::memcpy(first + j, &firsts, sizeof firsts);
      std::memcpy(second + j, &seconds, sizeof seconds);
    }
  }
  for (; j < rows.n; ++j) {
    first[j] = Quantizer::Impl::read_float(rows[j] + offset);
    second[j] = Quantizer::Impl::read_float(rows[j] + offset + 4);
  }
}

/// Lowers norm[n] and the products with the centre, in term[n], to Quantizer::Impl::term in
/// term[n]. norm: null for inner products.
inline void lower_terms(Metric metric, const float* norm, std::size_t n, float* term) {
  const auto lower = [&](const auto& norm_of) {
    for (std::size_t j = 0; j < n; ++j) {
      term[j] = Quantizer::Impl::term(norm_of(j), term[j], metric);
    }
  };
  if (norm != nullptr) {
    lower([norm](std::size_t j) { return norm[j]; });
  } else {
    lower([](std::size_t) { return 0.0f; });
  }
}

}  // namespace turboquant
