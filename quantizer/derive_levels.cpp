// Derives the constants of quantizer/levels.cpp: real-valued Lloyd-Max tables of N(0, 1) for 1 to
// 4 bits, the step that suits the chosen integer levels best, thresholds, and what both distort.
// Prints everything; tests/quantizer/levels_test.cpp pins the results.
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

namespace {

double density(double x) {
  return std::isinf(x) ? 0 : std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
}
double below(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }

using Levels = std::vector<double>;  // positive half, ascending

// Thresholds between the positive levels, from 0 to infinity.
std::vector<double> cells(const Levels& levels) {
  std::vector<double> edges{0};
  for (std::size_t i = 0; i + 1 < levels.size(); ++i) {
    edges.push_back((levels[i] + levels[i + 1]) / 2);
  }
  edges.push_back(std::numeric_limits<double>::infinity());
  return edges;
}

struct Moments {
  double product = 0;  // E[y z]
  double square = 0;   // E[z^2]
};

Moments moments(const Levels& levels, const std::vector<double>& edges) {
  Moments m;
  for (std::size_t i = 0; i < levels.size(); ++i) {
    m.product += 2 * levels[i] * (density(edges[i]) - density(edges[i + 1]));
    m.square += 2 * levels[i] * levels[i] * (below(edges[i + 1]) - below(edges[i]));
  }
  return m;
}

double distortion(const Levels& levels) {
  const Moments m = moments(levels, cells(levels));
  return 1 - 2 * m.product + m.square;
}

Levels lloyd_max(int bits) {
  Levels levels;
  for (int i = 0; i < 1 << (bits - 1); ++i) levels.push_back((i + 0.5) * 4 / (1 << bits));
  for (int round = 0; round < 20000; ++round) {
    const std::vector<double> edges = cells(levels);
    for (std::size_t i = 0; i < levels.size(); ++i) {
      levels[i] =
          (density(edges[i]) - density(edges[i + 1])) / (below(edges[i + 1]) - below(edges[i]));
    }
  }
  return levels;
}

Levels scaled(const std::vector<int>& integers, double step) {
  Levels levels;
  for (const int z : integers) levels.push_back(z * step);
  return levels;
}

// Fixed point of: thresholds from the step, then the least-squares step.
double best_step(const std::vector<int>& integers, double step) {
  for (int round = 0; round < 2000; ++round) {
    const Moments m = moments(scaled(integers, 1), cells(scaled(integers, step)));
    step = m.product / m.square;
  }
  return step;
}

}  // namespace

int main() {
  const std::vector<std::vector<int>> chosen = {
      {1}, {3, 10}, {3, 9, 16, 26}, {3, 9, 15, 21, 28, 36, 46, 61}};
  for (int bits = 1; bits <= 4; ++bits) {
    const Levels real = lloyd_max(bits);
    const std::vector<int>& integers = chosen[static_cast<std::size_t>(bits - 1)];
    const double step = best_step(integers, real.back() / integers.back());
    const Levels levels = scaled(integers, step);
    const double loss = distortion(levels) / distortion(real) - 1;
    std::printf("%d bits\n  Lloyd-Max  ", bits);
    for (const double level : real) std::printf(" %.6f", level);
    std::printf("  distortion %.6f\n  integers   ", distortion(real));
    for (const int z : integers) std::printf(" %d", z);
    std::printf("  step %.17g  distortion %.6f (+%.3f%%)\n  thresholds ", step, distortion(levels),
                100 * loss);
    const std::vector<double> edges = cells(levels);
    for (std::size_t i = 1; i + 1 < edges.size(); ++i) {
      std::printf(" %.9g", static_cast<double>(static_cast<float>(edges[i])));
    }
    std::printf("\n");
  }
}
