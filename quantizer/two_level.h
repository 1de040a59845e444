// Rows of a code in two parts: the leading bits of every coordinate, which are a code of their own,
// and the bits that are left. Nothing is stored twice (docs/two_level.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "turboquant/quantizer.h"

namespace turboquant {

class TwoLevel {
 public:
  /// first_bits: 1 to bits - 1. whole must be kTurboQuant or kMse. Throws std::invalid_argument
  /// otherwise.
  TwoLevel(const Quantizer& whole, int first_bits);

  const Quantizer& whole() const { return whole_; }
  /// Scores the rows of leading bits.
  const Quantizer& first() const { return first_; }
  int first_bits() const { return first_.options().bits; }

  std::size_t first_size() const { return first_.code_size(); }
  std::size_t rest_size() const { return rest_size_; }

  /// rows[n][whole code size] to first[n][first_size] and rest[n][rest_size].
  void split(const std::uint8_t* rows, std::size_t n, std::uint8_t* first,
             std::uint8_t* rest) const;

  /// The inverse, of rows 0 to n - 1, or of those whose numbers are in rows[n]. Bits past the last
  /// coordinate come back as 0.
  void join(const std::uint8_t* first, const std::uint8_t* rest, const std::int64_t* numbers,
            std::size_t n, std::uint8_t* rows) const;

 private:
  Quantizer whole_;
  Quantizer first_;
  int rest_bits_;
  std::size_t rest_size_;
};

}  // namespace turboquant
