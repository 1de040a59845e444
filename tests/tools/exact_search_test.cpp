#include "tools/commands/exact_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "tests/tools/test_files.h"
#include "tools/commands/ground_truth.h"
#include "tools/io/errors.h"

namespace turboquant::tools {
namespace {

class Exact : public testing::FolderTest {
 protected:
  Neighbors search(const std::vector<float>& base, const std::vector<float>& queries, std::size_t d,
                   std::size_t k, SearchMetric metric) {
    testing::write_bytes(path("base.fbin"),
                         testing::fbin_bytes(static_cast<std::uint32_t>(base.size() / d),
                                             static_cast<std::uint32_t>(d), base));
    const auto reader = io::open_vectors(path("base.fbin"));
    Progress silent;
    return exact_search(*reader, queries.data(), queries.size() / d, k, metric, silent);
  }
};

// Sorts all rows by a key computed in long double.
std::vector<std::pair<long double, std::int64_t>> sorted_rows(const std::vector<float>& base,
                                                              const float* q, std::size_t d,
                                                              SearchMetric metric) {
  std::vector<std::pair<long double, std::int64_t>> all;
  for (std::size_t i = 0; i < base.size() / d; ++i) {
    long double dot = 0, distance = 0, xx = 0, qq = 0;
    for (std::size_t j = 0; j < d; ++j) {
      const long double a = q[j], b = base[i * d + j];
      dot += a * b;
      distance += (a - b) * (a - b);
      xx += b * b;
      qq += a * a;
    }
    long double key = distance;
    if (metric == SearchMetric::kInnerProduct) key = -dot;
    if (metric == SearchMetric::kCosine) key = xx > 0 && qq > 0 ? -dot / std::sqrt(xx * qq) : 0;
    all.emplace_back(key, static_cast<std::int64_t>(i));
  }
  std::sort(all.begin(), all.end());
  return all;
}

TEST_F(Exact, AgreesWithSortingEverything) {
  for (const std::size_t d : {1U, 17U, 64U}) {
    // More rows than a block, and more queries than a block.
    const std::vector<float> base = testing::random_floats(4100 * d, 1);
    const std::vector<float> queries = testing::random_floats(520 * d, 2);
    for (const SearchMetric metric :
         {SearchMetric::kInnerProduct, SearchMetric::kL2, SearchMetric::kCosine}) {
      if (d == 1 && metric == SearchMetric::kCosine) continue;  // all cosines are 1 or -1
      const Neighbors found = search(base, queries, d, 5, metric);
      for (const std::size_t q : {0U, 1U, 511U, 512U, 519U}) {
        const auto expected = sorted_rows(base, queries.data() + q * d, d, metric);
        for (std::size_t rank = 0; rank < 5; ++rank) {
          ASSERT_EQ(found.ids[q * 5 + rank], expected[rank].second)
              << metric_name(metric) << " d " << d << " query " << q << " rank " << rank;
          const auto key = static_cast<float>(expected[rank].first);
          ASSERT_FLOAT_EQ(found.scores[q * 5 + rank], metric == SearchMetric::kL2 ? key : -key);
        }
      }
    }
  }
}

TEST_F(Exact, EqualScoresAreOrderedByRow) {
  std::vector<float> base;
  for (int i = 0; i < 9000; ++i) base.insert(base.end(), {1.F, 2.F, 2.F});
  for (const SearchMetric metric :
       {SearchMetric::kInnerProduct, SearchMetric::kL2, SearchMetric::kCosine}) {
    const Neighbors found = search(base, {1.F, 2.F, 2.F}, 3, 4, metric);
    EXPECT_EQ(found.ids, (std::vector<std::int64_t>{0, 1, 2, 3}));
  }
}

TEST_F(Exact, CloseDistancesFarFromTheOrigin) {
  // In float, |q|^2 + |x|^2 - 2<q,x> is off by more than the distances here.
  std::vector<float> base;
  for (int i = 0; i < 64; ++i) base.insert(base.end(), {10000.F + 0.01F * float(i), 10000.F});
  const Neighbors found = search(base, {10000.32F, 10000.F}, 2, 3, SearchMetric::kL2);
  EXPECT_EQ(found.ids[0], 32);
}

TEST_F(Exact, HugeValuesDoNotOverflow) {
  const std::vector<float> base = {1e30F, 0, -1e30F, 1e30F, 3e30F, 1.F};
  const Neighbors found = search(base, {1e30F, 2.F}, 2, 3, SearchMetric::kInnerProduct);
  EXPECT_EQ(found.ids, (std::vector<std::int64_t>{2, 0, 1}));
  EXPECT_EQ(search(base, {1e30F, 0.F}, 2, 1, SearchMetric::kL2).ids[0], 0);
}

TEST_F(Exact, ZeroVectorsHaveCosineZero) {
  const Neighbors found = search({0, 0, -1, 0, 1, 1}, {1, 0}, 2, 3, SearchMetric::kCosine);
  EXPECT_EQ(found.ids, (std::vector<std::int64_t>{2, 0, 1}));
  EXPECT_EQ(found.scores[1], 0.F);
  EXPECT_EQ(search({1, 0, 0, 1}, {0, 0}, 2, 2, SearchMetric::kCosine).ids,
            (std::vector<std::int64_t>{0, 1}));
}

TEST_F(Exact, FewerRowsThanAsked) {
  const Neighbors found = search({1, 2}, {1, 1}, 2, 3, SearchMetric::kInnerProduct);
  EXPECT_EQ(found.ids, (std::vector<std::int64_t>{0, -1, -1}));
  EXPECT_EQ(found.scores[2], std::numeric_limits<float>::lowest());
  EXPECT_EQ(search({}, {1, 1}, 2, 1, SearchMetric::kL2).ids[0], -1);
}

TEST_F(Exact, BadRowsAreNamed) {
  EXPECT_FAILS(search({1, 2, 3, NAN}, {1, 1}, 2, 1, SearchMetric::kL2), io::DataError, "base.fbin",
               "row 1", "NaN");
}

TEST_F(Exact, GroundTruthFiles) {
  GroundTruthOptions options;
  options.base = testing::example("base.npy");
  options.queries = testing::example("queries.npy");
  options.k = 10;
  options.output = path("gt.ibin");
  options.distances = path("gt.fbin");
  Progress silent;
  EXPECT_EQ(write_ground_truth(options, silent), 200U);
  EXPECT_EQ(names(), (std::vector<std::string>{"gt.fbin", "gt.ibin"}));
  std::vector<std::int64_t> ids(2000);
  std::vector<float> scores(2000);
  io::open_vectors(path("gt.ibin"))->read_integers(0, 200, ids.data());
  io::open_vectors(path("gt.fbin"))->read(0, 200, scores.data());
  int described = 0;  // query i describes row i
  for (std::size_t q = 0; q < 200; ++q) {
    described += ids[q * 10] == static_cast<std::int64_t>(q);
    EXPECT_TRUE(std::is_sorted(scores.rbegin() + static_cast<std::ptrdiff_t>((199 - q) * 10),
                               scores.rbegin() + static_cast<std::ptrdiff_t>((200 - q) * 10)));
  }
  EXPECT_GT(described, 160);

  options.output = path("gt.fvecs");
  EXPECT_FAILS(write_ground_truth(options, silent), io::UsageError, "gt.fvecs", "ids");
  options.output = path("gt2.ibin");
  options.distances = path("gt2.ivecs");
  EXPECT_FAILS(write_ground_truth(options, silent), io::UsageError, "gt2.ivecs", "scores");
  EXPECT_EQ(names(), (std::vector<std::string>{"gt.fbin", "gt.ibin"}));
}

}  // namespace
}  // namespace turboquant::tools
