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

  // kTrellis: how to read the levels of a row; null otherwise. `levels` has the bits and the
  // offset.
  const kernels::TrellisTable* trellis = nullptr;
  kernels::CodeTable levels;  // how to read the level of a code
  kernels::CodeTable signs;   // kQjl: how to read its sign
  std::size_t packed;         // bytes of the codes
  std::size_t padded;         // d rounded up to kBlock
  double sqrt_d;
  float centre_norm_squared = 0;

  bool two_parts() const { return options.estimator == Estimator::kQjl; }
  bool centred() const { return !options.centre.empty(); }
  std::size_t code_size() const {
    return packed + 4 * (1u + (two_parts() ? 1u : 0u) + (centred() ? 1u : 0u) +
                         (options.with_norm ? 1u : 0u));
  }

  // Factors behind the codes of a row.
  static float read_float(const std::uint8_t* at) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  // Where the factors of a row stand, in bytes from its start.
  std::size_t scale_at() const { return packed; }
  std::size_t residual_at() const { return packed + 4; }
  std::size_t centre_at() const { return packed + (two_parts() ? 8 : 4); }
  std::size_t norm_at() const { return code_size() - 4; }
  float scale(const std::uint8_t* row) const { return read_float(row + scale_at()); }
  float residual_scale(const std::uint8_t* row) const { return read_float(row + residual_at()); }
  float centre_product(const std::uint8_t* row) const { return read_float(row + centre_at()); }
  float norm_squared(const std::uint8_t* row) const { return read_float(row + norm_at()); }

  /// Levels of a row as `table`, which is levels or signs, reads its codes.
  void decode(const std::uint8_t* row, const kernels::CodeTable& table, std::int8_t* out) const {
    if (trellis != nullptr) {
      kernels.trellis_decode(row, options.dimension, *trellis, 0, out);
    } else {
      kernels.decode(row, options.dimension, options.bits, table.levels, out);
    }
  }

  /// KernelTable::dot_rows over rows of this format.
  void dot_rows(const std::uint8_t* codes, const std::uint32_t* rows, std::size_t n,
                const kernels::CodeTable& table, kernels::QueryView query,
                std::int32_t* dots) const {
    if (trellis != nullptr) {
      kernels.trellis_dot_rows(codes, code_size(), rows, n, options.dimension, *trellis, query,
                               dots);
    } else {
      kernels.dot_rows(codes, code_size(), rows, n, options.dimension, table, query, dots);
    }
  }

  /// out[i] = x[i] - centre[i].
  void subtract_centre(const float* x, float* out) const {
    for (std::size_t i = 0; i < options.dimension; ++i) out[i] = x[i] - options.centre[i];
  }

  /// The part of a row's score that depends on the row alone and not on its codes, for the cut-offs
  /// of ScanQueries: products and distances fall as it grows. Lowered by more than rounding.
  float term(const std::uint8_t* row, Metric metric) const {
    return term(metric == Metric::kL2 ? norm_squared(row) : 0, centred() ? centre_product(row) : 0,
                metric);
  }
  static float term(float norm, float centre_product, Metric metric) {
    const float product = (metric == Metric::kL2 ? 2.0f : 1.0f) * centre_product;
    return (norm - product) - (norm + std::fabs(product)) * 1e-6f;
  }

  /// Projects y by G, in place of `out`.
  void project(const float* y, float* out) const;
  void project_transposed(const float* y, float* out) const;
};

/// float(value), with the largest finite float in place of overflow and 0 in place of NaN, which is
/// left of a sum in float whose parts overflow to both sides.
inline float saturate(double value) {
  if (std::isnan(value)) return 0;
  if (value < -FLT_MAX) return -FLT_MAX;
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
