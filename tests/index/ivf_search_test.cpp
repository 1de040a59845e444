// Searches list by list against scores of single rows, and against FAISS's own loop over the
// scanner.
#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/index/index_test_util.h"
#include "tests/index/ivf_test_util.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {
namespace {

using test::Case;
using test::clustered;
using test::expect_same;
using test::Ivf;
using test::kLists;
using test::kN;
using test::kQueries;
using test::Results;

class IvfSearch : public testing::TestWithParam<Case> {
 protected:
  Ivf make() const { return {GetParam(), clustered(kN, GetParam().d, 1)}; }
};

INSTANTIATE_TEST_SUITE_P(All, IvfSearch, testing::ValuesIn(test::cases()), test::case_name);

TEST_P(IvfSearch, BatchesQueriesAndSingleRowsAgree) {
  Ivf ivf(make());
  faiss::SearchParametersIVF params;
  for (const std::size_t nprobe : {std::size_t{1}, std::size_t{3}, kLists, kLists + 5}) {
    for (const std::int64_t k : {std::int64_t{1}, std::int64_t{10}, kN + 3}) {
      if (k > kN && nprobe == 3) continue;
      params.nprobe = nprobe;
      const Results expected = ivf.expected(k, params);
      expect_same(ivf.search(Ivf::By::kBatch, k, params), expected);
      expect_same(ivf.search(Ivf::By::kQuery, k, params), expected);
    }
  }
}

// FAISS keeps other rows of equal distance, and orders them otherwise.
TEST_P(IvfSearch, FaissLoopFindsTheSameDistances) {
  Ivf ivf(make());
  faiss::SearchParametersIVF params;
  params.nprobe = 4;
  faiss::IDSelectorRange half(100, 1000);
  faiss::IDSelectorNot others(&half);
  for (faiss::IDSelector* selector :
       {static_cast<faiss::IDSelector*>(nullptr), static_cast<faiss::IDSelector*>(&others)}) {
    params.sel = selector;
    const Results ours = ivf.search(Ivf::By::kBatch, 15, params);
    EXPECT_EQ(ivf.search(Ivf::By::kFaiss, 15, params).distances, ours.distances);
  }
}

TEST_P(IvfSearch, SelectorsAndPairs) {
  Ivf ivf(make());
  faiss::SearchParametersIVF params;
  params.nprobe = 5;
  faiss::IDSelectorRange range(40, 1300);
  faiss::IDSelectorRange nothing(7, 7);
  faiss::IDSelectorNot others(&range);
  for (faiss::IDSelector* selector :
       {static_cast<faiss::IDSelector*>(&range), static_cast<faiss::IDSelector*>(&nothing),
        static_cast<faiss::IDSelector*>(&others)}) {
    params.sel = selector;
    const Results expected = ivf.expected(20, params);
    expect_same(ivf.search(Ivf::By::kBatch, 20, params), expected);
    expect_same(ivf.search(Ivf::By::kQuery, 20, params), expected);
  }
  params.sel = nullptr;
  const Results expected = ivf.expected(20, params, true);
  expect_same(ivf.search(Ivf::By::kBatch, 20, params, true), expected);
  params.sel = &range;
  EXPECT_THROW(ivf.search(Ivf::By::kBatch, 20, params, true), faiss::FaissException);
}

TEST_P(IvfSearch, ThreadsAndParallelModesDoNotMatter) {
  Ivf ivf(make());
  faiss::SearchParametersIVF params;
  params.nprobe = 6;
  const Results expected = ivf.expected(12, params);
  const int threads = omp_get_max_threads();
  for (const int count : {1, 2, 5}) {
    omp_set_num_threads(count);
    ivf.index.parallel_mode = count == 5 ? 0 : count;
    expect_same(ivf.search(Ivf::By::kBatch, 12, params), expected);
  }
  ivf.index.parallel_mode = 3;
  expect_same(ivf.search(Ivf::By::kBatch, 12, params), expected);
  omp_set_num_threads(threads);
  ivf.index.parallel_mode = 4;
  EXPECT_THROW(ivf.search(Ivf::By::kBatch, 12, params), faiss::FaissException);
}

// Equal rows under many ids.
TEST_P(IvfSearch, TiesGoToTheSmallerId) {
  const std::size_t d = GetParam().d;
  auto x = clustered(kN, d, 1);
  for (std::size_t i = 0; i < kN; ++i) {
    std::copy_n(x.begin() + static_cast<long>(i % 11 * d), d, x.begin() + static_cast<long>(i * d));
  }
  Ivf ivf(GetParam(), x);
  faiss::SearchParametersIVF params;
  params.nprobe = kLists;
  for (const std::int64_t k : {1, 40, 400}) {
    const Results expected = ivf.expected(k, params);
    expect_same(ivf.search(Ivf::By::kBatch, k, params), expected);
    expect_same(ivf.search(Ivf::By::kQuery, k, params), expected);
  }
}

// At most so many rows that the selector takes, the nearest lists first.
TEST_P(IvfSearch, MaxCodes) {
  Ivf ivf(make());
  faiss::SearchParametersIVF params;
  params.nprobe = 6;
  faiss::IDSelectorRange range(40, 1300);
  faiss::IDSelectorNot others(&range);
  for (faiss::IDSelector* selector :
       {static_cast<faiss::IDSelector*>(nullptr), static_cast<faiss::IDSelector*>(&others)}) {
    params.sel = selector;
    for (const std::size_t most : {1, 50, 333, 5000}) {
      params.max_codes = most;
      const Results expected = ivf.expected(9, params);
      expect_same(ivf.search(Ivf::By::kBatch, 9, params), expected);
      expect_same(ivf.search(Ivf::By::kQuery, 9, params), expected);
    }
  }
}

TEST_P(IvfSearch, HeapsOfTheCallerAreContinued) {
  Ivf ivf(make());
  faiss::SearchParametersIVF params;
  params.nprobe = 2;
  ivf.index.parallel_mode = ivf.index.PARALLEL_MODE_NO_HEAP_INIT;
  const bool largest = GetParam().metric == faiss::METRIC_INNER_PRODUCT;
  const auto lists = ivf.assign(2);
  const std::vector<float> zeros(lists.size());
  // Heaps full of what nothing can beat.
  Results found;
  const float best =
      largest ? std::numeric_limits<float>::max() : std::numeric_limits<float>::lowest();
  found.distances.assign(kQueries * 5, best);
  found.labels.assign(kQueries * 5, 77);
  ivf.index.search_preassigned(kQueries, ivf.queries.data(), 5, lists.data(), zeros.data(),
                               found.distances.data(), found.labels.data(), false, &params);
  EXPECT_EQ(std::count(found.labels.begin(), found.labels.end(), 77), kQueries * 5);
}

TEST_P(IvfSearch, StatisticsCountListsAndRows) {
  Ivf ivf(make());
  ivf.index.nprobe = 3;
  const auto lists = ivf.assign(3);
  std::size_t rows = 0;
  for (const std::int64_t list : lists)
    rows += ivf.index.get_list_size(static_cast<std::size_t>(list));
  faiss::indexIVF_stats.reset();
  test::search(ivf.index, ivf.queries, 10);
  EXPECT_EQ(faiss::indexIVF_stats.nq, static_cast<std::size_t>(kQueries));
  EXPECT_EQ(faiss::indexIVF_stats.nlist, lists.size());
  EXPECT_EQ(faiss::indexIVF_stats.ndis, rows);
  EXPECT_GE(faiss::indexIVF_stats.nheap_updates, static_cast<std::size_t>(kQueries) * 10);
}

// Probes of nothing, a list visited by everybody, lists emptied by deletions.
TEST_P(IvfSearch, EmptyAndMissingLists) {
  Ivf ivf(make());
  faiss::SearchParametersIVF params;
  params.nprobe = 3;
  std::vector<std::int64_t> keys(kQueries * 3, -1);
  const std::vector<float> zeros(keys.size());
  Results found;
  found.distances.resize(kQueries * 4);
  found.labels.resize(kQueries * 4);
  const auto run = [&] {
    ivf.index.search_preassigned(kQueries, ivf.queries.data(), 4, keys.data(), zeros.data(),
                                 found.distances.data(), found.labels.data(), false, &params);
  };
  run();
  EXPECT_EQ(std::count(found.labels.begin(), found.labels.end(), -1), kQueries * 4);
  for (std::int64_t q = 0; q < kQueries; ++q) keys[static_cast<std::size_t>(q) * 3 + 1] = 2;
  run();
  EXPECT_EQ(std::count(found.labels.begin(), found.labels.end(), -1), 0);
  keys[5] = kLists;
  EXPECT_THROW(run(), faiss::FaissException);
  keys[5] = -1;
  const faiss::IDSelectorRange everything(-1000, 100000);
  ivf.index.remove_ids(everything);
  run();
  EXPECT_EQ(std::count(found.labels.begin(), found.labels.end(), -1), kQueries * 4);
}

TEST_P(IvfSearch, HugeNumbersAreOrdered) {
  const std::size_t d = GetParam().d;
  auto x = clustered(kN, d, 1);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= i / d % 3 == 0 ? 1e15f : 1e-15f;
  Ivf ivf(GetParam(), x);
  for (std::size_t i = 0; i < ivf.queries.size(); ++i) ivf.queries[i] *= i / d % 2 == 0 ? 1e15f : 1;
  faiss::SearchParametersIVF params;
  params.nprobe = kLists;
  const Results batch = ivf.search(Ivf::By::kBatch, 10, params);
  expect_same(ivf.search(Ivf::By::kQuery, 10, params), batch);
  for (const float distance : batch.distances) EXPECT_FALSE(std::isnan(distance));
}

TEST_P(IvfSearch, OneList) {
  const std::size_t d = GetParam().d;
  const auto x = clustered(kN, d, 1);
  const auto queries = clustered(40, d, 2);
  faiss::IndexFlat coarse(static_cast<std::int64_t>(d), GetParam().metric);
  IndexIVFTurboQuant one(&coarse, d, 1, parse_index_name(GetParam().name), GetParam().metric,
                         GetParam().by_residual);
  one.train(kN, x.data());
  one.add(kN, x.data());
  one.nprobe = 8;
  const Results found = test::search(one, queries, 10);
  for (const std::int64_t id : found.labels) EXPECT_TRUE(id >= 0 && id < kN);
  if (GetParam().by_residual) return;
  IndexTurboQuant flat(static_cast<int>(d), parse_index_name(GetParam().name), GetParam().metric);
  flat.add(kN, x.data());
  expect_same(found, test::search(flat, queries, 10));
}

// A few queries choose their lists without FAISS.
TEST_P(IvfSearch, FewQueriesVisitTheSameLists) {
  Ivf ivf(make());
  ivf.index.nprobe = 3;
  const Results batch = test::search(ivf.index, ivf.queries, 10);
  const auto d = static_cast<std::size_t>(ivf.index.d);
  for (std::size_t q = 0; q + 2 <= static_cast<std::size_t>(kQueries); q += 2) {
    const auto from = ivf.queries.begin() + static_cast<long>(q * d);
    const Results two = test::search(ivf.index, {from, from + static_cast<long>(2 * d)}, 10);
    EXPECT_TRUE(std::equal(two.labels.begin(), two.labels.end(),
                           batch.labels.begin() + static_cast<long>(q * 10)));
    EXPECT_TRUE(std::equal(two.distances.begin(), two.distances.end(),
                           batch.distances.begin() + static_cast<long>(q * 10)));
  }
}

// Lists longer than what one task scans are shared among threads.
TEST(IvfSearchLong, OneLongListEqualsTheFlatIndex) {
  constexpr std::size_t d = 32;
  constexpr std::int64_t n = 40000;
  const auto x = clustered(n, d, 1);
  const auto queries = clustered(20, d, 2);
  faiss::IDSelectorRange range(1000, 30000);
  faiss::IDSelectorNot others(&range);
  for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
    faiss::IndexFlat coarse(d, metric);
    IndexIVFTurboQuant one(&coarse, d, 1, parse_index_name("TQ2"), metric, false);
    one.train(1000, x.data());
    one.add(n, x.data());
    IndexTurboQuant flat(d, parse_index_name("TQ2"), metric);
    flat.add(n, x.data());
    faiss::SearchParametersIVF ivf_params;
    faiss::SearchParameters params;
    expect_same(test::search(one, queries, 100), test::search(flat, queries, 100));
    for (faiss::IDSelector* selector :
         {static_cast<faiss::IDSelector*>(&range), static_cast<faiss::IDSelector*>(&others)}) {
      ivf_params.sel = params.sel = selector;
      expect_same(test::search(one, queries, 100, &ivf_params),
                  test::search(flat, queries, 100, &params));
    }
    faiss::IDSelectorRange sorted(1000, 30000, true);
    ivf_params.sel = &sorted;
    params.sel = &range;
    expect_same(test::search(one, queries, 100, &ivf_params),
                test::search(flat, queries, 100, &params));
  }
}

// So many that threads share the work of putting visits in order.
TEST(IvfSearchLong, ManyVisitsAreTheSameForAnyThreads) {
  constexpr std::size_t d = 32;
  constexpr std::int64_t n = 3000;
  const auto x = clustered(n, d, 1);
  const auto queries = clustered(1200, d, 2);
  faiss::IndexFlat coarse(d, faiss::METRIC_INNER_PRODUCT);
  IndexIVFTurboQuant index(&coarse, d, 20, parse_index_name("TQ2"), faiss::METRIC_INNER_PRODUCT,
                           false);
  index.train(n, x.data());
  index.add(n, x.data());
  faiss::IDSelectorRange range(100, 2500);
  const int threads = omp_get_max_threads();
  for (const std::size_t most : {0, 700}) {
    for (faiss::IDSelector* selector :
         {static_cast<faiss::IDSelector*>(nullptr), static_cast<faiss::IDSelector*>(&range)}) {
      faiss::SearchParametersIVF params;
      params.nprobe = 16;
      params.max_codes = most;
      params.sel = selector;
      Results expected;
      for (std::size_t q = 0; q < 1200; ++q) {  // too few each to be shared
        const auto at = queries.begin() + static_cast<long>(q * d);
        const Results one = test::search(index, {at, at + d}, 10, &params);
        expected.labels.insert(expected.labels.end(), one.labels.begin(), one.labels.end());
        expected.distances.insert(expected.distances.end(), one.distances.begin(),
                                  one.distances.end());
      }
      for (const int count : {1, 2, 3, 7}) {
        omp_set_num_threads(count);
        expect_same(test::search(index, queries, 10, &params), expected);
      }
      omp_set_num_threads(threads);
    }
  }
}

// What the factory makes around inverted files.
TEST(IvfSearchStrings, WrappedIndexesFindNeighbours) {
  constexpr std::size_t d = 32;
  const auto x = clustered(4000, d, 1);
  for (const char* text : {"IVF64,TQ3", "IVF64_HNSW8,TQ3", "IVF64,TQ2,RFlat"}) {
    for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
      const auto index = index_factory(d, text, metric);
      index->train(4000, x.data());
      index->add(4000, x.data());
      const auto found = test::search(*index, {x.begin(), x.begin() + 20 * d}, 1);
      int self = 0;
      for (std::size_t q = 0; q < 20; ++q) self += found.labels[q] == static_cast<long>(q) ? 1 : 0;
      EXPECT_GE(self, metric == faiss::METRIC_L2 ? 17 : 8) << text;
    }
  }
}

}  // namespace
}  // namespace turboquant
