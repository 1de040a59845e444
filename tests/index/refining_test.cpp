// Refined searches against FAISS's own of the same index.
#include "index/refining.h"

#include <faiss/IndexFlat.h>
#include <faiss/IndexFlatCodes.h>
#include <faiss/IndexRefine.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::Results;
using test::search;

constexpr std::size_t kD = 50;
constexpr std::int64_t kN = 600;

bool is_refining(const faiss::Index& index) {
  return dynamic_cast<const Refining<faiss::IndexRefineFlat>*>(&index) != nullptr ||
         dynamic_cast<const Refining<faiss::IndexRefine>*>(&index) != nullptr;
}

class RefiningTest : public testing::TestWithParam<std::tuple<std::string, faiss::MetricType>> {
 protected:
  RefiningTest() : queries_(clustered(45, kD, 2)) {
    index_ = index_factory(kD, std::get<0>(GetParam()), std::get<1>(GetParam()));
    test::fill(*index_, clustered(kN, kD, 1));
  }
  faiss::IndexRefine& refine() { return dynamic_cast<faiss::IndexRefine&>(*index_); }

  // As FAISS searches it.
  Results by_faiss(std::int64_t k) {
    Results found;
    found.distances.resize(45 * static_cast<std::size_t>(k));
    found.labels.resize(found.distances.size());
    refine().faiss::IndexRefine::search(45, queries_.data(), k, found.distances.data(),
                                        found.labels.data(), nullptr);
    return found;
  }

  std::vector<float> queries_;
  std::unique_ptr<faiss::Index> index_;
};

INSTANTIATE_TEST_SUITE_P(
    All, RefiningTest,
    testing::Combine(testing::Values("TQ2,RFlat", "TQ2,Refine(SQ8)", "TQ3,Refine(SQfp16)",
                                     "TQ3,Refine(SQ4)", "TQ1,Refine(TQ4)", "HNSW16,TQ2,RFlat",
                                     "TQ4r2,RFlat"),
                     testing::Values(faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2)),
    [](const auto& instance) {
      return test::test_name(std::get<0>(instance.param)) +
             (std::get<1>(instance.param) == faiss::METRIC_L2 ? "_L2" : "_IP");
    });

TEST_P(RefiningTest, FindsWhatFaissFinds) {
  EXPECT_TRUE(is_refining(*index_));
  for (const float factor : {1.0f, 2.5f, 8.0f, 1000.0f}) {
    refine().k_factor = factor;
    for (const std::int64_t k : {1, 10, 100}) {
      const Results ours = search(*index_, queries_, k);
      const Results theirs = by_faiss(factor > 100 && k == 100 ? 100 : k);
      std::size_t other = 0;
      for (std::size_t i = 0; i < ours.labels.size(); ++i) {
        // Sums of floats, added in another order.
        ASSERT_NEAR(ours.distances[i], theirs.distances[i],
                    2e-5 * (100 + std::fabs(theirs.distances[i])));
        other += ours.labels[i] != theirs.labels[i] ? 1 : 0;
      }
      EXPECT_LE(other, ours.labels.size() / 100);
    }
  }
}

TEST_P(RefiningTest, ThreadsAndBatchesDoNotMatter) {
  refine().k_factor = 4;
  const Results batch = search(*index_, queries_, 10);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(3);
  test::expect_same(search(*index_, queries_, 10), batch);
  omp_set_num_threads(threads);
  for (std::size_t q = 0; q < 45; q += 9) {
    const Results one = search(*index_,
                               {queries_.begin() + static_cast<long>(q * kD),
                                queries_.begin() + static_cast<long>(q * kD + kD)},
                               10);
    EXPECT_TRUE(std::equal(one.labels.begin(), one.labels.end(),
                           batch.labels.begin() + static_cast<long>(q * 10)));
    EXPECT_TRUE(std::equal(one.distances.begin(), one.distances.end(),
                           batch.distances.begin() + static_cast<long>(q * 10)));
  }
}

TEST_P(RefiningTest, MoreThanThereAreAndWrongParameters) {
  refine().k_factor = 2;
  const Results all = search(*index_, queries_, kN + 5);
  const bool largest = std::get<1>(GetParam()) == faiss::METRIC_INNER_PRODUCT;
  EXPECT_EQ(all.labels[kN + 4], -1);
  EXPECT_EQ(all.distances[kN + 4],
            largest ? std::numeric_limits<float>::lowest() : std::numeric_limits<float>::max());
  refine().k_factor = 0.5f;
  EXPECT_THROW(search(*index_, queries_, 10), faiss::FaissException);
  refine().k_factor = NAN;
  EXPECT_THROW(search(*index_, queries_, 10), faiss::FaissException);
  refine().k_factor = 1;
  EXPECT_THROW(search(*index_, queries_, 0), faiss::FaissException);
}

TEST_P(RefiningTest, RowsThatTheRefiningIndexLacks) {
  refine().k_factor = 4;
  const auto x = clustered(kN, kD, 1);
  refine().base_index->add(300, x.data());
  EXPECT_THROW(search(*index_, {x.begin(), x.begin() + 300 * kD}, 10), faiss::FaissException);
}

// As a damaged file may hold it.
TEST(Refining, CodesThatAreMissing) {
  const auto x = clustered(kN, kD, 1);
  for (const char* text : {"TQ2,RFlat", "TQ2,Refine(SQ8)", "TQ2,Refine(SQfp16)"}) {
    const auto index = index_factory(kD, text, faiss::METRIC_L2);
    test::fill(*index, x);
    auto& refine = dynamic_cast<faiss::IndexRefine&>(*index);
    auto& codes = dynamic_cast<faiss::IndexFlatCodes&>(*refine.refine_index).codes;
    codes.resize(codes.size() - 1);
    EXPECT_THROW(search(*index, {x.begin(), x.begin() + kD}, 10), faiss::FaissException) << text;
  }
}

// Equal rows, of which the smaller ids come first.
TEST(Refining, TiesGoToTheSmallerId) {
  const auto x = clustered(kN, kD, 1);
  const auto index = index_factory(kD, "TQ4,RFlat", faiss::METRIC_L2);
  dynamic_cast<faiss::IndexRefine&>(*index).k_factor = 3;
  for (int copy = 0; copy < 20; ++copy) index->add(3, x.data());
  const Results found = search(*index, {x.begin() + kD, x.begin() + 2 * kD}, 20);
  for (std::size_t j = 0; j < 20; ++j) EXPECT_EQ(found.labels[j], static_cast<long>(3 * j + 1));
}

TEST(Refining, OthersAreLeftAlone) {
  EXPECT_FALSE(is_refining(*index_factory(kD, "PQ10,RFlat", faiss::METRIC_L2)));
}

}  // namespace
}  // namespace turboquant
