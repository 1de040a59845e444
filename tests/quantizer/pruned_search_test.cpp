// Searches that look at sign bits first, against scans of all rows: the same scores, nearly no row
// missing, and the same answer for every number of threads.
#include "quantizer/pruned_search.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <limits>

#include "tests/forced_isa.h"
#include "tests/quantizer/pruned_set.h"

namespace turboquant {
namespace {

TEST(PrunedSearch, FindsWhatAScanFinds) {
  const std::vector<float> x = around_centres(kRows, 1);
  const std::vector<float> q = around_centres(kQueries, 2);
  const auto expect_found = [&](const Set& set) {
    for (const std::size_t k : {1, 10, 100}) {
      const Answer all = set.search(k, 0);
      EXPECT_GE(kept(all, set.search(k, 0.999f), k), 0.998) << k;
      EXPECT_EQ(set.search(k, 0.9999999f).ids, all.ids) << k;
    }
  };
  expect_found(Set(2, kIp, x, q));
  expect_found(Set(3, kL2, x, q));
  expect_found(Set(4, kIp, x, q));
  expect_found(Set(4, kL2, x, q, Estimator::kMse));
  const std::vector<float> centre = gaussian_vectors(1, kD, 9);
  expect_found(Set(2, kL2, x, q, Estimator::kTurboQuant, centre));
  expect_found(Set(3, kIp, x, q, Estimator::kTurboQuant, centre));
}

// Rows long enough for a first pass over a part of their signs.
TEST(PrunedSearch, LongRows) {
  constexpr std::size_t kLong = 1000;
  const std::vector<float> x = around_centres(kRows, 1, kLong);
  const std::vector<float> q = around_centres(kQueries, 2, kLong);
  for (const Metric metric : {kIp, kL2}) {
    const Set set(4, metric, x, q, Estimator::kTurboQuant, {}, kLong);
    ASSERT_EQ(set.plane.prefixes().size(), 2u);
    for (const std::size_t k : {1, 10, 300}) {
      const Answer all = set.search(k, 0);
      EXPECT_GE(kept(all, set.search(k, 0.999f), k), 0.998) << k;
      EXPECT_EQ(set.search(k, 0.9999999f).ids, all.ids) << k;
    }
    EXPECT_LT(kept(set.search(300, 0), set.search(300, 0.51f), 300), 0.99);
  }
}

// A low confidence must cost recall: the bound is what decides.
TEST(PrunedSearch, ConfidenceIsTheShareKeptAtTheBound) {
  const Set set(4, kIp, around_centres(kRows, 1), around_centres(kQueries, 2));
  const Answer all = set.search(100, 0);
  const double low = kept(all, set.search(100, 0.51f), 100);
  const double middle = kept(all, set.search(100, 0.9f), 100);
  EXPECT_LT(low, 0.95);
  EXPECT_GT(low, 0.5);
  EXPECT_GT(middle, low);
  EXPECT_GT(kept(all, set.search(100, 0.999f), 100), middle);
}

TEST(PrunedSearch, ThreadsDoNotChangeTheAnswer) {
  const int threads = omp_get_max_threads();
  const Set set(3, kL2, around_centres(kRows, 1), around_centres(kQueries, 2));
  omp_set_num_threads(1);
  const Answer one = set.search(10, 0.9f);
  for (const int n : {2, 3, 8}) {
    omp_set_num_threads(n);
    const Answer more = set.search(10, 0.9f);
    EXPECT_EQ(more.ids, one.ids) << n;
    EXPECT_EQ(more.scores, one.scores) << n;
  }
  omp_set_num_threads(threads);
}

TEST(PrunedSearch, HardRows) {
  const std::vector<float> q = around_centres(5, 2);
  const std::vector<float> plain = around_centres(kRows, 1);
  std::vector<float> identical(kRows * kD);
  std::vector<float> nearly(kRows * kD);
  std::vector<float> at_query = plain;
  std::vector<float> sizes = plain;
  const std::vector<float> noise = gaussian_vectors(kRows, kD, 4);
  for (std::size_t i = 0; i < kRows; ++i) {
    for (std::size_t j = 0; j < kD; ++j) {
      identical[i * kD + j] = plain[j];
      nearly[i * kD + j] = plain[j] + 1e-3f * noise[i * kD + j];
      if (i % 3 == 0) at_query[i * kD + j] = q[j] + 0.3f * noise[i * kD + j];
      sizes[i * kD + j] *= i % 5 == 0 ? 0 : (i % 7 == 0 ? 1e30f : (i % 11 == 0 ? 1e-42f : 1));
    }
  }
  for (const Metric metric : {kIp, kL2}) {
    for (const auto& x : {identical, nearly, at_query, sizes, std::vector<float>(kRows * kD)}) {
      const Set set(4, metric, x, q);
      const Answer all = set.search(20, 0);
      EXPECT_GE(kept(all, set.search(20, 0.999f), 20), 0.99);
    }
    // All scores are equal, so the rows are ordered by number.
    const Set set(2, metric, identical, q);
    EXPECT_EQ(set.search(20, 0.999f).ids, set.search(20, 0).ids);
    EXPECT_EQ(set.search(20, 0.999f).ids[19], 19);
  }
  const Set zero_query(4, kIp, plain, std::vector<float>(kD));
  EXPECT_EQ(zero_query.search(20, 0.999f).ids, zero_query.search(20, 0).ids);
  std::vector<float> bad(kD, std::numeric_limits<float>::quiet_NaN());
  const Set nan_query(4, kIp, plain, bad);
  EXPECT_THROW(nan_query.search(20, 0.999f), std::invalid_argument);
}

// Rows near the query in all chunks but one, and in one alone. One of them is what a sample of the
// chunks looks at: what it lets expect is wrong, in either direction.
TEST(PrunedSearch, SamplesThatMislead) {
  const std::vector<float> q = around_centres(2, 2);
  const std::vector<float> noise = gaussian_vectors(kRows, kD, 4);
  const std::vector<float> plain = around_centres(kRows, 1);
  for (std::size_t chunk = 0; chunk <= kRows / 512; ++chunk) {
    std::vector<float> outside = plain;
    std::vector<float> inside = plain;
    for (std::size_t i = 0; i < kRows * kD; ++i) {
      std::vector<float>& x = i / kD / 512 == chunk ? inside : outside;
      x[i] = q[i % kD] + 0.3f * noise[i];
    }
    const Set many(4, kIp, outside, q);
    const ScanQueries queries(many.quantizer.impl(), kIp, q.data(), 1);
    std::vector<TopK> best(2, TopK(20));
    // More rows in question than could be scored in less time than a scan takes.
    EXPECT_FALSE(pruned_search(queries, 0, {many.codes.data(), many.n, nullptr}, many.plane, 0.999f,
                               20, best));
    for (const Set& set : {many, Set(2, kL2, inside, q), Set(4, kIp, inside, q)}) {
      const Answer all = set.search(20, 0);
      EXPECT_GE(kept(all, set.search(20, 0.999f), 20), 0.99) << chunk;
      EXPECT_EQ(set.search(20, 0.9999999f).ids, all.ids) << chunk;
    }
  }
}

TEST(PrunedSearch, PlanesGrow) {
  const Set set(3, kL2, around_centres(kRows, 1), around_centres(kQueries, 2));
  Set grown = set;
  grown.plane = SignPlane(grown.quantizer, kL2);
  for (const std::size_t n : {1, 63, 64, 65, 200, 1000, 16384})
    grown.plane.extend(set.codes.data(), n);
  grown.plane.extend(set.codes.data(), kRows);
  EXPECT_EQ(grown.plane.rows(), kRows);
  EXPECT_EQ(grown.plane.bytes(), set.plane.bytes());
  const Answer a = set.search(10, 0.9f);
  const Answer b = grown.search(10, 0.9f);
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.scores, b.scores);
}

TEST(PrunedSearch, WhatItIsFor) {
  const Quantizer four(Set::options(4, kIp, Estimator::kTurboQuant));
  EXPECT_TRUE(can_prune(four, 1, kRows, 10));
  EXPECT_FALSE(can_prune(four, 4, kRows, 10));
  EXPECT_FALSE(can_prune(four, 1, 16383, 10));
  EXPECT_FALSE(can_prune(four, 1, kRows, kRows / 16));
  EXPECT_FALSE(can_prune(Quantizer(Set::options(1, kIp, Estimator::kTurboQuant)), 1, kRows, 10));
  EXPECT_FALSE(can_prune(Quantizer(Set::options(4, kIp, Estimator::kQjl)), 1, kRows, 10));
  EXPECT_FALSE(can_prune(Quantizer(Set::options(1, kIp, Estimator::kTrellis)), 1, kRows, 10));
  EXPECT_TRUE(can_prune(Quantizer(Set::options(4, kIp, Estimator::kTrellis)), 1, kRows, 10));
  QuantizerOptions long_rows = Set::options(4, kIp, Estimator::kTurboQuant);
  long_rows.dimension = 768;
  EXPECT_TRUE(can_prune(Quantizer(long_rows), 100, kRows, 10));
  long_rows.estimator = Estimator::kTrellis;
  EXPECT_TRUE(can_prune(Quantizer(long_rows), 1, kRows, 10));
  EXPECT_FALSE(can_prune(Quantizer(long_rows), 100, kRows, 10));
}

TEST(PrunedSearch, TrellisCodes) {
  for (const int bits : {2, 3, 4}) {
    for (const Metric metric : {kIp, kL2}) {
      const Set set(bits, metric, around_centres(kRows, 1), around_centres(kQueries, 2),
                    Estimator::kTrellis);
      const Answer all = set.search(10, 0);
      EXPECT_GE(kept(all, set.search(10, 0.999f), 10), 0.998) << bits;
      EXPECT_EQ(set.search(10, 0.9999999f).ids, all.ids) << bits;
      // The bound decides.
      EXPECT_LT(kept(set.search(100, 0), set.search(100, 0.51f), 100), 0.99) << bits;
    }
  }
}

}  // namespace
}  // namespace turboquant
