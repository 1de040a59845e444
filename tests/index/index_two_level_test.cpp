// Two-level codes: the whole code's scores, bit for bit, for rows that the first level finds.
#include "turboquant/index_two_level.h"

#include <faiss/IndexIDMap.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/io.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "quantizer/two_level.h"
#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"

namespace turboquant {
namespace {

using test::clustered;
using test::error_of;
using test::expect_same;
using test::search;
using testing::HasSubstr;

constexpr int kD = 70;  // a full block and a tail
constexpr std::int64_t kN = 900;
constexpr std::int64_t kK = 10;

std::vector<float> base() { return clustered(kN, kD, 1); }
std::vector<float> queries() { return clustered(30, kD, 2); }

// Name of the two-level index, of the flat one, metric.
using Case = std::tuple<const char*, const char*, faiss::MetricType>;
class TwoLevelIndex : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto& [two_level, flat, metric] = GetParam();
    index_ = index_factory(kD, two_level, metric);
    flat_ = index_factory(kD, flat, metric);
    const auto x = base();
    index_->add(kN, x.data());
    flat_->add(kN, x.data());
  }
  IndexTwoLevel& two_level() { return dynamic_cast<IndexTwoLevel&>(*index_); }
  const IndexTurboQuant& flat() { return dynamic_cast<const IndexTurboQuant&>(*flat_); }

  std::unique_ptr<faiss::Index> index_;
  std::unique_ptr<faiss::Index> flat_;
};

INSTANTIATE_TEST_SUITE_P(Names, TwoLevelIndex,
                         testing::Values(Case{"TQ4r2", "TQ4", faiss::METRIC_L2},
                                         Case{"TQ4r2", "TQ4", faiss::METRIC_INNER_PRODUCT},
                                         Case{"TQ4r1", "TQ4", faiss::METRIC_L2},
                                         Case{"TQ4r3c", "TQ4c", faiss::METRIC_L2},
                                         Case{"TQ3r2cos", "TQ3cos", faiss::METRIC_INNER_PRODUCT},
                                         Case{"TQ3r1ccos", "TQ3ccos", faiss::METRIC_L2},
                                         Case{"TQ2r1mse", "TQ2mse", faiss::METRIC_INNER_PRODUCT}));

TEST_P(TwoLevelIndex, HoldsTheSameCodes) {
  const IndexTurboQuant joined = two_level().flat();
  ASSERT_EQ(joined.codes.size(), flat().codes.size());
  EXPECT_TRUE(std::equal(joined.codes.begin(), joined.codes.end(), flat().codes.begin()));
  EXPECT_EQ(two_level().sa_code_size(), flat().sa_code_size());
}

TEST_P(TwoLevelIndex, TakesFourBytesMoreThanOneLevel) {
  const auto d = static_cast<std::size_t>(kD);
  const auto packed = [&](int bits) { return (d * static_cast<std::size_t>(bits) + 7) / 8; };
  const int bits = two_level().options().bits;
  const int first = two_level().first_bits();
  EXPECT_EQ(two_level().row_bytes() - packed(first) - packed(bits - first),
            flat().code_size - packed(bits) + 4);
}

TEST_P(TwoLevelIndex, WithAllCandidatesAnswersAsOneLevel) {
  two_level().k_factor = kN;
  expect_same(search(*index_, queries(), kK), search(*flat_, queries(), kK));
  expect_same(search(*index_, queries(), kN + 5), search(*flat_, queries(), kN + 5));
}

TEST_P(TwoLevelIndex, FewCandidatesHaveTheSameScoresAndMostOfTheRows) {
  const auto x = queries();
  const auto all = search(*flat_, x, kN);
  std::vector<std::map<std::int64_t, float>> scores(30);
  for (std::size_t i = 0; i < all.labels.size(); ++i) {
    scores[i / kN][all.labels[i]] = all.distances[i];
  }
  const auto wanted = search(*flat_, x, kK);
  double last = 0;
  for (const float factor : {1.0F, 2.5F, 8.0F}) {
    SearchParametersTwoLevel params;
    params.k_factor = factor;
    const auto found = search(*index_, x, kK, &params);
    std::size_t same = 0;
    for (std::size_t i = 0; i < found.labels.size(); ++i) {
      ASSERT_GE(found.labels[i], 0);
      ASSERT_EQ(found.distances[i], scores[i / kK][found.labels[i]]);
      const auto* begin = wanted.labels.data() + i / kK * kK;
      same += std::find(begin, begin + kK, found.labels[i]) != begin + kK ? 1 : 0;
    }
    const double recall = static_cast<double>(same) / static_cast<double>(found.labels.size());
    EXPECT_GE(recall, last);
    last = recall;
  }
  EXPECT_GT(last, two_level().first_bits() == 1 ? 0.9 : 0.99);
}

TEST_P(TwoLevelIndex, ReconstructsAndFindsRanges) {
  std::vector<float> a(kD), b(kD);
  for (const std::int64_t id : {std::int64_t{0}, kN / 2, kN - 1}) {
    index_->reconstruct(id, a.data());
    flat_->reconstruct(id, b.data());
    EXPECT_EQ(a, b);
  }
  EXPECT_THROW(index_->reconstruct(kN, a.data()), faiss::FaissException);
  const auto x = queries();
  const float radius = search(*flat_, x, kK).distances[kK - 1];
  const faiss::IDSelectorRange some(100, 600);
  faiss::SearchParameters selecting;
  selecting.sel = const_cast<faiss::IDSelectorRange*>(&some);
  for (const faiss::SearchParameters* params :
       {static_cast<const faiss::SearchParameters*>(nullptr),
        static_cast<const faiss::SearchParameters*>(&selecting)}) {
    faiss::RangeSearchResult of_two(30), of_one(30);
    index_->range_search(30, x.data(), radius, &of_two, params);
    flat_->range_search(30, x.data(), radius, &of_one, params);
    ASSERT_TRUE(std::equal(of_one.lims, of_one.lims + 31, of_two.lims));
    ASSERT_GT(of_one.lims[30], 0U);
    EXPECT_TRUE(std::equal(of_one.labels, of_one.labels + of_one.lims[30], of_two.labels));
    EXPECT_TRUE(std::equal(of_one.distances, of_one.distances + of_one.lims[30], of_two.distances));
  }
}

TEST_P(TwoLevelIndex, SelectsRemovesAndMerges) {
  const auto x = queries();
  two_level().k_factor = kN;
  const faiss::IDSelectorRange some(100, 200);
  SearchParametersTwoLevel params;
  params.sel = const_cast<faiss::IDSelectorRange*>(&some);
  params.k_factor = kN;
  expect_same(search(*index_, x, kK, &params), search(*flat_, x, kK, &params));
  expect_same(search(*index_, x, 150, &params), search(*flat_, x, 150, &params));  // 50 are missing

  EXPECT_EQ(index_->remove_ids(some), 100U);
  EXPECT_EQ(flat_->remove_ids(some), 100U);
  expect_same(search(*index_, x, kK), search(*flat_, x, kK));
  const auto copy = clone_index(*index_);
  const auto flat_copy = clone_index(*flat_);
  index_->merge_from(*copy);
  flat_->merge_from(*flat_copy);
  EXPECT_EQ(copy->ntotal, 0);
  EXPECT_EQ(index_->ntotal, 2 * (kN - 100));
  expect_same(search(*index_, x, 30), search(*flat_, x, 30));
  index_->reset();
  EXPECT_EQ(index_->ntotal, 0);
  EXPECT_EQ(search(*index_, x, 1).labels[0], -1);
}

TEST_P(TwoLevelIndex, FilesAndClones) {
  const auto x = queries();
  for (const bool pack : {false, true}) {
    faiss::VectorIOWriter writer;
    write_index(*index_, &writer, {pack});
    faiss::VectorIOReader reader;
    reader.data = writer.data;
    const auto found = turboquant::read_index(&reader);
    ASSERT_NE(dynamic_cast<IndexTwoLevel*>(found.get()), nullptr);
    expect_same(search(*found, x, kK), search(*index_, x, kK));
    faiss::VectorIOWriter flat;
    write_index(*flat_, &flat, {pack});
    EXPECT_EQ(writer.data.size(), flat.data.size());  // one level in the file
    EXPECT_THAT(error_of([&] { read_flat_index(writer.data.data(), writer.data.size()); }),
                HasSubstr("flat"));
  }
  expect_same(search(*clone_index(*index_), x, kK), search(*index_, x, kK));
}

TEST(TwoLevelNames, GoBothWays) {
  int bits = 0;
  for (const char* name : {"TQ4r2", "TQ3r1", "TQ4r3ccos", "TQ2r1mse"}) {
    const IndexOptions options = parse_two_level_name(name, &bits);
    EXPECT_EQ(two_level_name(options, bits), name);
  }
  EXPECT_EQ(index_name(parse_two_level_name("TQ3c", &bits)), "TQ3c");
  EXPECT_EQ(bits, 0);
  for (const char* name :
       {"TQ4r4", "TQ2r3", "TQ1r1", "TQ3r1qjl", "TQ3r1t", "TQ4r", "TQ4r0", "TQr2"}) {
    EXPECT_THROW(parse_two_level_name(name, &bits), faiss::FaissException) << name;
  }
}

TEST(TwoLevelNames, StandAloneOrInWrappers) {
  EXPECT_THAT(error_of([] { index_factory(kD, "IVF4,TQ4r2", faiss::METRIC_L2); }),
              HasSubstr("TQ4r2 is a flat index"));
  EXPECT_THAT(error_of([] { index_factory(kD, "HNSW8,TQ4r2", faiss::METRIC_L2); }),
              HasSubstr("storage of a graph"));
  const auto index = index_factory(kD, "IDMap2,TQ4r2", faiss::METRIC_L2);
  const auto x = base();
  std::vector<std::int64_t> ids(kN);
  for (std::int64_t i = 0; i < kN; ++i) ids[static_cast<std::size_t>(i)] = 3 * i;
  index->add_with_ids(kN, x.data(), ids.data());
  EXPECT_FALSE(set_k_factor(*index_factory(kD, "TQ4", faiss::METRIC_L2), 2));
  EXPECT_TRUE(set_k_factor(*index, 8));
  EXPECT_THROW(set_k_factor(*index, 0), faiss::FaissException);
  EXPECT_EQ(search(*index, x, 1).labels[17], 51);
}

TEST(TwoLevelErrors, Sentences) {
  const auto index = index_factory(kD, "TQ4r2", faiss::METRIC_L2);
  const auto other = index_factory(kD, "TQ4r1", faiss::METRIC_L2);
  EXPECT_THAT(error_of([&] { index->merge_from(*other); }), HasSubstr("different first levels"));
  const auto flat = index_factory(kD, "TQ4", faiss::METRIC_L2);
  EXPECT_THAT(error_of([&] { index->merge_from(*flat); }), HasSubstr("two-level"));
  std::vector<float> x(kD, 1.0F);
  x[3] = HUGE_VALF;
  EXPECT_THAT(error_of([&] { index->add(1, x.data()); }), HasSubstr("0"));
  EXPECT_EQ(index->ntotal, 0);
  SearchParametersTwoLevel params;
  params.k_factor = 0.5;
  EXPECT_THAT(error_of([&] { search(*index, base(), 1, &params); }), HasSubstr("k_factor"));
}

}  // namespace
}  // namespace turboquant
