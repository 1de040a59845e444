#include "quantizer/normal.h"

#include <cmath>

namespace turboquant {

// Newton's method on the logarithm of the tail, which is nearly a parabola.
double normal_quantile(double confidence) {
  const double tail = 1 - confidence;
  double x = std::sqrt(-2 * std::log(2 * tail));
  for (int i = 0; i < 6; ++i) {
    const double at = std::erfc(x / std::sqrt(2.0)) / 2;
    const double density = std::exp(-x * x / 2) * 0.3989422804014327;
    x += at * std::log(at / tail) / density;
  }
  return x;
}

}  // namespace turboquant
