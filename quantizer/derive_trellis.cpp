// Derives the tables of quantizer/trellis.cpp. A table starts from 256 Gaussian numbers, mirrored:
// state 255 - s has the level of s with the other sign. Rounds of Viterbi's algorithm over rows of
// Gaussian samples and of centroids improve it; more of them with the levels rounded to integers
// make it what is stored. Prints the levels of states 128 to 255, the step and the distortion of
// other samples, and fails when the table in use is another one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "quantizer/gaussian.h"
#include "quantizer/trellis.h"

namespace turboquant {
namespace {

constexpr std::size_t kStates = kernels::kStates;
constexpr std::size_t kRow = 384;
constexpr int kRounds = 40;
constexpr int kIntegerRounds = 6;

using Levels = std::vector<float>;

// What the states of best paths saw: sums of samples, numbers of samples, squared errors.
struct Statistics {
  std::vector<double> sums = std::vector<double>(kStates);
  std::vector<double> counts = std::vector<double>(kStates);
  double error = 0;
};

// The best path of each row of kRow samples, from any state to any state.
Statistics best_paths(int bits, const std::vector<float>& samples, const Levels& levels) {
  const std::size_t groups = kStates >> bits;
  std::vector<std::uint8_t> from(kRow * groups);
  std::vector<float> sums(kStates), best(groups);
  std::vector<int> which(groups);
  Statistics result;
  for (std::size_t first = 0; first + kRow <= samples.size(); first += kRow) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (std::size_t i = 0; i < kRow; ++i) {
      std::copy_n(sums.begin(), groups, best.begin());
      std::fill(which.begin(), which.end(), 0);
      for (std::size_t k = 1; k < std::size_t{1} << bits; ++k) {
        const float* other = sums.data() + k * groups;
        for (std::size_t g = 0; g < groups; ++g) {
          which[g] = other[g] < best[g] ? static_cast<int>(k) : which[g];
          best[g] = other[g] < best[g] ? other[g] : best[g];
        }
      }
      for (std::size_t g = 0; g < groups; ++g) {
        from[i * groups + g] = static_cast<std::uint8_t>(which[g]);
      }
      for (std::size_t s = 0; s < kStates; ++s) {
        const float e = samples[first + i] - levels[s];
        sums[s] = best[s >> bits] + e * e;
      }
    }
    auto state =
        static_cast<std::size_t>(std::min_element(sums.begin(), sums.end()) - sums.begin());
    for (std::size_t i = kRow; i-- > 0;) {
      const double sample = samples[first + i];
      result.sums[state] += sample;
      result.counts[state] += 1;
      result.error += (sample - levels[state]) * (sample - levels[state]);
      const std::size_t g = state >> bits;
      state = from[i * groups + g] * groups + g;
    }
  }
  return result;
}

// Replaces levels by centroids, kept mirrored; states that no path met keep theirs.
void move_to_centroids(const Statistics& seen, Levels& levels) {
  for (std::size_t s = 0; s < kStates / 2; ++s) {
    const std::size_t mirror = kStates - 1 - s;
    const double count = seen.counts[s] + seen.counts[mirror];
    if (count > 0) levels[s] = static_cast<float>((seen.sums[s] - seen.sums[mirror]) / count);
    levels[mirror] = -levels[s];
  }
}

struct Table {
  std::vector<int> integers;
  double step;
};

Table derive(int bits, const std::vector<float>& samples, std::uint64_t seed) {
  const GaussianProjection start(16, seed);
  Levels levels(start.entries(), start.entries() + kStates);
  for (std::size_t s = 0; s < kStates / 2; ++s) levels[kStates - 1 - s] = -levels[s];
  for (int round = 0; round < kRounds; ++round) {
    move_to_centroids(best_paths(bits, samples, levels), levels);
  }
  const int most = trellis_table(bits).offset;
  Table table{std::vector<int>(kStates),
              double{*std::max_element(levels.begin(), levels.end())} / most};
  for (int round = 0;; ++round) {
    Levels rounded(kStates);
    for (std::size_t s = 0; s < kStates; ++s) {
      const auto integer = static_cast<int>(std::nearbyint(levels[s] / table.step));
      table.integers[s] = std::clamp(integer, -most, most);
      rounded[s] = static_cast<float>(table.integers[s] * table.step);
    }
    if (round == kIntegerRounds) return table;
    const Statistics seen = best_paths(bits, samples, rounded);
    double product = 0, square = 0;
    for (std::size_t s = 0; s < kStates; ++s) {
      product += table.integers[s] * seen.sums[s];
      square += table.integers[s] * table.integers[s] * seen.counts[s];
    }
    table.step = product / square;
    levels = rounded;
    move_to_centroids(seen, levels);
  }
}

std::vector<float> samples_of(std::uint64_t seed) {
  const GaussianProjection gaussian(512, seed);
  const std::size_t n = std::size_t{512} * 512 / kRow * kRow;
  return std::vector<float>(gaussian.entries(), gaussian.entries() + n);
}

int run(int bits, std::uint64_t seed) {
  const std::vector<float> samples = samples_of(1000), others = samples_of(2000);
  const Table table = derive(bits, samples, seed);
  Levels levels(kStates);
  bool same = true;
  for (std::size_t s = 0; s < kStates; ++s) {
    levels[s] = static_cast<float>(table.integers[s] * table.step);
    same = same && table.integers[s] == trellis_table(bits).levels[s];
  }
  double square = 0;
  for (const float x : others) square += double{x} * x;
  std::printf("%d bits, seed %llu: step %.17g, distortion %.5f\n", bits,
              static_cast<unsigned long long>(seed), table.step,
              best_paths(bits, others, levels).error / square);
  for (std::size_t s = kStates / 2; s < kStates; ++s) {
    std::printf("%d,%s", table.integers[s], s % 16 == 15 ? "\n" : " ");
  }
  return same && table.step == trellis_step(bits) ? 0 : 1;
}

}  // namespace
}  // namespace turboquant

// derive_trellis: checks the four tables. derive_trellis <bits> <seed>: another start.
int main(int argc, char** argv) {
  if (argc == 3) {
    turboquant::run(std::atoi(argv[1]), std::strtoull(argv[2], nullptr, 10));
    return 0;
  }
  int different = 0;
  for (int bits = 1; bits <= 4; ++bits) {
    different += turboquant::run(bits, turboquant::trellis_seed(bits));
  }
  if (different > 0) std::printf("%d tables in use are others\n", different);
  return different > 0 ? 1 : 0;
}
