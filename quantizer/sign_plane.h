// The sign bits of rows of codes as a plane of their own: a quarter of the bytes of 4-bit codes,
// laid out for KernelTable::sign_sums. A first pass over it tells most rows from the nearest ones.
//
// With z the levels of a row, c = |z|^2 / <z, sign z> and r = z - c sign z, which is orthogonal to
// z, a row's product s <u, z> is s c <u, sign z> + s <u, r>: an estimate and an error of mean 0 and
// deviation s |u_r| |r| / sqrt(d) over the rotation, u_r the part of u orthogonal to z.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantizer/aligned.h"
#include "turboquant/quantizer.h"

namespace turboquant {

class SignPlane {
 public:
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
  std::size_t blocks() const { return spreads_.size(); }
  std::size_t row_bytes() const { return row_bytes_; }
  const std::uint8_t* block(std::size_t b) const { return signs_.data() + b * 64 * row_bytes_; }
  /// s c of each row, and Quantizer::Impl::term where rows have one (else null).
  const float* scales() const { return scales_.data(); }
  const float* terms() const { return terms_.empty() ? nullptr : terms_.data(); }
  /// Largest |r| / (c sqrt(d)) in a block.
  float spread(std::size_t b) const { return spreads_[b]; }

 private:
  void fill_block(std::size_t b, std::size_t first, std::size_t last, const std::uint8_t* codes);

  Quantizer quantizer_;
  Metric metric_;
  std::size_t row_bytes_;
  std::size_t rows_ = 0;
  AlignedVector<std::uint8_t> signs_;  // [blocks][row_bytes][64]
  AlignedVector<float> scales_, terms_;
  std::vector<float> spreads_;
};

}  // namespace turboquant
