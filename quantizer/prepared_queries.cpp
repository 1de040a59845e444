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

PreparedQueries::PreparedQueries(const Quantizer::Impl& impl, const float* queries, std::size_t nq)
    : norms_squared(nq), offsets(impl.centred() ? nq : 0), impl_(impl) {
  const std::size_t d = impl.options.dimension;
  resize(levels, nq, impl.padded);
  if (impl.two_parts()) resize(signs, nq, impl.padded);
  std::atomic<std::size_t> bad_query{nq};
#pragma omp parallel if (nq * d > 50000)
  {
    AlignedVector<float> rotated(impl.padded);
    AlignedVector<float> projected(impl.two_parts() ? impl.padded : 0);
#pragma omp for schedule(static)
    for (std::size_t q = 0; q < nq; ++q) {
      if (!prepare(queries + q * d, q, rotated.data(), projected.data())) lower(bad_query, q);
    }
  }
  if (bad_query < nq) {
    throw std::invalid_argument("query " + std::to_string(bad_query.load()) +
                                " holds NaN or infinity");
  }
}

bool PreparedQueries::prepare(const float* query, std::size_t q, float* rotated, float* projected) {
  const std::size_t d = impl_.options.dimension;
  const double norm_squared = impl_.kernels.norm_squared(query, d);
  if (!std::isfinite(norm_squared)) return false;
  double norm = std::sqrt(norm_squared);
  norms_squared[q] = saturate(norm_squared);
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
  round_query(impl_, rotated, norm, q, levels);
  if (impl_.two_parts()) {
    impl_.project(rotated, projected);
    round_query(impl_, projected, norm, q, signs);
  }
  return true;
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
