// Range searches list by list against scores of single rows, FAISS's own loop and the flat index.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/index/index_test_util.h"
#include "tests/index/ivf_test_util.h"
#include "turboquant/index_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::Ivf;
using test::kLists;
using test::kN;
using test::kQueries;

// Of each query: labels and scores, in the order of the result.
using Ranges = std::vector<std::vector<std::pair<std::int64_t, float>>>;

Ranges ranges_of(const faiss::RangeSearchResult& result) {
  Ranges all(result.nq);
  for (std::size_t q = 0; q < result.nq; ++q) {
    for (std::size_t i = result.lims[q]; i < result.lims[q + 1]; ++i) {
      all[q].emplace_back(result.labels[i], result.distances[i]);
    }
  }
  return all;
}

Ranges range_search(const faiss::Index& index, const std::vector<float>& queries, float radius,
                    const faiss::SearchParameters* params = nullptr) {
  const auto n = static_cast<std::int64_t>(queries.size()) / index.d;
  faiss::RangeSearchResult result(n);
  index.range_search(n, queries.data(), radius, &result, params);
  return ranges_of(result);
}

Ranges sorted(Ranges ranges) {
  for (auto& of_query : ranges) std::sort(of_query.begin(), of_query.end());
  return ranges;
}

// By scores of single rows, in the order of lists and rows.
Ranges expected(Ivf& ivf, float radius, const faiss::SearchParametersIVF& params) {
  const std::size_t nprobe = std::min(params.nprobe, kLists);
  const auto lists = ivf.assign(nprobe);
  const bool largest = ivf.index.metric_type == faiss::METRIC_INNER_PRODUCT;
  const faiss::InvertedLists& of = *ivf.index.invlists;
  const std::unique_ptr<faiss::InvertedListScanner> scanner(ivf.index.get_InvertedListScanner());
  Ranges all(kQueries);
  for (std::size_t q = 0; q < all.size(); ++q) {
    scanner->set_query(ivf.queries.data() + q * static_cast<std::size_t>(ivf.index.d));
    for (std::size_t p = 0; p < nprobe; ++p) {
      const auto list = static_cast<std::size_t>(lists[q * nprobe + p]);
      scanner->set_list(static_cast<std::int64_t>(list), 0);
      for (std::size_t j = 0; j < of.list_size(list); ++j) {
        const std::int64_t id = of.get_single_id(list, j);
        if (params.sel != nullptr && !params.sel->is_member(id)) continue;
        const float score = scanner->distance_to_code(of.get_codes(list) + j * of.code_size);
        if (largest ? score > radius : score < radius) all[q].emplace_back(id, score + 0.0f);
      }
    }
  }
  return all;
}

class IvfRange : public testing::TestWithParam<test::Case> {
 protected:
  Ivf ivf_{GetParam(), clustered(kN, GetParam().d, 1)};

  // Radii from next to nothing to everything.
  std::vector<float> radii() {
    ivf_.index.nprobe = kLists;
    const auto all = test::search(ivf_.index, ivf_.queries, kN);
    const bool largest = GetParam().metric == faiss::METRIC_INNER_PRODUCT;
    const float infinity = largest ? -HUGE_VALF : HUGE_VALF;
    return {all.distances[0],      all.distances[7], all.distances[200],
            all.distances[kN - 1], infinity,         -infinity};
  }
};

INSTANTIATE_TEST_SUITE_P(All, IvfRange, testing::ValuesIn(test::cases()), test::case_name);

TEST_P(IvfRange, BatchesQueriesAndSingleRowsAgree) {
  faiss::SearchParametersIVF params;
  const auto d = static_cast<std::size_t>(ivf_.index.d);
  for (const float radius : radii()) {
    for (const std::size_t nprobe : {std::size_t{1}, std::size_t{4}, kLists + 5}) {
      params.nprobe = nprobe;
      const Ranges rows = expected(ivf_, radius, params);
      ASSERT_EQ(range_search(ivf_.index, ivf_.queries, radius, &params), rows);
      for (const std::size_t q : {0, 11}) {
        const auto at = ivf_.queries.begin() + static_cast<long>(q * d);
        const Ranges one =
            range_search(ivf_.index, {at, at + static_cast<long>(d)}, radius, &params);
        ASSERT_EQ(one, Ranges{rows[q]});
      }
    }
  }
}

TEST_P(IvfRange, FaissLoopFindsTheSame) {
  faiss::IDSelectorRange half(100, 1000);
  faiss::IDSelectorNot others(&half);
  faiss::SearchParametersIVF params;
  params.nprobe = 4;
  for (const float radius : radii()) {
    for (faiss::IDSelector* selector :
         {static_cast<faiss::IDSelector*>(nullptr), static_cast<faiss::IDSelector*>(&others)}) {
      params.sel = selector;
      faiss::RangeSearchResult result(kQueries);
      ivf_.index.faiss::IndexIVF::range_search(kQueries, ivf_.queries.data(), radius, &result,
                                               &params);
      EXPECT_EQ(sorted(range_search(ivf_.index, ivf_.queries, radius, &params)),
                sorted(ranges_of(result)));
    }
  }
}

TEST_P(IvfRange, SelectorsThreadsAndModes) {
  faiss::IDSelectorRange range(40, 1300);
  faiss::IDSelectorRange nothing(7, 7);
  faiss::IDSelectorNot others(&range);
  faiss::SearchParametersIVF params;
  params.nprobe = 6;
  const float radius = radii()[2];
  const int threads = omp_get_max_threads();
  for (faiss::IDSelector* selector :
       {static_cast<faiss::IDSelector*>(&range), static_cast<faiss::IDSelector*>(&nothing),
        static_cast<faiss::IDSelector*>(&others), static_cast<faiss::IDSelector*>(nullptr)}) {
    params.sel = selector;
    const Ranges rows = expected(ivf_, radius, params);
    for (const int mode : {0, 1, 2, 3, int{ivf_.index.PARALLEL_MODE_NO_HEAP_INIT}}) {
      ivf_.index.parallel_mode = mode;
      omp_set_num_threads(mode % 5 + 1);
      EXPECT_EQ(range_search(ivf_.index, ivf_.queries, radius, &params), rows);
    }
  }
  omp_set_num_threads(threads);
  ivf_.index.parallel_mode = 4;
  EXPECT_THROW(range_search(ivf_.index, ivf_.queries, radius, &params), faiss::FaissException);
}

TEST_P(IvfRange, EmptyListsNoQueriesAndWrongResults) {
  const faiss::IDSelectorRange most(-1000, 1500);
  ivf_.index.remove_ids(most);
  faiss::SearchParametersIVF params;
  params.nprobe = kLists;
  const float everything =
      GetParam().metric == faiss::METRIC_INNER_PRODUCT ? -HUGE_VALF : HUGE_VALF;
  const Ranges some = range_search(ivf_.index, ivf_.queries, everything, &params);
  EXPECT_EQ(some, expected(ivf_, everything, params));
  EXPECT_EQ(some[0].size(), static_cast<std::size_t>(ivf_.index.ntotal));
  ivf_.index.reset();
  for (const auto& of_query : range_search(ivf_.index, ivf_.queries, everything, &params)) {
    EXPECT_TRUE(of_query.empty());
  }
  EXPECT_TRUE(range_search(ivf_.index, {}, everything, &params).empty());
  faiss::RangeSearchResult wrong(kQueries + 1);
  EXPECT_THROW(ivf_.index.range_search(kQueries, ivf_.queries.data(), 0, &wrong),
               faiss::FaissException);
  EXPECT_THROW(ivf_.index.range_search(kQueries, ivf_.queries.data(), 0, nullptr),
               faiss::FaissException);
}

TEST_P(IvfRange, StatisticsCountListsAndRows) {
  ivf_.index.nprobe = 3;
  const auto lists = ivf_.assign(3);
  std::size_t rows = 0;
  for (const std::int64_t list : lists) {
    rows += ivf_.index.get_list_size(static_cast<std::size_t>(list));
  }
  faiss::indexIVF_stats.reset();
  range_search(ivf_.index, ivf_.queries, 0);
  EXPECT_EQ(faiss::indexIVF_stats.nq, static_cast<std::size_t>(kQueries));
  EXPECT_EQ(faiss::indexIVF_stats.nlist, lists.size());
  EXPECT_EQ(faiss::indexIVF_stats.ndis, rows);
}

// Every kind of code without residuals, all lists visited: bit for bit what the flat index says, of
// searches and of range searches.
class IvfIsFlat : public testing::TestWithParam<std::tuple<std::string, faiss::MetricType>> {};

INSTANTIATE_TEST_SUITE_P(
    All, IvfIsFlat,
    testing::Combine(testing::Values("TQ1", "TQ2", "TQ3", "TQ4", "TQ1t", "TQ2t", "TQ3t", "TQ4t",
                                     "TQ1qjl", "TQ2qjl", "TQ3qjl", "TQ4qjlg", "TQ1mse", "TQ2mse",
                                     "TQ3mse", "TQ4mse"),
                     testing::Values(faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2)),
    [](const auto& instance) {
      return std::get<0>(instance.param) +
             (std::get<1>(instance.param) == faiss::METRIC_L2 ? "_L2" : "_IP");
    });

TEST_P(IvfIsFlat, WhenEveryListIsVisited) {
  const auto& [name, metric] = GetParam();
  constexpr std::size_t d = 72;
  constexpr std::int64_t n = 900;
  const auto x = clustered(n, d, 1);
  const auto queries = clustered(40, d, 2);
  faiss::IndexFlat coarse(d, metric);
  IndexIVFTurboQuant ivf(&coarse, d, 13, parse_index_name(name), metric, false);
  ivf.train(n, x.data());
  ivf.add(n, x.data());
  ivf.nprobe = 13;
  IndexTurboQuant flat(d, parse_index_name(name), metric);
  flat.add(n, x.data());
  for (const std::int64_t k : {std::int64_t{1}, std::int64_t{10}, n + 1}) {
    test::expect_same(test::search(ivf, queries, k), test::search(flat, queries, k));
    const std::vector<float> one(queries.begin(), queries.begin() + d);
    test::expect_same(test::search(ivf, one, k), test::search(flat, one, k));
  }
  faiss::IDSelectorRange range(100, 700);
  faiss::SearchParametersIVF ivf_params;
  faiss::SearchParameters params;
  ivf_params.nprobe = 99;
  const auto all = test::search(flat, queries, n);
  for (const std::size_t at : {0, 30, 800}) {
    for (faiss::IDSelector* selector :
         {static_cast<faiss::IDSelector*>(nullptr), static_cast<faiss::IDSelector*>(&range)}) {
      ivf_params.sel = params.sel = selector;
      const float radius = all.distances[at];
      EXPECT_EQ(sorted(range_search(ivf, queries, radius, &ivf_params)),
                sorted(range_search(flat, queries, radius, &params)));
      test::expect_same(test::search(ivf, queries, 20, &ivf_params),
                        test::search(flat, queries, 20, &params));
    }
  }
}

}  // namespace
}  // namespace turboquant
