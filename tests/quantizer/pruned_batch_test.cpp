// Searches of many queries that look at the first coordinates of long rows first, against scans of
// all rows: the same scores, and nearly no row missing.
#include <gtest/gtest.h>
#include <omp.h>

#include "tests/forced_isa.h"
#include "tests/quantizer/pruned_set.h"

namespace turboquant {
namespace {

constexpr std::size_t kLong = 800;
constexpr std::size_t kBatch = 40;

class PrunedBatchTest : public testing::Test {
 protected:
  ~PrunedBatchTest() override { omp_set_num_threads(threads_); }
  const int threads_ = omp_get_max_threads();
};

Set long_set(int bits, Metric metric, const std::vector<float>& x, const std::vector<float>& q,
             const std::vector<float>& centre = {}) {
  return Set(bits, metric, x, q, Estimator::kTurboQuant, centre, kLong);
}

TEST_F(PrunedBatchTest, FindsWhatAScanFinds) {
  const std::vector<float> x = around_centres(kRows, 1, kLong);
  const std::vector<float> q = around_centres(kBatch, 2, kLong);
  const std::vector<float> centre = gaussian_vectors(1, kLong, 9);
  for (const Metric metric : {kIp, kL2}) {
    for (const Set& set : {long_set(2, metric, x, q), long_set(4, metric, x, q),
                           long_set(3, metric, x, q, centre)}) {
      ASSERT_TRUE(can_prune(set.quantizer, kBatch, kRows, 100));
      for (const std::size_t k : {1, 10, 300}) {
        const Answer all = set.search(k, 0, kBatch);
        for (const int threads : {1, 2, 3, 7}) {
          omp_set_num_threads(threads);
          EXPECT_GE(kept(all, set.search(k, 0.999f, kBatch), k), 0.998) << k;
          EXPECT_EQ(set.search(k, 0.9999999f, kBatch).ids, all.ids) << k;
        }
      }
    }
  }
}

// A low confidence must cost recall: rows are left out, by the bound.
TEST_F(PrunedBatchTest, ConfidenceIsTheShareKeptAtTheBound) {
  const Set set =
      long_set(4, kIp, around_centres(kRows, 1, kLong), around_centres(kBatch, 2, kLong));
  const Answer all = set.search(300, 0, kBatch);
  const double low = kept(all, set.search(300, 0.51f, kBatch), 300);
  EXPECT_LT(low, 0.998);
  EXPECT_GT(low, 0.5);
  EXPECT_GT(kept(all, set.search(300, 0.999f, kBatch), 300), low);
}

// Rows in an order that makes a sample of them say the wrong thing, and rows that a first look
// cannot tell apart: right nevertheless.
TEST_F(PrunedBatchTest, HardRows) {
  const std::vector<float> q = around_centres(20, 2, kLong);
  const std::vector<float> plain = around_centres(kRows, 1, kLong);
  const std::vector<float> noise = gaussian_vectors(kRows, kLong, 4);
  enum Kind { kIdentical, kNearly, kSizes, kOnlyInSample, kOnlyOutside, kZeros };
  for (const Kind kind : {kIdentical, kNearly, kSizes, kOnlyInSample, kOnlyOutside, kZeros}) {
    std::vector<float> x = plain;
    for (std::size_t i = 0; i < kRows; ++i) {
      const bool sampled = i / 256 % 16 == 8;  // as the search samples today
      for (std::size_t j = 0; j < kLong; ++j) {
        float& v = x[i * kLong + j];
        if (kind == kIdentical) v = plain[j];
        if (kind == kNearly) v = plain[j] + 1e-3f * noise[i * kLong + j];
        if (kind == kSizes) v *= i % 5 == 0 ? 0 : (i % 7 == 0 ? 1e30f : i % 11 == 0 ? 1e-42f : 1);
        if (kind == kOnlyInSample && sampled) v = q[j] + 0.3f * noise[i * kLong + j];
        if (kind == kOnlyOutside && !sampled && i % 3 == 0) v = q[j] + noise[i * kLong + j];
        if (kind == kZeros) v = 0;
      }
    }
    for (const Metric metric : {kIp, kL2}) {
      const Set set = long_set(4, metric, x, q);
      const Answer all = set.search(20, 0, 20);
      for (const int threads : {1, 3}) {
        omp_set_num_threads(threads);
        EXPECT_GE(kept(all, set.search(20, 0.999f, 20), 20), 0.99) << kind;
      }
      if (kind != kIdentical && kind != kZeros) continue;
      // All scores are equal, so the rows are ordered by number.
      EXPECT_EQ(set.search(20, 0.999f, 20).ids, all.ids);
    }
  }
}

TEST_F(PrunedBatchTest, ZeroQueriesAndWhatItIsFor) {
  std::vector<float> q = around_centres(kBatch, 2, kLong);
  std::fill(q.begin(), q.begin() + kLong, 0.0f);
  const Set set = long_set(4, kIp, around_centres(kRows, 1, kLong), q);
  EXPECT_EQ(set.search(20, 0.9999999f, kBatch).ids, set.search(20, 0, kBatch).ids);
  EXPECT_FALSE(can_prune(set.quantizer, kBatch, 16383, 10));
  EXPECT_FALSE(can_prune(set.quantizer, kBatch, kRows, kRows / 16));
}

}  // namespace
}  // namespace turboquant
