// What a Quantizer holds, and the row format seen from inside (docs/code_format.md).
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>
#include <optional>

#include "kernels/kernel_table.h"
#include "quantizer/gaussian.h"
#include "quantizer/rotation.h"
#include "turboquant/quantizer.h"

namespace turboquant {

struct Quantizer::Impl {
  explicit Impl(const QuantizerOptions& options);

  QuantizerOptions options;
  const kernels::KernelTable& kernels;
  Rotation rotation;
  std::optional<Rotation> projection;          // kQjl with an orthogonal G
  std::optional<GaussianProjection> gaussian;  // kQjl with a Gaussian G

  kernels::CodeTable levels;  // how to read the level of a code
  kernels::CodeTable signs;   // kQjl: how to read its sign
  std::size_t packed;         // bytes of the codes
  std::size_t padded;         // d rounded up to kBlock
  double sqrt_d;

  bool two_parts() const { return options.estimator == Estimator::kQjl; }
  std::size_t code_size() const {
    return packed + 4 * (1u + (two_parts() ? 1u : 0u) + (options.with_norm ? 1u : 0u));
  }

  // Factors behind the codes of a row.
  static float read_float(const std::uint8_t* at) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  float scale(const std::uint8_t* row) const { return read_float(row + packed); }
  float residual_scale(const std::uint8_t* row) const { return read_float(row + packed + 4); }
  float norm_squared(const std::uint8_t* row) const { return read_float(row + code_size() - 4); }

  /// Projects y by G, in place of `out`.
  void project(const float* y, float* out) const;
  void project_transposed(const float* y, float* out) const;
};

/// float(value), with the largest finite float in place of overflow.
inline float saturate(double value) {
  return value > FLT_MAX ? FLT_MAX : static_cast<float>(value);
}

/// The product that every score starts from; the order of operations is part of the format. Zero
/// has no sign, so that equal scores are equal bits.
inline float scaled_product(std::int32_t dot, float row_scale, float query_scale) {
  const float factor = row_scale * query_scale;
  return static_cast<float>(dot) * (factor < FLT_MAX ? factor : FLT_MAX) + 0.0f;
}

/// Squared distance from an estimated product; NaN (overflow on both sides) counts as infinity.
inline float squared_distance(float query_norm, float row_norm, float product) {
  const float distance = (query_norm + row_norm) - 2 * product;
  return distance == distance ? distance : HUGE_VALF;
}

}  // namespace turboquant
