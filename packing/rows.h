// Rows of codes packed to about their entropy: what docs/packed_codes.md describes.
//
// Rows are cut into groups that are packed alone, so that threads share the work and a reader needs
// no more memory than the rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace turboquant::packing {

/// A row: packed_bytes(dimension, bits) bytes of codes, then floats up to code_size.
struct RowLayout {
  std::size_t dimension = 0;
  int bits = 0;
  std::size_t code_size = 0;
};

/// Rows of a group: all but the last group have so many.
std::size_t group_rows(const RowLayout& layout);

/// The least and the most bytes of a packed group of n rows.
std::size_t least_group_bytes(const RowLayout& layout, std::size_t n);
std::size_t most_group_bytes(const RowLayout& layout, std::size_t n);

/// Memory that the functions below use and that is worth keeping from group to group.
struct GroupScratch {
  std::vector<std::uint8_t> rows;
  std::vector<std::uint8_t> stream;
};

/// rows: [n][code_size], n at most group_rows(layout).
std::vector<std::uint8_t> pack_group(const RowLayout& layout, const std::uint8_t* rows,
                                     std::size_t n, GroupScratch& scratch);

/// The inverse, to rows[n][code_size]. False when the bytes are no group of n rows; what `rows`
/// then holds is unspecified.
bool unpack_group(const RowLayout& layout, const std::uint8_t* bytes, std::size_t size,
                  std::size_t n, std::uint8_t* rows, GroupScratch& scratch);

/// All groups of rows[n][code_size], each behind its size (uint32). Uses OpenMP threads.
std::vector<std::uint8_t> pack_rows(const RowLayout& layout, const std::uint8_t* rows,
                                    std::size_t n);

/// The inverse, which must use all bytes. Uses OpenMP threads.
bool unpack_rows(const RowLayout& layout, const std::uint8_t* bytes, std::size_t size,
                 std::size_t n, std::uint8_t* rows);

}  // namespace turboquant::packing
