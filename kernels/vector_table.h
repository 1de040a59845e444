// The table of a SIMD backend: what vector_kernels.h, vector_attention.h and select.h have in
// common for all of them, and its own products.
#pragma once

#include "kernels/select.h"
#include "kernels/sign_sums.h"
#include "kernels/trellis_encode.h"
#include "kernels/vector_attention.h"
#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

template <typename Lanes>
constexpr KernelTable vector_table(const char* name, bool unsigned_rows, float row_cost,
                                   decltype(KernelTable::decode) decode_codes,
                                   decltype(KernelTable::trellis_decode) decode_trellis,
                                   decltype(KernelTable::trellis_dot_rows) dot_trellis_rows,
                                   decltype(KernelTable::dot_rows) dot_code_rows,
                                   decltype(KernelTable::dot_tile) dot_code_tile) {
  return {name,
          unsigned_rows,
          row_cost,
          norm_squared,
          scale,
          multiply,
          fwht,
          quantize,
          pack,
          max_abs,
          quantize_query,
          to_half,
          to_float,
          dot,
          add_scaled,
          exp_sum,
          add_tile_scores,
          add_tile_sums,
          take_off,
          decode_codes,
          trellis_encode_with<Lanes>,
          decode_trellis,
          dot_trellis_rows,
          dot_code_rows,
          dot_code_tile,
          select_tile_with<Lanes>,
          select_rows_with<Lanes>,
          sign_sums_with<Lanes>};
}

}  // namespace
}  // namespace turboquant::kernels
