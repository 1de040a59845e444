// 8 threads search one index while 8 others fill their own. For the thread sanitizer as well.
#include <faiss/IndexFlat.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/DistanceComputer.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/io.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <memory>
#include <thread>
#include <vector>

#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::Results;
using test::search;

constexpr int kD = 72;
constexpr std::int64_t kN = 500;
constexpr int kThreads = 8;

class Concurrency : public testing::TestWithParam<faiss::MetricType> {};
INSTANTIATE_TEST_SUITE_P(All, Concurrency,
                         testing::Values(faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2));

TEST_P(Concurrency, SearchOneFillOthers) {
  const IndexOptions options = parse_index_name("TQ3");
  IndexTurboQuant shared(kD, options, GetParam());
  const auto x = clustered(kN, kD, 1);
  shared.add(kN, x.data());
  const auto queries = clustered(12, kD, 2);
  const Results expected = search(shared, queries, 10);
  faiss::IDSelectorRange range(0, kN);
  faiss::SearchParameters everything;
  everything.sel = &range;

  std::vector<Results> found(kThreads);
  std::vector<Results> filtered(kThreads);
  std::vector<std::unique_ptr<IndexTurboQuant>> filled(kThreads);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 5; ++round) found[t] = search(shared, queries, 10);
      filtered[t] = search(shared, queries, 10, &everything);
      faiss::RangeSearchResult hits(12);
      shared.range_search(12, queries.data(), expected.distances[9], &hits);
      faiss::VectorIOWriter writer;
      turboquant::write_index(shared, &writer);
      faiss::VectorIOReader reader;
      reader.data = writer.data;
      turboquant::read_index(&reader);
      turboquant::clone_index(shared);
    });
    threads.emplace_back([&, t] {
      filled[t] = std::make_unique<IndexTurboQuant>(kD, options, GetParam());
      for (std::int64_t i = 0; i < kN; i += 100) filled[t]->add(100, x.data() + i * kD);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t t = 0; t < kThreads; ++t) {
    test::expect_same(found[t], expected);
    test::expect_same(filtered[t], expected);
    test::expect_same(search(*filled[t], queries, 10), expected);
  }
}

TEST_P(Concurrency, SearchesOfOneInvertedFile) {
  constexpr std::size_t kLists = 8;
  const auto x = clustered(4000, kD, 1);
  const auto queries = clustered(60, kD, 2);
  faiss::IndexFlat coarse(kD, GetParam());
  IndexIVFTurboQuant ivf(&coarse, kD, kLists, parse_index_name("TQ3"), GetParam());
  ivf.train(1000, x.data());
  ivf.add(4000, x.data());
  ivf.nprobe = kLists;
  const Results expected = search(ivf, queries, 10);
  std::vector<Results> found(kThreads);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      omp_set_num_threads(t % 2 == 0 ? 2 : 1);  // of this thread's regions
      found[t] = search(ivf, queries, 10);
      faiss::RangeSearchResult hits(3);
      ivf.range_search(3, queries.data(), expected.distances[9], &hits);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Results& results : found) test::expect_same(results, expected);
}

// Graphs, lists behind graphs, and refinement.
TEST_P(Concurrency, SearchesOfIndexesOfTheFactory) {
  const auto x = clustered(650, kD, 1);
  const auto queries = clustered(40, kD, 2);
  for (const char* text : {"HNSW16,TQ3", "HNSW16,TQ2t", "IVF16_HNSW8,TQ3", "IVF16,TQ2,RFlat",
                           "IVF16,TQ4t,Refine(SQ8)", "TQ4r2,Refine(SQfp16)"}) {
    const auto index = index_factory(kD, text, GetParam());
    test::fill(*index, x);
    const Results expected = search(*index, queries, 10);
    const auto fresh = turboquant::clone_index(*index);  // knows no centroids yet
    std::vector<Results> found(kThreads);
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        omp_set_num_threads(t % 2 == 0 ? 2 : 1);
        found[t] = search(*fresh, queries, 10);
        const auto* ivf = dynamic_cast<const IndexIVFTurboQuant*>(fresh.get());
        if (ivf == nullptr) return;
        faiss::RangeSearchResult hits(40);
        ivf->range_search(40, queries.data(), expected.distances[9], &hits);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Results& results : found) test::expect_same(results, expected);
  }
}

// NNDescent shares one distance computer among its threads for symmetric_dis.
TEST_P(Concurrency, SymmetricDistancesFromOneComputer) {
  for (const char* name : {"TQ3", "TQ3qjl", "TQ4mse"}) {
    IndexTurboQuant index(kD, parse_index_name(name), GetParam());
    const auto x = clustered(60, kD, 1);
    index.add(60, x.data());
    const std::unique_ptr<faiss::DistanceComputer> distance(index.get_distance_computer());
    std::vector<std::vector<float>> found(kThreads);
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 60; ++i) found[t].push_back(distance->symmetric_dis(i, 59 - i));
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& values : found) EXPECT_EQ(values, found[0]);
  }
}

TEST_P(Concurrency, FactoriesInParallel) {
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([] {
      for (const char* text : {"TQ3", "IDMap,TQ2", "TQ4,RFlat"}) {
        EXPECT_TRUE(contains_turboquant(*index_factory(kD, text, GetParam())));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Residuals are searched by many and added by many, each thread to its own.
TEST_P(Concurrency, RefinedByResiduals) {
  const auto x = clustered(kN, kD, 1);
  const auto queries = clustered(12, kD, 2);
  const auto shared = index_factory(kD, "IVF4,TQ3,Refine(+TQ4)", GetParam());
  test::fill(*shared, x);
  dynamic_cast<faiss::IndexRefine&>(*shared).k_factor = 3;
  const auto empty = clone_index(*shared);
  empty->reset();
  const Results expected = search(*shared, queries, 10);
  std::vector<Results> found(kThreads), filled(kThreads);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      found[t] = search(*shared, queries, 10);
      const auto own = clone_index(*empty);
      own->add(kN, x.data());
      filled[t] = search(*own, queries, 10);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t t = 0; t < kThreads; ++t) {
    test::expect_same(found[t], expected);
    test::expect_same(filled[t], expected);
  }
}

// Threads race for making the signs.
TEST_P(Concurrency, SearchesMakeSigns) {
  constexpr std::size_t kRows = 16500;
  IndexTurboQuant index(kD, parse_index_name("TQ4"), GetParam());
  const auto x = clustered(kRows, kD, 1);
  const auto queries = clustered(1, kD, 2);
  for (int round = 0; round < 3; ++round) {
    index.prune_confidence = 0;
    index.add(kRows / 3, x.data() + static_cast<std::size_t>(round) * (kRows / 3) * kD);
    const Results expected = search(index, queries, 10);
    index.prune_confidence = 0.999999f;
    std::vector<Results> found(kThreads);
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] { found[t] = search(index, queries, 10); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Results& results : found) EXPECT_EQ(results.labels, expected.labels);
  }
}

}  // namespace
}  // namespace turboquant
