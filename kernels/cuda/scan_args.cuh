// What a scan kernel takes, and how scores become keys.
#pragma once

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/codec.h"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/round_plan.h"

namespace turboquant::cuda {

struct ScanArgs {
  RowLayout layout;
  RowPointers rows;
  std::uint32_t n;
  const std::uint32_t* mask;  // bit i % 32 of word i / 32: row i counts; null for all
  QueryPointers queries;
  std::uint32_t n_queries;
  LevelBytes levels;
  LevelBytes signs;
  Round round;
  bool l2;
  const std::uint64_t* limits;  // [n_queries] keys from here on are of no interest
  std::uint64_t* keys;          // [n_queries][capacity]
  std::uint32_t* counts;        // [n_queries] may end up above the capacity: then keys are missing
  std::uint32_t capacity;
  std::uint32_t stages;  // of a ScanKernel with bulk
};

/// What a kernel with bulk may read behind a tile: the chunks of a group past the end of a row.
inline constexpr std::size_t kPastTileBytes = 64;

struct ScanKernel {
  void (*function)(ScanArgs);
  int row_tiles;    // of 16 rows: what a warp takes
  int query_tiles;  // of 8 queries: what a block takes
  int warps;        // of a block; with bulk: at most
  bool two_parts;
  bool shared;  // keeps the operands of queries in shared memory
  bool bulk;    // and tiles of rows, some ahead; compute capability 9.0
};

/// The kernels for codes of so many bits, of trellis codes for `t`, by rising query_tiles; null
/// function at the end.
const ScanKernel* scan_kernels_1();
const ScanKernel* scan_kernels_2();
const ScanKernel* scan_kernels_3();
const ScanKernel* scan_kernels_4();
const ScanKernel* scan_kernels_1t();
const ScanKernel* scan_kernels_2t();
const ScanKernel* scan_kernels_3t();
const ScanKernel* scan_kernels_4t();

// As candidate_key and key_score of quantizer/top_k.h.
__device__ __forceinline__ std::uint64_t candidate_key(bool l2, float score, std::uint32_t row) {
  std::uint32_t bits = __float_as_uint(score + 0.0f);
  if (score != score) bits = 0xffc00000u;  // what x86 makes of infinity minus infinity
  bits ^= (bits >> 31) != 0 ? 0xffffffffu : 0x80000000u;
  if (!l2) bits = ~bits;
  return static_cast<std::uint64_t>(bits) << 32 | row;
}

__device__ __forceinline__ float key_score(bool l2, std::uint64_t key) {
  auto bits = static_cast<std::uint32_t>(key >> 32);
  if (!l2) bits = ~bits;
  bits ^= (bits >> 31) != 0 ? 0x80000000u : 0xffffffffu;
  return __uint_as_float(bits);
}

}  // namespace turboquant::cuda
