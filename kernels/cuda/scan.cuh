// Rows of codes against queries: codes go from device memory to registers, are decoded there to the
// int8 operands of tensor-core products, and of the exact int32 products what beats a query's limit
// is kept. Warps share nothing but the queries' operands: there is no barrier after those are
// there.
#pragma once

#include "kernels/cuda/scan_bulk.cuh"
#include "kernels/cuda/scan_parts.cuh"

namespace turboquant::cuda {
namespace {

// kGroups: of chunks that are loaded ahead.
template <int kBits, int kRowTiles, int kQueryTiles, bool kTwoParts, bool kShared, int kGroups,
          int kWarps, int kMinBlocks>
__global__ void __launch_bounds__(32 * kWarps, kMinBlocks)
    scan_kernel(const __grid_constant__ ScanArgs a) {
  constexpr int kRows = 2 * kRowTiles;  // of a lane: 8 apart
  constexpr int kTile = 16 * kRowTiles;
  constexpr int kQueries = 8 * kQueryTiles;
  constexpr int kQuads = quads_of(kBits);
  constexpr bool kUnsigned = unsigned_levels(kBits);
  // Measured: with 4 bits and many queries it pays to spare registers, else to keep products apart.
  constexpr bool kSparing = bits_of(kBits) == 4 && kQueryTiles == 16;
  constexpr int kAtOnce = kQueryTiles % 2 == 0 && !kSparing ? 2 : 1;
  // Of many queries the loop's body is large: it is to stay in the instruction cache. But the words
  // of a trellis code are many to choose from.
  constexpr int kUnrolledPairs = kQueryTiles >= 8 && kBits != trellis_code(3) ? 1 : kQuads / 2;

  extern __shared__ __align__(16) char memory[];
  auto* factors = reinterpret_cast<QueryFactors*>(memory);
  auto* staged =
      reinterpret_cast<uint4*>(memory + (kQueries * sizeof(QueryFactors) + 15) / 16 * 16);

  const std::uint32_t first_query = blockIdx.y * kQueries;
  const int groups = a.layout.groups;
  const int tile_words = groups * kQuads * 32;
  const uint4* operands = reinterpret_cast<const uint4*>(a.queries.operands) +
                          static_cast<std::size_t>(blockIdx.y) * kQueryTiles * tile_words;
  const uint4* sign_operands = operands;
  if constexpr (kTwoParts) {
    sign_operands = reinterpret_cast<const uint4*>(a.queries.sign_operands) +
                    static_cast<std::size_t>(blockIdx.y) * kQueryTiles * tile_words;
  }
  const int lane = threadIdx.x % 32;
  const int row_of_lane = lane / kLanesOfRow;
  const int chunk_of_lane = lane % kLanesOfRow;
  const std::uint32_t stride = gridDim.x * kWarps;

  const auto skip = [&](std::uint32_t j) { return next_item<kTile>(a, j, stride); };
  Chunk<kBits> ahead[kGroups][kRows];
  std::uint32_t rows[kRows];  // of the tile that is being loaded
  const auto move_to = [&](std::uint32_t j) {
    const std::uint32_t first = a.round.tile(j) * kTile + row_of_lane;
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r] = min(first + 8 * r, a.n - 1);
  };
  const auto fetch = [&](int group) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const std::uint8_t* row = a.rows.codes + static_cast<std::size_t>(rows[r]) * a.layout.stride;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        ahead[g][r] = load_chunk<kBits>(row, (group + g) * kLanesOfRow + chunk_of_lane,
                                        a.layout.chunks, a.layout.top);
      }
    }
  };

  std::uint32_t item = skip(blockIdx.x * kWarps + threadIdx.x / 32);
  if (item < a.round.tiles) {
    move_to(item);
    fetch(0);
  }
  // Rows do not depend on the preceding kernel; queries and limits do.
  let_next_start();
  wait_for_preceding();
  if constexpr (kShared) {
    // The tiles of a quad next to one another, so that their places are constants apart.
    for (int i = threadIdx.x; i < kQueryTiles * tile_words; i += 32 * kWarps) {
      const int t = i / tile_words;
      const int at = i - t * tile_words;
      const int to = (at / 32 * kQueryTiles + t) * 32 + at % 32;
      staged[to] = operands[i];
      if constexpr (kTwoParts) staged[kQueryTiles * tile_words + to] = sign_operands[i];
    }
    operands = staged;
    if constexpr (kTwoParts) sign_operands = staged + kQueryTiles * tile_words;
  }
  load_factors<kTwoParts>(a, first_query, kQueries, factors);
  __syncthreads();

  while (item < a.round.tiles) {
    const std::uint32_t next = skip(item + stride);
    std::int32_t dots[kRowTiles][kQueryTiles][4];
    std::int32_t sign_dots[kTwoParts ? kRowTiles : 1][kTwoParts ? kQueryTiles : 1][4];
#pragma unroll
    for (int t = 0; t < kQueryTiles; ++t) {
      const QueryFactors* f = factors + t * 8 + chunk_of_lane * 2;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          dots[m][t][i] = f[i % 2].bias;
          if constexpr (kTwoParts) sign_dots[m][t][i] = f[i % 2].sign_bias;
        }
      }
    }
    float row_scale[kRows];
    float row_terms[kRows];
    if constexpr (!kSparing) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        row_scale[r] = __ldg(a.rows.scale + rows[r]);
        row_terms[r] = row_term(a, rows[r]);
      }
    }

    for (int group = 0; group < groups; group += kGroups) {
      Chunk<kBits> chunks[kGroups][kRows];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) chunks[g][r] = ahead[g][r];
      }
      if (group + kGroups < groups) {
        fetch(group + kGroups);
      } else if (next < a.round.tiles) {
        move_to(next);
        fetch(0);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        if (kGroups > 1 && group + g >= groups) break;
#pragma unroll kUnrolledPairs
        for (int pair = 0; pair < kQuads / 2; ++pair) {
#pragma unroll
          for (int of_pair = 0; of_pair < 2; ++of_pair) {
            const int quad = 2 * pair + of_pair;
            std::uint32_t levels[kRows][4];
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              decode_quad<kBits>(chunks[g][r], quad, a.levels, levels[r]);
            }
            const int at = (((group + g) * kQuads + quad) * kQueryTiles) * 32 + lane;
            multiply_quad<kUnsigned, kAtOnce>(dots, levels, operands + at);
            if constexpr (kTwoParts) {
#pragma unroll
              for (int r = 0; r < kRows; ++r) {
                decode_quad<kBits>(chunks[g][r], quad, a.signs, levels[r]);
              }
              multiply_quad<kUnsigned, kAtOnce>(sign_dots, levels, sign_operands + at);
            }
          }
        }
      }
    }

    const std::uint32_t row = a.round.tile(item) * kTile + row_of_lane;
    const std::uint32_t position = item * kTile + row_of_lane;
    if constexpr (kSparing) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::uint32_t at = min(row + 8 * r, a.n - 1);
        row_scale[r] = __ldg(a.rows.scale + at);
        row_terms[r] = row_term(a, at);
      }
    }
    offer_passing<kRowTiles, kQueryTiles, kTwoParts>(a, factors, first_query, row, position, dots,
                                                     sign_dots, row_scale, row_terms);
    item = next;
  }
}

template <int kBits>
const ScanKernel* scan_kernels() {
  // Warps for many queries: as many as leave each the registers that it needs, as measured.
  constexpr int kMany = bits_of(kBits) == 4 || kBits == trellis_code(3) ? 12 : 16;
  // Chunks of a trellis code of 3 bits are large.
  constexpr int kAhead = kBits == trellis_code(3) ? 1 : 2;
  static constexpr ScanKernel kOnePart[] = {
      {scan_bulk_kernel<kBits, 1, 16>, 1, 1, 16, false, true, true},
      {scan_kernel<kBits, 1, 1, false, false, kAhead, 8, 2>, 1, 1, 8, false, false, false},
      {scan_kernel<kBits, 1, 1, false, true, kAhead, 8, 2>, 1, 1, 8, false, true, false},
      {scan_bulk_kernel<kBits, 2, 16>, 1, 2, 16, false, true, true},
      {scan_kernel<kBits, 1, 2, false, true, kAhead, 8, 2>, 1, 2, 8, false, true, false},
      {scan_kernel<kBits, 1, 4, false, true, kAhead, 8, 2>, 1, 4, 8, false, true, false},
      {scan_kernel<kBits, 1, 8, false, true, 1, 8, 2>, 1, 8, 8, false, true, false},
      {scan_kernel<kBits, 1, 16, false, true, 1, kMany, 1>, 1, 16, kMany, false, true, false}};
  constexpr ScanKernel kEnd = {nullptr, 0, 0, 0, false, false, false};
  if constexpr (kBits > 4) {
    static const ScanKernel kernels[] = {kOnePart[0], kOnePart[1], kOnePart[2],
                                         kOnePart[3], kOnePart[4], kOnePart[5],
                                         kOnePart[6], kOnePart[7], kEnd};
    return kernels;
  } else {
    static const ScanKernel kernels[] = {
        kOnePart[0],
        kOnePart[1],
        kOnePart[2],
        kOnePart[3],
        kOnePart[4],
        kOnePart[5],
        kOnePart[6],
        kOnePart[7],
        {scan_kernel<kBits, 1, 1, true, false, 1, 8, 2>, 1, 1, 8, true, false, false},
        {scan_kernel<kBits, 1, 4, true, true, 1, 8, 2>, 1, 4, 8, true, true, false},
        kEnd};
    return kernels;
  }
}

}  // namespace
}  // namespace turboquant::cuda
