#include "kernels/cuda/round_plan.h"

#include <algorithm>

namespace turboquant::cuda {
namespace {

std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

std::size_t power(std::size_t base, int exponent) {
  std::size_t result = 1;
  for (int i = 0; i < exponent; ++i) result *= base;
  return result;
}

Round make_round(bool positional, std::size_t first, std::size_t step, std::size_t ratio,
                 std::size_t tiles) {
  return {positional, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(step),
          static_cast<std::uint32_t>(ratio), static_cast<std::uint32_t>(tiles)};
}

}  // namespace

std::vector<Round> plan_rounds(std::size_t n, std::size_t tile_rows, std::size_t k,
                               std::size_t capacity) {
  const std::size_t tiles = divide_up(n, tile_rows);
  if (tiles <= capacity / tile_rows) return {make_round(true, 0, 1, 0, tiles)};
  // A larger sample would take longer to select from than it saves in candidates.
  constexpr std::size_t kMostSampled = 8192;
  const std::size_t sparse = divide_up(tiles, std::min(capacity, kMostSampled) / tile_rows);
  // After a round over a part of the rows, one over `ratio` times as many finds k (ratio - 1) more.
  const std::size_t most = std::max<std::size_t>(2, (capacity - k) / (2 * k));
  int rounds = 1;
  while (power(most, rounds) < sparse) ++rounds;
  std::size_t ratio = 2;
  while (power(ratio, rounds) < sparse) ++ratio;
  std::size_t step = power(ratio, rounds);
  std::vector<Round> plan{make_round(true, 0, step, 0, divide_up(tiles, step))};
  for (int i = 0; i < rounds; ++i) {
    const std::size_t done = divide_up(tiles, step);
    step /= ratio;
    plan.push_back(make_round(false, 0, step, ratio, divide_up(tiles, step) - done));
  }
  return plan;
}

std::vector<Round> plan_safe_rounds(std::size_t n, std::size_t tile_rows, std::size_t k,
                                    std::size_t capacity) {
  const std::size_t tiles = divide_up(n, tile_rows);
  std::vector<Round> plan{make_round(true, 0, 1, 0, std::min(tiles, capacity / tile_rows))};
  for (std::size_t first = plan[0].tiles; first < tiles;) {
    const std::size_t count = std::min((capacity - k) / tile_rows, tiles - first);
    plan.push_back(make_round(false, first, 1, 0, count));
    first += count;
  }
  return plan;
}

std::size_t candidate_capacity(std::size_t queries, std::size_t k) {
  std::size_t capacity = queries <= 64 ? 16384 : 4096;
  while (capacity < 16 * k) capacity *= 2;
  return capacity;
}

}  // namespace turboquant::cuda
