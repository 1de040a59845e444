// What kernels that scan have in common: products of decoded rows and queries, and what is kept.
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
  std::uint64_t limit;
};

// Lowered by several times what rounding can do, as ScanQueries::cutoff of quantizer/block_scan.h.
// NaN, which lets everything pass, where there is no limit.
__device__ void set_cutoff(const ScanArgs& a, QueryFactors& f) {
  constexpr float kSlack = 1e-6f;
  f.cutoff = NAN;
  f.term = 0;
  if (a.round.positional || f.limit == ~std::uint64_t{0} || f.sign_scale != 0) return;
  const float bound = key_score(a.l2, f.limit);
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

// The exact score of a pair; kept if it beats the query's limit.
__device__ __forceinline__ void offer(const ScanArgs& a, const QueryFactors& f, std::uint32_t query,
                                      std::uint32_t row, std::uint32_t position, std::int32_t dot,
                                      std::int32_t sign_dot, float row_scale) {
  if (query >= a.n_queries || row >= a.n) return;
  if (a.mask != nullptr && (a.mask[row / 32] >> (row % 32) & 1) == 0) return;
  float score = scaled_product(dot, row_scale, f.scale);
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
  } else if (key < f.limit) {
    const std::uint32_t at = atomicAdd(a.counts + query, 1u);
    if (at < a.capacity) keys[at] = key;
  }
}

// The four pairs of a lane in 16 rows times 8 queries. Out of line, as it is rarely called: the
// loop around it is to stay small.
__device__ __noinline__ void offer_four(const ScanArgs& a, const QueryFactors* f,
                                        std::uint32_t query, std::uint32_t row,
                                        std::uint32_t position, int4 dots, int4 sign_dots,
                                        float2 scales) {
  offer(a, f[0], query, row, position, dots.x, sign_dots.x, scales.x);
  offer(a, f[1], query + 1, row, position, dots.y, sign_dots.y, scales.x);
  offer(a, f[0], query, row + 8, position + 8, dots.z, sign_dots.z, scales.y);
  offer(a, f[1], query + 1, row + 8, position + 8, dots.w, sign_dots.w, scales.y);
}

// The factors of the block's queries, by all its threads. A barrier is to follow.
template <bool kTwoParts>
__device__ __forceinline__ void load_factors(const ScanArgs& a, std::uint32_t first_query,
                                             int queries, QueryFactors* factors) {
  for (int i = threadIdx.x; i < queries; i += blockDim.x) {
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
      f.limit = a.round.positional ? 0 : a.limits[q];
      set_cutoff(a, f);
    }
    factors[i] = f;
  }
}

// Offers the pairs of a lane, in kRowTiles times 16 rows and kQueryTiles times 8 queries, that may
// beat a limit.
template <int kRowTiles, int kQueryTiles, bool kTwoParts>
__device__ __forceinline__ void offer_passing(
    const ScanArgs& a, const QueryFactors* factors, std::uint32_t first_query, std::uint32_t row,
    std::uint32_t position, const std::int32_t (&dots)[kRowTiles][kQueryTiles][4],
    const std::int32_t (&sign_dots)[kTwoParts ? kRowTiles : 1][kTwoParts ? kQueryTiles : 1][4],
    const float (&row_scale)[2 * kRowTiles], const float (&row_terms)[2 * kRowTiles]) {
  const int first_of_lane = threadIdx.x % kLanesOfRow * 2;
#pragma unroll
  for (int t = 0; t < kQueryTiles; ++t) {
    const QueryFactors* f = factors + t * 8 + first_of_lane;
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
        offer_four(a, f, first_query + t * 8 + first_of_lane, row + 16 * m, position + 16 * m,
                   make_int4(d[0], d[1], d[2], d[3]), sign,
                   make_float2(row_scale[2 * m], row_scale[2 * m + 1]));
      }
    }
  }
}

// The first tile of so many rows from item j on, `stride` apart, that has rows to consider.
template <int kTile>
__device__ __forceinline__ std::uint32_t next_item(const ScanArgs& a, std::uint32_t j,
                                                   std::uint32_t stride) {
  if (a.mask == nullptr) return j;
  while (j < a.round.tiles) {
    const std::uint32_t row = a.round.tile(j) * kTile;
    std::uint32_t bits = a.mask[row / 32];
    if (kTile == 16) bits = bits >> (row % 32) & 0xffffu;
    if (bits != 0) break;
    j += stride;
  }
  return j;
}

}  // namespace
}  // namespace turboquant::cuda
