// What kernels that encode read of CodecTables, and the code of one value.
#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/row_layout.h"
#include "kernels/cuda/transform.cuh"

namespace turboquant::cuda {

// Magnitudes fall into cells a quarter wide, with at most one threshold in each: whether they reach
// it decides between two neighbouring ranks. Ranks and cells are counted in bytes of what they
// index.
struct Cell {
  float threshold;     // infinity where there is none
  std::uint32_t rank;  // below the threshold, times kRankStep
};
constexpr int kCells = 16;
constexpr std::uint32_t kRankStep = sizeof(float);

// Cell c ends where the next begins, at (8 c + 7.5) / 32.
__host__ __device__ constexpr float end_of_cell(int c) {
  return (static_cast<float>(8 * c) + 7.5f) / 32;
}

// Offset of the cell of magnitude a. Which cell a value beside a border falls into does not matter,
// only that all do alike: thresholds are not there.
__device__ __forceinline__ std::uint32_t cell_offset(float a) {
  static_assert(sizeof(Cell) == 8);
  return __float_as_uint(__fmaf_rn(fminf(a, 3.0f), 32.0f, 8388608.0f)) & (8 * (kCells - 1));
}

// Everything of CodecTables that kernels read.
struct CodecView {
  RowLayout layout;
  RotationView rotation;
  RotationView projection;
  const float* gaussian;
  const float* centre;
  float centre_norm_squared;
  bool two_parts;
  bool mse;
  bool with_norm;
  bool normalize;
  int quantizer_bits;
  Cell cells[kCells];
  float magnitudes[8];  // positive levels
  float step;
  double step_exact;
  double sqrt_d;
  std::int32_t offsets[2];  // bias per unit of a query's sum: levels, signs
  // A vector's part of the working memory, in bytes: floats, codes, a second vector of floats.
  int pitch;  // floats
  int bytes_of_vector;
};

// As saturate of quantizer/quantizer_impl.h.
__device__ inline float saturate(double value) {
  if (value != value) return 0;
  if (value < -FLT_MAX) return -FLT_MAX;
  return value > FLT_MAX ? FLT_MAX : static_cast<float>(value);
}

// kRankStep times the code of a value, which becomes its product with its level or, with kResidual,
// what the level leaves.
template <int kBits, bool kResidual>
__device__ __forceinline__ std::uint32_t code_of(float& value, const Cell* cells,
                                                 const float* magnitudes, float step) {
  const float a = fabsf(value);
  std::uint32_t rank = 0;
  float magnitude = 1;
  if constexpr (kBits > 1) {
    const Cell cell =
        *reinterpret_cast<const Cell*>(reinterpret_cast<const char*>(cells) + cell_offset(a));
    rank = cell.rank + (cell.threshold <= a ? kRankStep : 0);
    magnitude = *reinterpret_cast<const float*>(reinterpret_cast<const char*>(magnitudes) + rank);
  }
  constexpr std::uint32_t kHalf = kRankStep << (kBits - 1);
  const bool plus = value >= 0;
  if constexpr (kResidual) {
    value = value - step * (plus ? magnitude : -magnitude);
  } else {
    value = a * magnitude;
  }
  return (kHalf | rank) ^ (plus ? 0 : 2 * kHalf - kRankStep);
}

}  // namespace turboquant::cuda
