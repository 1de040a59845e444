// Row bits of a block, and the index over its metadata that turns filters into row bits. The
// index of a block is immutable: a sorted list of values with their rows, per field. Scans take
// bits per block as they are, so the bits of a filter need memory of one block per thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "storage/compiled_filter.h"
#include "storage/records.h"

namespace turboquant::storage {

/// One bit per row of a block: bit i % 64 of word i / 64, as CodeRows::mask.
struct RowBits {
  std::array<std::uint64_t, kBlockRows / 64> words{};

  bool test(std::uint32_t i) const { return (words[i / 64] >> (i % 64) & 1u) != 0; }
  void set(std::uint32_t i) { words[i / 64] |= std::uint64_t{1} << (i % 64); }
  void reset(std::uint32_t i) { words[i / 64] &= ~(std::uint64_t{1} << (i % 64)); }
  std::uint32_t count() const;
  bool none() const;
  /// Bits 0 to n - 1.
  static RowBits first(std::uint32_t n);

  RowBits& operator&=(const RowBits& other);
  RowBits& operator|=(const RowBits& other);
  /// Without the rows of the other.
  RowBits& operator-=(const RowBits& other);
};

class BlockIndex {
 public:
  /// `before`, if any, is the index of the first rows; `added` are the values of those that follow.
  BlockIndex(const std::vector<FieldSchema>& fields, const BlockIndex* before,
             const std::vector<IndexedValues>& added);

  std::uint32_t rows() const { return rows_; }
  std::size_t bytes() const { return bytes_; }

  /// Rows among [0, rows()) that satisfy the filter.
  RowBits select(const FilterNode& node) const;

 private:
  template <class T>
  struct Postings {
    std::vector<T> values;             // ascending, different
    std::vector<std::uint32_t> begin;  // [values + 1] where a value's rows start
    std::vector<std::uint16_t> rows;
    RowBits exists;
  };
  using AnyPostings = std::variant<Postings<std::uint8_t>, Postings<std::int64_t>, Postings<double>,
                                   Postings<std::string>>;

  template <class T>
  static Postings<T> build(const Postings<T>* before, std::uint32_t first_row,
                           const std::vector<IndexedValues>& added, std::uint16_t field);
  template <class T>
  static void select_in(const Postings<T>& postings, const FilterNode& node, RowBits& bits);
  template <class T>
  static void select_range(const Postings<T>& postings, const FilterNode& node, RowBits& bits);

  std::uint32_t rows_ = 0;
  std::size_t bytes_ = 0;
  std::vector<AnyPostings> fields_;
};

}  // namespace turboquant::storage
