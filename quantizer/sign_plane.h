// The sign bits of rows of codes as a plane of their own: a quarter of the bytes of 4-bit codes,
// laid out for KernelTable::sign_sums. A first pass over it tells most rows from the nearest ones,
// and often over the first half or quarter of each row already: after a random rotation any
// coordinates are as good as others.
//
// With z the levels of a row, v = sign z in the coordinates that are looked at and 0 in others,
// c = |z|^2 / <z, v> and r = z - c v, which is orthogonal to z, a row's product s <u, z> is
// s c <u, v> + s <u, r>: an estimate and an error of mean 0 and deviation s |u_r| |r| / sqrt(d)
// over the rotation, u_r the part of u orthogonal to z.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantizer/aligned.h"
#include "turboquant/quantizer.h"

namespace turboquant {

class SignPlane {
 public:
  /// The first bytes of each row's signs, and what turns their sums into products.
  struct Prefix {
    std::size_t row_bytes;
    AlignedVector<float> scales;  // s c of each row
    std::vector<float> spreads;   // largest |r| / (c sqrt(d)) in each block
  };

  /// Codes of more than one bit whose score comes from levels alone.
  static bool supports(const QuantizerOptions& options) {
    return options.bits > 1 && options.estimator != Estimator::kQjl;
  }

  SignPlane(const Quantizer& quantizer, Metric metric);

  /// Takes rows [rows(), n) of codes[n][code_size]. Uses OpenMP threads.
  void extend(const std::uint8_t* codes, std::size_t n);

  std::size_t rows() const { return rows_; }
  std::size_t bytes() const;

  /// Blocks of 64 rows, the last one filled up.
  std::size_t blocks() const { return prefixes_[0].spreads.size(); }
  std::size_t row_bytes() const { return prefixes_[0].row_bytes; }
  std::size_t block_bytes() const { return 64 * row_bytes(); }
  const std::uint8_t* block(std::size_t b) const { return signs_.data() + b * block_bytes(); }
  /// Longest first, which is whole rows.
  const std::vector<Prefix>& prefixes() const { return prefixes_; }
  /// Quantizer::Impl::term of each row where rows have one (else null).
  const float* terms() const { return terms_.empty() ? nullptr : terms_.data(); }

 private:
  void fill_block(std::size_t b, std::size_t first, std::size_t last, const std::uint8_t* codes);

  Quantizer quantizer_;
  Metric metric_;
  std::vector<Prefix> prefixes_;
  std::size_t rows_ = 0;
  AlignedVector<std::uint8_t> signs_;  // [blocks][row_bytes][64]
  AlignedVector<float> terms_;
};

}  // namespace turboquant
