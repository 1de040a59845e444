// A search goes through the rows in rounds. The first scores a sample spread over all rows and
// keeps every score; each later one keeps what beats the k-th best so far, so that few scores are
// kept and none is left out. Plain C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cuda/row_layout.h"

namespace turboquant::cuda {

/// Tiles that one launch scans: item j < tiles is tile first + step * m, where m counts up from 0,
/// leaving out multiples of `ratio` unless that is 0.
struct Round {
  bool positional;  // every score is kept, at its place: no more rows than there is room for
  std::uint32_t first;
  std::uint32_t step;
  std::uint32_t ratio;
  std::uint32_t tiles;

  TQ_HOST_DEVICE std::uint32_t tile(std::uint32_t j) const {
    return first + step * (ratio == 0 ? j : j + j / (ratio - 1) + 1);
  }
};

/// Rounds through n rows in tiles of tile_rows for the k best, where `capacity` candidates of a
/// query have room, at least 4 k. Rows in no particular order fill at most about half of it.
std::vector<Round> plan_rounds(std::size_t n, std::size_t tile_rows, std::size_t k,
                               std::size_t capacity);

/// Rounds whose candidates have room in any case.
std::vector<Round> plan_safe_rounds(std::size_t n, std::size_t tile_rows, std::size_t k,
                                    std::size_t capacity);

/// Room for candidates of a query: the k best, and the sample.
std::size_t candidate_capacity(std::size_t queries, std::size_t k);

}  // namespace turboquant::cuda
