#include "quantizer/prepared_queries.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>

#include "quantizer/parallel.h"

namespace turboquant {
namespace {

void resize(QueryPart& part, std::size_t nq, std::size_t padded) {
  part.values.resize(nq * padded);
  part.sums.resize(nq);
  part.scales.resize(nq);
}

// u: d floats, norm what they are to be multiplied by.
void round_query(const Quantizer::Impl& impl, const float* u, double norm, std::size_t q,
                 QueryPart& part) {
  const std::size_t d = impl.options.dimension;
  std::int8_t* values = part.values.data() + q * impl.padded;
  const float largest = impl.kernels.max_abs(u, d);
  if (norm == 0 || largest == 0) {
    std::fill_n(values, impl.padded, std::int8_t{0});
    part.sums[q] = 0;
    part.scales[q] = 0;
    return;
  }
  part.sums[q] = impl.kernels.quantize_query(u, d, 127 / largest, values);
  part.scales[q] = saturate(norm * largest / 127);
}

}  // namespace

bool UnitRotation::set(const Quantizer::Impl& impl, const float* x) {
  const double norm_squared = impl.kernels.norm_squared(x, impl.options.dimension);
  if (!std::isfinite(norm_squared)) return false;
  norm_ = std::sqrt(norm_squared);
  impl.kernels.scale(x, impl.options.dimension, norm_ > 0 ? 1 / norm_ : 0, values_.data());
  impl.rotation.apply(impl.kernels, values_.data());
  return true;
}

PreparedQueries::PreparedQueries(const Quantizer::Impl& impl, std::size_t nq)
    : norms_squared(nq), offsets(impl.centred() ? nq : 0), impl_(impl) {
  resize(levels, nq, impl.padded);
  if (impl.two_parts()) resize(signs, nq, impl.padded);
}

PreparedQueries::PreparedQueries(const Quantizer::Impl& impl, const float* queries, std::size_t nq)
    : PreparedQueries(impl, nq) {
  const std::size_t d = impl.options.dimension;
  std::atomic<std::size_t> bad_query{nq};
#pragma omp parallel if (nq * d > 50000)
  {
    Scratch scratch(impl);
#pragma omp for schedule(static)
    for (std::size_t q = 0; q < nq; ++q) {
      if (!set(q, queries + q * d, scratch)) lower(bad_query, q);
    }
  }
  if (bad_query < nq) {
    throw std::invalid_argument("query " + std::to_string(bad_query.load()) +
                                " holds NaN or infinity");
  }
}

bool PreparedQueries::set(std::size_t q, const float* query, Scratch& scratch) {
  const std::size_t d = impl_.options.dimension;
  float* rotated = scratch.rotated.data();
  const double norm_squared = impl_.kernels.norm_squared(query, d);
  if (!std::isfinite(norm_squared)) return false;
  double norm = std::sqrt(norm_squared);
  if (impl_.centred()) {
    const float* centre = impl_.options.centre.data();
    offsets[q] = saturate(static_cast<double>(impl_.kernels.dot(query, centre, d)) -
                          impl_.centre_norm_squared);
    impl_.subtract_centre(query, rotated);
    const double rest_squared = impl_.kernels.norm_squared(rotated, d);
    if (!std::isfinite(rest_squared)) return false;
    norm = std::sqrt(rest_squared);
    query = rotated;
  }
  // Rotated at unit length, so that no norm overflows inside the transform.
  impl_.kernels.scale(query, d, norm > 0 ? 1 / norm : 0, rotated);
  impl_.rotation.apply(impl_.kernels, rotated);
  set_rotated(q, norm, norm_squared, scratch);
  return true;
}

bool PreparedQueries::set_difference(std::size_t q, const float* query,
                                     const UnitRotation& query_rotation, const float* point,
                                     const UnitRotation& point_rotation, Scratch& scratch) {
  const std::size_t d = impl_.options.dimension;
  float* rotated = scratch.rotated.data();
  // The length is that of the difference itself: between close vectors far from 0 the rotations
  // differ by little more than their rounding.
  for (std::size_t i = 0; i < d; ++i) rotated[i] = query[i] - point[i];
  const double norm_squared = impl_.kernels.norm_squared(rotated, d);
  if (!std::isfinite(norm_squared)) return false;
  const double unit = std::max(query_rotation.norm(), point_rotation.norm());
  const double factor = unit > 0 ? 1 / unit : 0;
  impl_.kernels.scale(query_rotation.values(), d, query_rotation.norm() * factor, rotated);
  impl_.kernels.add_scaled(point_rotation.values(),
                           static_cast<float>(-point_rotation.norm() * factor), d, rotated);
  set_rotated(q, unit, norm_squared, scratch);
  return true;
}

void PreparedQueries::set_rotated(std::size_t q, double norm, double norm_squared,
                                  Scratch& scratch) {
  norms_squared[q] = saturate(norm_squared);
  round_query(impl_, scratch.rotated.data(), norm, q, levels);
  if (!impl_.two_parts()) return;
  impl_.project(scratch.rotated.data(), scratch.projected.data());
  round_query(impl_, scratch.projected.data(), norm, q, signs);
}

void PreparedQueries::products(std::size_t q, const std::uint8_t* codes, const std::uint32_t* rows,
                               std::size_t n, float* out) const {
  constexpr std::size_t kChunk = 256;
  const std::size_t size = impl_.code_size();
  std::int32_t dots[kChunk];
  for (std::size_t first = 0; first < n; first += kChunk) {
    const std::size_t count = std::min(kChunk, n - first);
    const std::uint8_t* base = rows != nullptr ? codes : codes + first * size;
    const std::uint32_t* chosen = rows != nullptr ? rows + first : nullptr;
    const auto row = [&](std::size_t j) {
      return base + size * (chosen != nullptr ? chosen[j] : j);
    };
    impl_.dot_rows(base, chosen, count, impl_.levels, levels.view(q, impl_.padded), dots);
    for (std::size_t j = 0; j < count; ++j) {
      out[first + j] = scaled_product(dots[j], impl_.scale(row(j)), levels.scales[q]);
    }
    if (impl_.two_parts()) {
      impl_.dot_rows(base, chosen, count, impl_.signs, signs.view(q, impl_.padded), dots);
      for (std::size_t j = 0; j < count; ++j) {
        out[first + j] += scaled_product(dots[j], impl_.residual_scale(row(j)), signs.scales[q]);
      }
    }
    for (std::size_t j = 0; impl_.centred() && j < count; ++j) {
      out[first + j] = with_centre(q, out[first + j], row(j));
    }
  }
}

}  // namespace turboquant
