// The k smallest keys of each query's candidates.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace turboquant::cuda {

inline constexpr std::uint64_t kNoKey = ~std::uint64_t{0};
inline constexpr int kMostNeighbours = 2048;

/// What kernels of a search tell; on the device. A search finds them so and leaves them so.
struct SearchFlags {
  unsigned long long bad = ~0ull;  // the first query with NaN or infinity
  std::uint32_t overflow = 0;      // 1 when candidates are missing
  std::uint32_t done = 0;          // queries whose results are written
};

/// The same for the host, in memory of the host.
struct SearchReport {
  unsigned long long bad = ~0ull;
  std::uint32_t overflow = 0;
  std::uint32_t number = 0;  // written last: which report it is
};

struct SelectArgs {
  std::uint64_t* keys;    // [n_queries][capacity]; kNoKey is none
  std::uint32_t* counts;  // [n_queries]
  std::uint64_t* limits;  // [n_queries]
  std::uint32_t capacity;
  std::uint32_t n_queries;
  std::uint32_t k;           // 1 to kMostNeighbours
  std::uint32_t positional;  // not 0: so many candidates, in place of counts
  SearchFlags* flags;        // overflow becomes 1 when a count is above the capacity
  SearchReport* report;      // of write_best: what it then reports of flags, which it resets,
  std::uint32_t number;      // as this number
  bool l2;
  bool overlapping;  // as launch() of check.cuh takes it
};

/// Moves the k best to the front, in no order; sets counts and, where there are k, limits.
void select_best(const SelectArgs& args, cudaStream_t stream);

/// Writes the k best, best first, as scores and rows [n_queries][k]; slots that no candidate fills
/// get row -1 and the worst finite score.
void write_best(const SelectArgs& args, float* scores, std::int64_t* rows, cudaStream_t stream);

}  // namespace turboquant::cuda
