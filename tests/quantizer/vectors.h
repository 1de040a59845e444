// Test vectors that are the same on every platform: no std:: distribution, whose output is not
// specified.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "quantizer/rotation.h"

namespace turboquant {

/// n x d independent N(0, 1) entries up to the quality of a sum of twelve uniforms.
inline std::vector<float> gaussian_vectors(std::size_t n, std::size_t d, std::uint64_t seed) {
  std::vector<float> x(n * d);
  for (std::size_t i = 0; i < x.size(); ++i) {
    std::int64_t sum = 0;
    for (std::uint64_t part = 0; part < 3; ++part) {
      const std::uint64_t word = random_word(seed, 3 * i + part);
      for (int j = 0; j < 4; ++j) sum += static_cast<std::int64_t>(word >> (16 * j) & 0xffff);
    }
    x[i] = static_cast<float>(sum - 6 * 65535) / 65536.0f;
  }
  return x;
}

inline double dot(const float* a, const float* b, std::size_t d) {
  double sum = 0;
  for (std::size_t i = 0; i < d; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

inline std::vector<float> unit_vectors(std::size_t n, std::size_t d, std::uint64_t seed) {
  std::vector<float> x = gaussian_vectors(n, d, seed);
  for (std::size_t i = 0; i < n; ++i) {
    const double norm = std::sqrt(dot(&x[i * d], &x[i * d], d));
    for (std::size_t j = 0; j < d; ++j) x[i * d + j] = static_cast<float>(x[i * d + j] / norm);
  }
  return x;
}

struct NamedVector {
  std::string name;
  std::vector<float> x;
};

/// Inputs on which a weak rotation shows: unit length, dimension d.
inline std::vector<NamedVector> adversarial_vectors(std::size_t d) {
  std::vector<NamedVector> all;
  const auto add = [&](const char* name, auto value) {
    std::vector<float> x(d);
    for (std::size_t i = 0; i < d; ++i) x[i] = static_cast<float>(value(i));
    const double norm = std::sqrt(dot(x.data(), x.data(), d));
    for (float& v : x) v = static_cast<float>(v / norm);
    all.push_back({name, x});
  };
  add("one-hot", [&](std::size_t i) { return i == d / 3 ? 1.0 : 0.0; });
  add("first", [](std::size_t i) { return i == 0 ? 1.0 : 0.0; });
  add("last", [&](std::size_t i) { return i == d - 1 ? 1.0 : 0.0; });
  add("constant", [](std::size_t) { return 1.0; });
  add("sparse",
      [&](std::size_t i) { return i % (d / 4) == 1 ? 1.0 + double(i) / double(d) : 0.0; });
  add("binary", [](std::size_t i) { return (random_word(5, i) & 1) != 0 ? 1.0 : -1.0; });
  add("low-frequency",
      [&](std::size_t i) { return std::cos(2 * 3.14159265358979 * double(i) / double(d)); });
  add("one dominant",
      [](std::size_t i) { return i == 7 ? 100.0 : double(random_word(6, i) % 2001) / 1000 - 1; });
  return all;
}

}  // namespace turboquant
