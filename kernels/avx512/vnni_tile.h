// The tile product of both VNNI backends. Internal linkage, one copy per backend.
#pragma once

#include "kernels/avx512/shared.h"

namespace turboquant::kernels {
namespace {

// Rows x Groups accumulators of 16 queries each. Unrolled by hand, so that GCC keeps them in
// registers from start to end: it copies each of them twice a step otherwise.
template <int Rows, int Groups>
inline void tile(const std::int8_t* row, std::size_t d_padded, const std::int8_t* group,
                 const std::int32_t* bias, std::int32_t* dots, std::size_t group_stride) {
  __m512i acc[Rows][Groups];
#pragma GCC unroll 8
  for (auto& of_row : acc) {
#pragma GCC unroll 8
    for (std::size_t g = 0; g < Groups; ++g) of_row[g] = load512(bias + g * kLane);
  }
  for (std::size_t i = 0; i < d_padded; i += 4) {
    __m512i q[Groups];
#pragma GCC unroll 8
    for (std::size_t g = 0; g < Groups; ++g) q[g] = load512(group + (g * d_padded + i) * kLane);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
      std::int32_t four;
      std::memcpy(&four, row + r * d_padded + i, 4);
      const __m512i levels = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (std::size_t g = 0; g < Groups; ++g) {
        acc[r][g] = _mm512_dpbusd_epi32(acc[r][g], levels, q[g]);
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (std::size_t g = 0; g < Groups; ++g) {
      store(dots + g * group_stride + r * kLane, acc[r][g]);
    }
  }
}

template <int Groups>
void tiles(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
           const std::int8_t* queries, const std::int32_t* bias, std::int32_t* dots) {
  constexpr int kRows = Groups >= 4 ? 4 : 8;  // 16 accumulators or fewer leave room for operands
  for (std::size_t r = 0; r < n_rows; r += kRows) {
    tile<kRows, Groups>(rows + r * d_padded, d_padded, queries, bias, dots + r * kLane,
                        n_rows * kLane);
  }
}

void dot_tile(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
              const CodeTable& /*table*/, const std::int8_t* queries, std::size_t groups,
              const std::int32_t* bias, std::int32_t* dots) {
  for (std::size_t g = 0; g < groups;) {
    const std::int8_t* q = queries + g * kLane * d_padded;
    const std::int32_t* b = bias + g * kLane;
    std::int32_t* out = dots + g * n_rows * kLane;
    if (groups - g >= 4) {
      tiles<4>(rows, n_rows, d_padded, q, b, out);
      g += 4;
    } else if (groups - g >= 2) {
      tiles<2>(rows, n_rows, d_padded, q, b, out);
      g += 2;
    } else {
      tiles<1>(rows, n_rows, d_padded, q, b, out);
      g += 1;
    }
  }
}

}  // namespace
}  // namespace turboquant::kernels
