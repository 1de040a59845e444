// Rows, queries and their signs for the tests of searches that leave rows out.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "quantizer/scanner.h"
#include "quantizer/sign_plane.h"
#include "tests/quantizer/vectors.h"

namespace turboquant {

constexpr std::size_t kRows = 16384 + 100;
constexpr std::size_t kQueries = 12;
constexpr std::size_t kD = 72;
constexpr auto kIp = Metric::kInnerProduct;
constexpr auto kL2 = Metric::kL2;

// Rows around 300 centres, queries between them: neighbours differ clearly from the rest.
inline std::vector<float> around_centres(std::size_t n, std::uint64_t seed, std::size_t d = kD) {
  const std::vector<float> centres = gaussian_vectors(300, d, 3);
  std::vector<float> x = gaussian_vectors(n, d, seed);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t c = random_word(seed, i) % 300;
    for (std::size_t j = 0; j < d; ++j) x[i * d + j] += 1.5f * centres[c * d + j];
  }
  return x;
}

struct Answer {
  std::vector<float> scores;
  std::vector<std::int64_t> ids;
};

struct Set {
  Set(int bits, Metric m, const std::vector<float>& x, std::vector<float> q,
      Estimator estimator = Estimator::kTurboQuant, const std::vector<float>& centre = {},
      std::size_t dimension = kD)
      : quantizer(options(bits, m, estimator, centre, dimension)),
        metric(m),
        d(dimension),
        n(x.size() / d),
        queries(std::move(q)),
        codes(n * quantizer.code_size()),
        plane(quantizer, m) {
    quantizer.quantize(x.data(), n, codes.data());
    plane.extend(codes.data(), n);
  }

  static QuantizerOptions options(int bits, Metric metric, Estimator estimator,
                                  const std::vector<float>& centre = {},
                                  std::size_t dimension = kD) {
    QuantizerOptions o;
    o.centre = centre;
    o.dimension = dimension;
    o.bits = bits;
    o.estimator = estimator;
    o.with_norm = metric == kL2;
    return o;
  }

  // `at_once` queries a call. confidence 0: all rows.
  Answer search(std::size_t k, float confidence, std::size_t at_once = 1) const {
    const std::size_t nq = queries.size() / d;
    Answer a{std::vector<float>(nq * k), std::vector<std::int64_t>(nq * k)};
    Pruning pruning;
    if (confidence > 0) pruning = {&plane, confidence};
    for (std::size_t q = 0; q < nq; q += at_once) {
      search_topk(quantizer, metric, &queries[q * d], std::min(at_once, nq - q),
                  {codes.data(), n, nullptr}, k, &a.scores[q * k], &a.ids[q * k], pruning);
    }
    return a;
  }

  Quantizer quantizer;
  Metric metric;
  std::size_t d;
  std::size_t n;
  std::vector<float> queries;
  std::vector<std::uint8_t> codes;
  SignPlane plane;
};

// Share of the rows of `all` that `some` found; every common row must have the same score.
inline double kept(const Answer& all, const Answer& some, std::size_t k) {
  std::size_t found = 0;
  for (std::size_t q = 0; q < all.ids.size() / k; ++q) {
    for (std::size_t j = 0; j < k; ++j) {
      const auto first = some.ids.begin() + static_cast<std::ptrdiff_t>(q * k);
      const auto at = std::find(first, first + static_cast<std::ptrdiff_t>(k), all.ids[q * k + j]);
      if (at == first + static_cast<std::ptrdiff_t>(k)) continue;
      ++found;
      EXPECT_EQ(some.scores[static_cast<std::size_t>(at - some.ids.begin())],
                all.scores[q * k + j]);
    }
  }
  return static_cast<double>(found) / static_cast<double>(all.ids.size());
}

}  // namespace turboquant
