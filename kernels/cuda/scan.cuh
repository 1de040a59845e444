// Rows of codes against queries: codes go from device memory to registers, are decoded there to the
// int8 operands of tensor-core products, and of the exact int32 products what beats a query's limit
// is kept. Warps share nothing but the queries' operands: there is no barrier after those are
// there.
#pragma once

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

// What a block keeps of a query.
struct QueryFactors {
  float scale;
  float sign_scale;
  float threshold;
  float norm;
  float offset;
  std::int32_t bias;
  std::int32_t sign_bias;
};

__device__ __forceinline__ float scaled_product(std::int32_t dot, float row_scale,
                                                float query_scale) {
  return static_cast<float>(dot) * fminf(row_scale * query_scale, FLT_MAX);
}

__device__ __noinline__ void offer(const ScanArgs& a, std::uint32_t query, std::uint32_t row,
                                   std::uint32_t position, float score) {
  const std::uint64_t key = candidate_key(a.l2, score, row);
  std::uint64_t* keys = a.keys + static_cast<std::size_t>(query) * a.capacity;
  if (a.round.positional) {
    keys[position] = key;
  } else if (key < a.limits[query]) {
    const std::uint32_t at = atomicAdd(a.counts + query, 1u);
    if (at < a.capacity) keys[at] = key;
  }
}

// kGroups: of chunks that are loaded ahead.
template <int kBits, int kRowTiles, int kQueryTiles, bool kTwoParts, bool kShared, int kGroups,
          int kMinBlocks>
__global__ void __launch_bounds__(kScanThreads, kMinBlocks)
    scan_kernel(const __grid_constant__ ScanArgs a) {
  constexpr int kRows = 2 * kRowTiles;  // of a lane: 8 apart
  constexpr int kTile = 16 * kRowTiles;
  constexpr int kQueries = 8 * kQueryTiles;
  constexpr int kQuads = kBits == 4 ? 2 : kBits == 1 ? 8 : 4;
  constexpr bool kUnsigned = kBits == 4;

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
  if constexpr (kShared) {
    for (int i = threadIdx.x; i < kQueryTiles * tile_words; i += kScanThreads) {
      staged[i] = operands[i];
      if constexpr (kTwoParts) staged[kQueryTiles * tile_words + i] = sign_operands[i];
    }
    operands = staged;
    if constexpr (kTwoParts) sign_operands = staged + kQueryTiles * tile_words;
  }
  for (int i = threadIdx.x; i < kQueries; i += kScanThreads) {
    const std::uint32_t q = first_query + i;
    QueryFactors f{};
    f.threshold = a.l2 ? -INFINITY : INFINITY;
    if (q < a.n_queries) {
      f.scale = a.queries.scales[q];
      f.bias = a.queries.bias[q];
      if constexpr (kTwoParts) {
        f.sign_scale = a.queries.sign_scales[q];
        f.sign_bias = a.queries.sign_bias[q];
      }
      f.norm = a.queries.norm[q];
      f.offset = a.queries.offset[q];
      // NaN, which lets everything pass, where there is no limit.
      f.threshold = a.round.positional ? NAN : key_score(a.l2, a.limits[q]);
    }
    factors[i] = f;
  }
  __syncthreads();

  const int lane = threadIdx.x % 32;
  const int row_of_lane = lane / kLanesOfRow;
  const int chunk_of_lane = lane % kLanesOfRow;
  const std::uint32_t stride = gridDim.x * kScanWarps;

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

  std::uint32_t item = skip(blockIdx.x * kScanWarps + threadIdx.x / 32);
  if (item < a.round.tiles) {
    move_to(item);
    fetch(0);
  }
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
#pragma unroll
    for (int r = 0; r < kRows; ++r) row_scale[r] = __ldg(a.rows.scale + rows[r]);

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
        const int at = (group + g) * kQuads * 32 + lane;
#pragma unroll
        for (int quad = 0; quad < kQuads; ++quad) {
          std::uint32_t levels[kRows][4];
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            decode_quad<kBits>(chunks[g][r], quad, a.levels, levels[r]);
          }
#pragma unroll
          for (int t = 0; t < kQueryTiles; ++t) {
            const uint4 b = operands[t * tile_words + at + quad * 32];
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m) {
              multiply_add<kUnsigned>(dots[m][t], levels[2 * m][0], levels[2 * m + 1][0],
                                      levels[2 * m][1], levels[2 * m + 1][1], b.x, b.y);
              multiply_add<kUnsigned>(dots[m][t], levels[2 * m][2], levels[2 * m + 1][2],
                                      levels[2 * m][3], levels[2 * m + 1][3], b.z, b.w);
            }
          }
          if constexpr (kTwoParts) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              decode_quad<kBits>(chunks[g][r], quad, a.signs, levels[r]);
            }
#pragma unroll
            for (int t = 0; t < kQueryTiles; ++t) {
              const uint4 b = sign_operands[t * tile_words + at + quad * 32];
#pragma unroll
              for (int m = 0; m < kRowTiles; ++m) {
                multiply_add<kUnsigned>(sign_dots[m][t], levels[2 * m][0], levels[2 * m + 1][0],
                                        levels[2 * m][1], levels[2 * m + 1][1], b.x, b.y);
                multiply_add<kUnsigned>(sign_dots[m][t], levels[2 * m][2], levels[2 * m + 1][2],
                                        levels[2 * m][3], levels[2 * m + 1][3], b.z, b.w);
              }
            }
          }
        }
      }
    }

    const bool plain = !a.l2 && a.rows.centre == nullptr && !kTwoParts;
    const std::uint32_t tile_row = a.round.tile(item) * kTile;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = 2 * m + half;
        const std::uint32_t row = tile_row + row_of_lane + 8 * r;
        const bool counts =
            row < a.n && (a.mask == nullptr || (a.mask[row / 32] >> (row % 32) & 1) != 0);
        if (!counts) continue;
        const std::uint32_t position = item * kTile + row_of_lane + 8 * r;
        float residual = 0;
        float centre = 0;
        float norm = 0;
        if (!plain) {
          if constexpr (kTwoParts) residual = a.rows.residual[row];
          if (a.rows.centre != nullptr) centre = a.rows.centre[row];
          if (a.l2) norm = a.rows.norm[row];
        }
#pragma unroll
        for (int t = 0; t < kQueryTiles; ++t) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int q = t * 8 + chunk_of_lane * 2 + i;
            const QueryFactors& f = factors[q];
            float score = scaled_product(dots[m][t][2 * half + i], row_scale[r], f.scale);
            if (!plain) {
              score += 0.0f;
              if constexpr (kTwoParts) {
                score +=
                    scaled_product(sign_dots[m][t][2 * half + i], residual, f.sign_scale) + 0.0f;
              }
              if (a.rows.centre != nullptr) score += centre + f.offset;
              if (a.l2) {
                score = (f.norm + norm) - 2 * score;
                if (score != score) score = INFINITY;
              }
            }
            const bool worse = a.l2 ? score > f.threshold : score < f.threshold;
            if (!worse && first_query + q < a.n_queries) {
              offer(a, first_query + q, row, position, score);
            }
          }
        }
      }
    }
    item = next;
  }
}

template <int kBits>
const ScanKernel* scan_kernels() {
  static const ScanKernel kernels[] = {
      {scan_kernel<kBits, 1, 1, false, false, 2, 2>, 1, 1, false, false},
      {scan_kernel<kBits, 1, 1, false, true, 2, 2>, 1, 1, false, true},
      {scan_kernel<kBits, 1, 2, false, true, 2, 2>, 1, 2, false, true},
      {scan_kernel<kBits, 1, 4, false, true, 2, 2>, 1, 4, false, true},
      {scan_kernel<kBits, 2, 8, false, true, 1, 1>, 2, 8, false, true},
      {scan_kernel<kBits, 2, 16, false, true, 1, 1>, 2, 16, false, true},
      {scan_kernel<kBits, 1, 1, true, false, 1, 2>, 1, 1, true, false},
      {scan_kernel<kBits, 1, 4, true, true, 1, 2>, 1, 4, true, true},
      {nullptr, 0, 0, false, false}};
  return kernels;
}

}  // namespace
}  // namespace turboquant::cuda
