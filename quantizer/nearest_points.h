// The nearest few of many float points, as scores of all of them in floats order them: integer
// products and a bound on what rounding did to them leave a few points to compute.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "quantizer/prepared_queries.h"

namespace turboquant {

class NearestPoints {
 public:
  /// points: [n][d], n up to 2^32 - 1. Only their rounded rotations are kept, so searches need the
  /// points again. impl: its rotation is used; without a centre; must outlive this object.
  NearestPoints(const Quantizer::Impl& impl, Metric metric, const float* points, std::size_t n);

  std::size_t size() const { return n_; }
  std::size_t bytes() const;

  /// Numbers of the k nearest points of each query, nearest first, equal scores by the smaller
  /// number; numbers is [nq][k], -1 where there are no more. Scores are those of `score`.
  /// points: as at construction. Queries are finite. Uses OpenMP threads.
  void search(const float* points, const float* queries, std::size_t nq, std::size_t k,
              std::int64_t* numbers) const;

  /// Product or squared distance in floats. difference: room for d floats.
  static float score(const kernels::KernelTable& kernels, Metric metric, const float* query,
                     const float* point, std::size_t d, float* difference);

  /// search of one query without integers: computes every score.
  static void scan(const kernels::KernelTable& kernels, Metric metric, const float* points,
                   std::size_t n, std::size_t d, const float* query, std::size_t k,
                   std::int64_t* numbers);

 private:
  class Screen;

  const Quantizer::Impl& impl_;
  const Metric metric_;
  const std::size_t n_;
  const std::size_t padded_rows_;
  bool usable_ = false;              // else every search is a scan
  float longest_ = 0;                // largest length_
  float largest_error_ = 0;          // largest error_
  AlignedVector<std::int8_t> rows_;  // [padded_rows][impl.padded], operands of dot_tile
  std::vector<float> scale_;         // [n] a value times this is the rotated point
  std::vector<float> length_;        // [n] |x|
  std::vector<float> error_;         // [n] length of what rounding took from it
  std::vector<float> half_norm_;     // [n] |x|^2 / 2 with kL2, else empty
};

}  // namespace turboquant
