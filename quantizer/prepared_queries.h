// Queries made ready for the integer kernels: rotated, rounded to int8, with what brings an
// integer product back to a score.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantizer/quantizer_impl.h"

namespace turboquant {

/// One reading of the codes (levels, or kQjl's signs) against all queries.
struct QueryPart {
  AlignedVector<std::int8_t> values;  ///< [nq][padded]
  std::vector<std::int32_t> sums;     ///< [nq] sum of values
  std::vector<float> scales;          ///< [nq] t: a value times t is the rotated query

  kernels::QueryView view(std::size_t q, std::size_t padded) const {
    return {values.data() + q * padded, sums[q]};
  }
};

/// A vector rotated at unit length, so that no norm overflows inside the transform.
class UnitRotation {
 public:
  explicit UnitRotation(const Quantizer::Impl& impl) : values_(impl.padded) {}

  /// False when x[d] holds NaN or infinity.
  bool set(const Quantizer::Impl& impl, const float* x);

  const float* values() const { return values_.data(); }  ///< [d] R x / |x|; zeros for a zero
  double norm() const { return norm_; }                   ///< |x|

 private:
  AlignedVector<float> values_;
  double norm_ = 0;
};

class PreparedQueries {
 public:
  /// queries: [nq][d]. Throws std::invalid_argument naming the first query that holds NaN or
  /// infinity. `impl` must outlive this object.
  PreparedQueries(const Quantizer::Impl& impl, const float* queries, std::size_t nq);

  /// Room for nq queries of zeros, for set and set_rotated.
  PreparedQueries(const Quantizer::Impl& impl, std::size_t nq);

  /// Floats that a thread needs to prepare queries; reused from one to the next.
  struct Scratch {
    explicit Scratch(const Quantizer::Impl& impl)
        : rotated(impl.padded), projected(impl.two_parts() ? impl.padded : 0) {}
    AlignedVector<float> rotated, projected;
  };

  /// Makes query[d] number q. False when it holds NaN or infinity; number q is then unspecified.
  bool set(std::size_t q, const float* query, Scratch& scratch);

  /// The same for the difference of two vectors, whose rotations are known. Without a centre.
  bool set_difference(std::size_t q, const float* query, const UnitRotation& query_rotation,
                      const float* point, const UnitRotation& point_rotation, Scratch& scratch);

  const Quantizer::Impl& impl() const { return impl_; }
  std::size_t size() const { return norms_squared.size(); }

  /// out[j]: estimated product of query q with row j (or rows[j]) of `codes`.
  void products(std::size_t q, const std::uint8_t* codes, const std::uint32_t* rows, std::size_t n,
                float* out) const;

  QueryPart levels;
  QueryPart signs;                   ///< empty unless kQjl
  std::vector<float> norms_squared;  ///< [nq] |q|^2, saturated
  std::vector<float> offsets;        ///< [nq] <q, c> - |c|^2; empty without a centre c

  /// 0 without a centre.
  float offset(std::size_t q) const { return impl_.centred() ? offsets[q] : 0; }

  /// The estimate from what the codes give: what the centre adds comes last.
  float with_centre(std::size_t q, float product, const std::uint8_t* row) const {
    return impl_.centred() ? product + (impl_.centre_product(row) + offsets[q]) : product;
  }

 private:
  // scratch.rotated holds R q / norm.
  void set_rotated(std::size_t q, double norm, double norm_squared, Scratch& scratch);

  const Quantizer::Impl& impl_;
};

}  // namespace turboquant
