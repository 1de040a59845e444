// The last coordinates of trellis codes of 3 bits, which lie in no plane. Internal linkage, one
// copy per backend.
#pragma once

#include <cstdint>

#include "kernels/code_layout.h"
#include "kernels/kernel_table.h"
#include "kernels/trellis_planes.h"

namespace turboquant::kernels {
namespace {

template <int Bits>
struct WindowLabels {
  constexpr WindowLabels() : of() {
    for (unsigned w = 0; w < 512; ++w) of[w] = static_cast<std::uint8_t>(trellis_label(w, Bits));
  }
  std::uint8_t of[512];
};
template <int Bits>
inline constexpr WindowLabels<Bits> kWindowLabels{};

// The last eight coded bits of a plane of that many bytes, the newest in bit 0.
inline unsigned last_coded_bits(const std::uint8_t* row, std::size_t bytes) {
  if (bytes == 0) return row[0];
  std::uint64_t end;
  if (bytes >= 8) {
    end = load<std::uint64_t>(row + 1 + bytes - 8);
  } else {
    end = load_short(row + 1, bytes) | bytes_before<3, true>(row, bytes) >> 8 * bytes;
  }
  // The top bits of eight bytes, the last one's first.
  return static_cast<unsigned>((end >> 7 & 0x0101010101010101u) * 0x8040201008040201u >> 56);
}

/// f(i, level) for the coordinates past the last whole eight of a 3-bit row.
template <typename Function>
inline void for_each_of_tail(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                             const Function& f) {
  const std::size_t bytes = d / 8;
  unsigned window = last_coded_bits(row, bytes);
  const std::size_t of_stream = packed_bytes(d % 8, 3);
  std::uint64_t codes = load_short(row + 1 + 3 * bytes, of_stream) >> 8 * (8 - of_stream);
  for (std::size_t i = 8 * bytes; i < d; ++i, codes >>= 3) {
    window = (window << 1 | (codes >> 2 & 1)) & 0x1ff;
    f(i, static_cast<std::int32_t>(table.levels[4 * (codes & 3) + kWindowLabels<3>.of[window]]));
  }
}

/// Writes what trellis_decode does for these; nothing with other codes.
inline void decode_tail(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                        std::int32_t add, std::int8_t* out) {
  if (trellis_tail(d, table.bits) == 0) return;
  for_each_of_tail(row, d, table, [&](std::size_t i, std::int32_t level) {
    out[i] = static_cast<std::int8_t>(level + add);
  });
}

/// The query less the tail.
inline QueryView query_of_planes(QueryView query, std::size_t d, int bits) {
  for (std::size_t i = d - trellis_tail(d, bits); i < d; ++i) query.sum -= query.values[i];
  return query;
}

/// Adds what trellis_dot_rows owes to the tail.
inline void add_tail_products(const std::uint8_t* codes, std::size_t stride,
                              const std::uint32_t* rows, std::size_t n, std::size_t d,
                              const TrellisTable& table, QueryView query, std::int32_t* dots) {
  if (trellis_tail(d, table.bits) == 0) return;
  for (std::size_t j = 0; j < n; ++j) {
    const std::uint8_t* row = codes + stride * (rows != nullptr ? rows[j] : j);
    for_each_of_tail(row, d, table, [&](std::size_t i, std::int32_t level) {
      dots[j] += level * query.values[i];
    });
  }
}

}  // namespace
}  // namespace turboquant::kernels
