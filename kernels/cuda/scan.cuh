// Rows of codes against queries: codes go from device memory to registers, are decoded there to the
// int8 operands of tensor-core products, and of the exact int32 products what beats a query's limit
// is kept. Warps share nothing but the queries' operands: there is no barrier after those are
// there.
#pragma once

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/scan_args.cuh"

namespace turboquant::cuda {
namespace {

// c += a b, 16 x 32 times 32 x 8.
template <bool kUnsigned>
__device__ __forceinline__ void multiply_add(std::int32_t (&c)[4], std::uint32_t a0,
                                             std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                             std::uint32_t b0, std::uint32_t b1) {
  if constexpr (kUnsigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// Four registers of levels of each row times what lies at b for each tile of queries. Products that
// add to the same sums are kept apart: each waits for the one before.
template <bool kUnsigned, int kAtOnce, int kRowTiles, int kQueryTiles>
__device__ __forceinline__ void multiply_quad(std::int32_t (&dots)[kRowTiles][kQueryTiles][4],
                                              const std::uint32_t (&levels)[2 * kRowTiles][4],
                                              const uint4* b) {
#pragma unroll
  for (int first = 0; first < kQueryTiles; first += kAtOnce) {
    uint4 of_tile[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) of_tile[i] = b[(first + i) * 32];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add<kUnsigned>(dots[m][first + i], levels[2 * m][0], levels[2 * m + 1][0],
                                levels[2 * m][1], levels[2 * m + 1][1], of_tile[i].x, of_tile[i].y);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add<kUnsigned>(dots[m][first + i], levels[2 * m][2], levels[2 * m + 1][2],
                                levels[2 * m][3], levels[2 * m + 1][3], of_tile[i].z, of_tile[i].w);
      }
    }
  }
}

// What a block keeps of a query. A pair is looked at closely unless
// float(dot) * row_scale - row_term * term <= cutoff.
struct QueryFactors {
  float cutoff;
  float term;
  std::int32_t bias;
  std::int32_t sign_bias;
  float scale;
  float sign_scale;
  float norm;
  float offset;
};

// Lowered by several times what rounding can do, as ScanQueries::cutoff of quantizer/block_scan.h.
// NaN, which lets everything pass, where there is no limit.
__device__ void set_cutoff(const ScanArgs& a, std::uint32_t query, QueryFactors& f) {
  constexpr float kSlack = 1e-6f;
  f.cutoff = NAN;
  f.term = 0;
  if (a.round.positional || a.limits[query] == ~std::uint64_t{0} || f.sign_scale != 0) return;
  const float bound = key_score(a.l2, a.limits[query]);
  float cutoff;
  float term;
  if (a.l2) {
    term = 0.5f / f.scale;
    cutoff = ((f.norm - bound) - 2 * f.offset) * term -
             kSlack * ((f.norm + fabsf(bound)) + 2 * fabsf(f.offset)) * term - 1e-37f;
  } else {
    term = a.rows.centre != nullptr ? 1 / f.scale : 0;
    cutoff = (bound - f.offset) / f.scale;
    cutoff -= (fabsf(bound) + fabsf(f.offset)) / f.scale * kSlack + 1e-37f;
  }
  if (!isfinite(cutoff) || !isfinite(term)) return;
  f.cutoff = cutoff;
  f.term = term;
}

// As Quantizer::Impl::term: what a row's score loses beside its product.
__device__ __forceinline__ float row_term(const ScanArgs& a, std::uint32_t row) {
  const float norm = a.l2 ? __ldg(a.rows.norm + row) : 0;
  const float product = a.rows.centre != nullptr ? (a.l2 ? 2 : 1) * __ldg(a.rows.centre + row) : 0;
  return (norm - product) - (norm + fabsf(product)) * 1e-6f;
}

__device__ __forceinline__ float scaled_product(std::int32_t dot, float row_scale,
                                                float query_scale) {
  return static_cast<float>(dot) * fminf(row_scale * query_scale, FLT_MAX) + 0.0f;
}

// The exact score of a pair; kept if it beats the query's limit. Out of line, as it is rarely
// called: the loop around it is to stay small.
__device__ __noinline__ void offer(const ScanArgs& a, const QueryFactors& f, std::uint32_t query,
                                   std::uint32_t row, std::uint32_t position, std::int32_t dot,
                                   std::int32_t sign_dot) {
  if (query >= a.n_queries || row >= a.n) return;
  if (a.mask != nullptr && (a.mask[row / 32] >> (row % 32) & 1) == 0) return;
  float score = scaled_product(dot, a.rows.scale[row], f.scale);
  if (a.rows.residual != nullptr) {
    score += scaled_product(sign_dot, a.rows.residual[row], f.sign_scale);
  }
  if (a.rows.centre != nullptr) score += a.rows.centre[row] + f.offset;
  if (a.l2) {
    score = (f.norm + a.rows.norm[row]) - 2 * score;
    if (score != score) score = INFINITY;
  }
  const std::uint64_t key = candidate_key(a.l2, score, row);
  std::uint64_t* keys = a.keys + static_cast<std::size_t>(query) * a.capacity;
  if (a.round.positional) {
    keys[position] = key;
  } else if (key < a.limits[query]) {
    const std::uint32_t at = atomicAdd(a.counts + query, 1u);
    if (at < a.capacity) keys[at] = key;
  }
}

// The four pairs of a lane in 16 rows times 8 queries.
__device__ __noinline__ void offer_four(const ScanArgs& a, const QueryFactors* f,
                                        std::uint32_t query, std::uint32_t row,
                                        std::uint32_t position, int4 dots, int4 sign_dots) {
  offer(a, f[0], query, row, position, dots.x, sign_dots.x);
  offer(a, f[1], query + 1, row, position, dots.y, sign_dots.y);
  offer(a, f[0], query, row + 8, position + 8, dots.z, sign_dots.z);
  offer(a, f[1], query + 1, row + 8, position + 8, dots.w, sign_dots.w);
}

// kGroups: of chunks that are loaded ahead.
template <int kBits, int kRowTiles, int kQueryTiles, bool kTwoParts, bool kShared, int kGroups,
          int kWarps, int kMinBlocks>
__global__ void __launch_bounds__(32 * kWarps, kMinBlocks)
    scan_kernel(const __grid_constant__ ScanArgs a) {
  constexpr int kRows = 2 * kRowTiles;  // of a lane: 8 apart
  constexpr int kTile = 16 * kRowTiles;
  constexpr int kQueries = 8 * kQueryTiles;
  constexpr int kQuads = kBits == 4 ? 2 : kBits == 1 ? 8 : 4;
  constexpr bool kUnsigned = kBits == 4;
  // Measured: with 4 bits and many queries it pays to spare registers, else to keep products apart.
  constexpr bool kSparing = kBits == 4 && kQueryTiles == 16;
  constexpr int kAtOnce = kQueryTiles % 2 == 0 && !kSparing ? 2 : 1;
  // Of many queries the loop's body is large: it is to stay in the instruction cache.
  constexpr int kUnrolledPairs = kQueryTiles >= 8 ? 1 : kQuads / 2;

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

  // The next tile from item j on that has rows to consider.
  const auto skip = [&](std::uint32_t j) {
    if (a.mask == nullptr) return j;
    while (j < a.round.tiles) {
      const std::uint32_t row = a.round.tile(j) * kTile;
      std::uint32_t bits = a.mask[row / 32];
      if (kTile == 16) bits = bits >> (row % 32) & 0xffffu;
      if (bits != 0) break;
      j += stride;
    }
    return j;
  };
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
  for (int i = threadIdx.x; i < kQueries; i += 32 * kWarps) {
    const std::uint32_t q = first_query + i;
    QueryFactors f{};
    f.cutoff = INFINITY;  // nothing passes
    if (q < a.n_queries) {
      f.scale = a.queries.scales[q];
      f.bias = a.queries.bias[q];
      if constexpr (kTwoParts) {
        f.sign_scale = a.queries.sign_scales[q];
        f.sign_bias = a.queries.sign_bias[q];
      }
      f.norm = a.queries.norm[q];
      f.offset = a.queries.offset[q];
      set_cutoff(a, q, f);
    }
    factors[i] = f;
  }
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
#pragma unroll
    for (int t = 0; t < kQueryTiles; ++t) {
      const QueryFactors* f = factors + t * 8 + chunk_of_lane * 2;
      const float2 first = *reinterpret_cast<const float2*>(f);
      const float2 second = *reinterpret_cast<const float2*>(f + 1);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const std::int32_t* d = dots[m][t];
        bool pass = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float scale = row_scale[2 * m + half];
          const float term = row_terms[2 * m + half];
          const float x = static_cast<float>(d[2 * half]) * scale - term * first.y;
          const float y = static_cast<float>(d[2 * half + 1]) * scale - term * second.y;
          pass = pass || !(x <= first.x) || !(y <= second.x);
        }
        if (pass) {
          int4 sign = make_int4(0, 0, 0, 0);
          if constexpr (kTwoParts) {
            const std::int32_t* s = sign_dots[m][t];
            sign = make_int4(s[0], s[1], s[2], s[3]);
          }
          offer_four(a, f, first_query + t * 8 + chunk_of_lane * 2, row + 16 * m, position + 16 * m,
                     make_int4(d[0], d[1], d[2], d[3]), sign);
        }
      }
    }
    item = next;
  }
}

template <int kBits>
const ScanKernel* scan_kernels() {
  // Warps for many queries: as many as leave each the registers that it needs, as measured.
  constexpr int kMany = kBits == 4 ? 12 : 16;
  static const ScanKernel kernels[] = {
      {scan_kernel<kBits, 1, 1, false, false, 2, 8, 2>, 1, 1, 8, false, false},
      {scan_kernel<kBits, 1, 1, false, true, 2, 8, 2>, 1, 1, 8, false, true},
      {scan_kernel<kBits, 1, 2, false, true, 2, 8, 2>, 1, 2, 8, false, true},
      {scan_kernel<kBits, 1, 4, false, true, 2, 8, 2>, 1, 4, 8, false, true},
      {scan_kernel<kBits, 1, 8, false, true, 1, 8, 2>, 1, 8, 8, false, true},
      {scan_kernel<kBits, 1, 16, false, true, 1, kMany, 1>, 1, 16, kMany, false, true},
      {scan_kernel<kBits, 1, 1, true, false, 1, 8, 2>, 1, 1, 8, true, false},
      {scan_kernel<kBits, 1, 4, true, true, 1, 8, 2>, 1, 4, 8, true, true},
      {nullptr, 0, 0, 0, false, false}};
  return kernels;
}

}  // namespace
}  // namespace turboquant::cuda
