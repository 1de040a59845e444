// The paper's projection: a d x d matrix of independent N(0, 1) entries (Algorithm 2). O(d^2)
// memory and time; kept for those who want the paper's table.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quantizer/aligned.h"

namespace turboquant {

class GaussianProjection {
 public:
  GaussianProjection(std::size_t d, std::uint64_t seed);

  /// out = G y; out and y of d floats, not overlapping. Same bits on every processor.
  void apply(const float* y, float* out) const;

  /// out = G^T y.
  void apply_transposed(const float* y, float* out) const;

  /// [d][d]
  const float* entries() const { return entries_.data(); }

 private:
  std::size_t d_;
  AlignedVector<float> entries_;  // [d][d]
};

}  // namespace turboquant
