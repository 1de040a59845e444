// Derives the levels of quantizer/trellis.cpp. They start as quantiles of a wider Gaussian; rounds
// of Viterbi's algorithm over rows of Gaussian samples and of centroids improve them; more of them
// with the levels rounded to integers make them what is stored. Prints levels, step and the
// distortion of other samples, and fails when those in use are others.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "quantizer/gaussian.h"
#include "quantizer/trellis.h"

namespace turboquant {
namespace {

constexpr std::size_t kStates = std::size_t{1} << kernels::kMemory;
constexpr std::size_t kRow = 384;
constexpr int kRounds = 20;
constexpr int kIntegerRounds = 6;

using Levels = std::vector<float>;

// What the levels of best paths saw: sums of samples, numbers of samples, squared errors.
struct Statistics {
  explicit Statistics(std::size_t n) : sums(n), counts(n) {}
  std::vector<double> sums, counts;
  double error = 0;
};

// The best path of each row of kRow samples, from any state to any state.
Statistics best_paths(int bits, const std::vector<float>& samples, const Levels& levels) {
  std::vector<unsigned> labels(2 * kStates);
  for (unsigned w = 0; w < 2 * kStates; ++w) labels[w] = kernels::trellis_label(w, bits);
  std::vector<std::uint8_t> second(kRow * kStates);
  std::vector<std::size_t> chosen(kRow * 4);
  std::vector<float> sums(kStates), next(kStates);
  Statistics result(levels.size());
  for (std::size_t first = 0; first + kRow <= samples.size(); first += kRow) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (std::size_t i = 0; i < kRow; ++i) {
      float costs[4];
      for (std::size_t label = 0; label < 4; ++label) {
        std::size_t best = label;
        for (std::size_t r = label; r < levels.size(); r += 4) {
          const float x = samples[first + i];
          if (std::abs(x - levels[r]) < std::abs(x - levels[best])) best = r;
        }
        chosen[4 * i + label] = best;
        costs[label] = (samples[first + i] - levels[best]) * (samples[first + i] - levels[best]);
      }
      for (std::size_t m = 0; m < kStates; ++m) {
        const float a = sums[m / 2] + costs[labels[m]];
        const float b = sums[m / 2 + kStates / 2] + costs[labels[m + kStates]];
        second[i * kStates + m] = b < a ? 1 : 0;
        next[m] = std::min(a, b);
      }
      sums.swap(next);
    }
    auto state =
        static_cast<std::size_t>(std::min_element(sums.begin(), sums.end()) - sums.begin());
    for (std::size_t i = kRow; i-- > 0;) {
      const std::size_t window = state + kStates * second[i * kStates + state];
      const std::size_t level = chosen[4 * i + labels[window]];
      const double sample = samples[first + i];
      result.sums[level] += sample;
      result.counts[level] += 1;
      result.error += (sample - levels[level]) * (sample - levels[level]);
      state = window / 2;
    }
  }
  return result;
}

// Replaces levels by centroids, kept mirrored.
void move_to_centroids(const Statistics& seen, Levels& levels) {
  const std::size_t n = levels.size();
  for (std::size_t r = 0; r < n / 2; ++r) {
    const std::size_t mirror = n - 1 - r;
    const double count = seen.counts[r] + seen.counts[mirror];
    if (count > 0) levels[r] = static_cast<float>((seen.sums[r] - seen.sums[mirror]) / count);
    levels[mirror] = -levels[r];
  }
}

// Where the distribution function of a Gaussian of variance 1.6 is p.
double quantile(double p) {
  double low = -10, high = 10;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle / std::sqrt(3.2)) / 2 < p ? low : high) = middle;
  }
  return low;
}

struct Table {
  std::vector<int> integers;
  double step;
};

// The best integers of at most `most`.
Table derive(int bits, const std::vector<float>& samples, int most) {
  const std::size_t n = std::size_t{2} << bits;
  Levels levels(n);
  for (std::size_t r = 0; r < n / 2; ++r) {
    levels[r] =
        static_cast<float>(quantile((static_cast<double>(r) + 0.5) / static_cast<double>(n)));
    levels[n - 1 - r] = -levels[r];
  }
  for (int round = 0; round < kRounds; ++round) {
    move_to_centroids(best_paths(bits, samples, levels), levels);
  }
  Table table{std::vector<int>(n), double{levels.back()} / most};
  for (int round = 0;; ++round) {
    Levels rounded(n);
    for (std::size_t r = 0; r < n; ++r) {
      const auto integer = static_cast<int>(std::nearbyint(levels[r] / table.step));
      table.integers[r] = std::clamp(integer, -most, most);
      rounded[r] = static_cast<float>(table.integers[r] * table.step);
    }
    if (round == kIntegerRounds) return table;
    const Statistics seen = best_paths(bits, samples, rounded);
    double product = 0, square = 0;
    for (std::size_t r = 0; r < n; ++r) {
      product += table.integers[r] * seen.sums[r];
      square += table.integers[r] * table.integers[r] * seen.counts[r];
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

int run(int bits, int most) {
  const std::vector<float> samples = samples_of(1000), others = samples_of(2000);
  const Table table = derive(bits, samples, most);
  const std::size_t n = table.integers.size();
  Levels levels(n);
  bool same = true;
  for (std::size_t r = 0; r < n; ++r) {
    levels[r] = static_cast<float>(table.integers[r] * table.step);
    same = same && table.integers[r] == trellis_table(bits).levels[r];
  }
  double square = 0;
  for (const float x : others) square += double{x} * x;
  std::printf("%d bits, at most %d: step %.17g, distortion %.5f\n", bits, most, table.step,
              best_paths(bits, others, levels).error / square);
  for (std::size_t r = n / 2; r < n; ++r) std::printf("%d, ", table.integers[r]);
  std::printf("\n");
  return same && table.step == trellis_step(bits) ? 0 : 1;
}

}  // namespace
}  // namespace turboquant

// derive_trellis: checks the four tables. derive_trellis <bits> <most>: other largest levels.
int main(int argc, char** argv) {
  if (argc == 3) {
    turboquant::run(std::atoi(argv[1]), std::atoi(argv[2]));
    return 0;
  }
  int different = 0;
  for (int bits = 1; bits <= 4; ++bits) {
    different += turboquant::run(bits, turboquant::trellis_table(bits).offset);
  }
  if (different > 0) std::printf("%d tables in use are others\n", different);
  return different > 0 ? 1 : 0;
}
