// The sign bits of rows of codes as a plane of their own: a quarter of the bytes of 4-bit codes,
// laid out for KernelTable::sign_sums. A first pass over it tells most rows from the nearest ones,
// and often over the first half or quarter of each row already: after a random rotation any
// coordinates are as good as others.
//
// With z the levels of a row, v = sign z in the coordinates that are looked at and 0 in others,
// c = |z|^2 / <z, v> and r = z - c v, which is orthogonal to z, a row's product s <u, z> is
// s c <u, v> + s <u, r>: an estimate and an error of mean 0 and deviation s |u_r| |r| / sqrt(d)
// over the rotation, u_r the part of u orthogonal to z. The same holds for v = z in some
// coordinates and 0 in others, which is what searches of many queries look at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantizer/aligned.h"
#include "turboquant/quantizer.h"

namespace turboquant {

class SignPlane {
 public:
  /// Dimension from which supports_many() can be.
  static constexpr std::size_t kLongRows = 384;

  /// The first coordinates of each row, and what turns their sums into products.
  struct Prefix {
    std::size_t row_bytes;        // of the signs
    AlignedVector<float> scales;  // s c of each row
    std::vector<float> spreads;   // largest |r| / (c sqrt(d)) in each block; times s c for levels
  };

  /// Codes of more than one bit whose score comes from levels alone.
  static bool supports(const QuantizerOptions& options) {
    return options.bits > 1 && options.estimator != Estimator::kQjl;
  }

  /// Whether searches of many queries have a use for levels_prefix(). The first coordinates of a
  /// trellis code stand all over a row.
  static bool supports_many(const QuantizerOptions& options) {
    return supports(options) && options.estimator != Estimator::kTrellis &&
           options.dimension >= kLongRows;
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
  /// Of levels instead of signs; empty where rows are so short that it is of no use.
  bool has_levels_prefix() const { return levels_prefix_.row_bytes != 0; }
  const Prefix& levels_prefix() const { return levels_prefix_; }
  /// Quantizer::Impl::term of each row where rows have one (else null).
  const float* terms() const { return terms_.empty() ? nullptr : terms_.data(); }

 private:
  void fill_block(std::size_t b, std::size_t first, std::size_t last, const std::uint8_t* codes);

  Quantizer quantizer_;
  Metric metric_;
  std::vector<Prefix> prefixes_;
  Prefix levels_prefix_{0, {}, {}};
  std::size_t rows_ = 0;
  AlignedVector<std::uint8_t> signs_;  // [blocks][row_bytes][64]
  AlignedVector<float> terms_;
};

}  // namespace turboquant
