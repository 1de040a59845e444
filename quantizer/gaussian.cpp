#include "quantizer/gaussian.h"

#include <cmath>

#include "quantizer/rotation.h"

namespace turboquant {
namespace {

// Natural logarithm from basic operations alone, so that the matrix does not depend on the
// mathematics library: x = m 2^e, ln m = 2 atanh((m - 1) / (m + 1)).
double portable_log(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);  // [0.5, 1)
  if (m < 0.7071067811865476) {
    m *= 2;
    --exponent;
  }
  const double t = (m - 1) / (m + 1);
  double sum = 0;
  for (int k = 25; k >= 1; k -= 2) sum = sum * t * t + 1.0 / k;
  return 2 * t * sum + exponent * 0.6931471805599453;
}

// Uniform in (-1, 1), 53 bits, never 0.
double symmetric_uniform(std::uint64_t word) {
  return (static_cast<double>(word >> 11) + 0.5) * 0x1p-52 - 1;
}

}  // namespace

// Marsaglia's polar method; two entries for each accepted pair.
GaussianProjection::GaussianProjection(std::size_t d, std::uint64_t seed) : d_(d), entries_(d * d) {
  std::uint64_t counter = 0;
  for (std::size_t i = 0; i < entries_.size();) {
    const double a = symmetric_uniform(random_word(seed, counter++));
    const double b = symmetric_uniform(random_word(seed, counter++));
    const double s = a * a + b * b;
    if (s >= 1) continue;
    const double factor = std::sqrt(-2 * portable_log(s) / s);
    entries_[i++] = static_cast<float>(a * factor);
    if (i < entries_.size()) entries_[i++] = static_cast<float>(b * factor);
  }
}

void GaussianProjection::apply(const float* y, float* out) const {
  for (std::size_t r = 0; r < d_; ++r) {
    const float* row = entries_.data() + r * d_;
    float lanes[16] = {};
    std::size_t i = 0;
    for (; i + 16 <= d_; i += 16) {
      for (std::size_t j = 0; j < 16; ++j) lanes[j] += row[i + j] * y[i + j];
    }
    for (; i < d_; ++i) lanes[i % 16] += row[i] * y[i];
    for (std::size_t half = 8; half > 0; half /= 2) {
      for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    }
    out[r] = lanes[0];
  }
}

void GaussianProjection::apply_transposed(const float* y, float* out) const {
  for (std::size_t i = 0; i < d_; ++i) out[i] = 0;
  for (std::size_t r = 0; r < d_; ++r) {
    const float* row = entries_.data() + r * d_;
    for (std::size_t i = 0; i < d_; ++i) out[i] += row[i] * y[r];
  }
}

}  // namespace turboquant
