#include "turboquant/index_turboquant.h"

#include <faiss/IndexFlat.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/DistanceComputer.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/IDSelector.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <string>

#include "quantizer/scanner.h"
#include "tests/index/index_test_util.h"

namespace turboquant {
namespace {

using test::clustered;
using test::error_of;
using test::expect_same;
using test::Results;
using test::search;
using testing::HasSubstr;

constexpr int kD = 50;
constexpr auto kIp = faiss::METRIC_INNER_PRODUCT;
constexpr auto kL2 = faiss::METRIC_L2;

IndexTurboQuant make(const std::string& name, faiss::MetricType metric, int d = kD) {
  return IndexTurboQuant(d, parse_index_name(name), metric);
}

class BothMetrics : public testing::TestWithParam<faiss::MetricType> {};
INSTANTIATE_TEST_SUITE_P(All, BothMetrics, testing::Values(kIp, kL2), [](const auto& instance) {
  return std::string(instance.param == kL2 ? "L2" : "IP");
});

// All scores of one query by the distance computer, ranked: what search must return.
Results ranked(const IndexTurboQuant& index, const std::vector<float>& queries, std::size_t k,
               const faiss::IDSelector* allowed = nullptr) {
  const std::unique_ptr<faiss::DistanceComputer> distance(index.get_distance_computer());
  const bool larger = index.metric_type == kIp;
  const float empty =
      larger ? std::numeric_limits<float>::lowest() : std::numeric_limits<float>::max();
  Results all;
  for (std::size_t q = 0; q < queries.size() / static_cast<std::size_t>(index.d); ++q) {
    distance->set_query(queries.data() + q * static_cast<std::size_t>(index.d));
    std::vector<std::pair<float, std::int64_t>> scores;
    for (std::int64_t i = 0; i < index.ntotal; ++i) {
      if (allowed == nullptr || allowed->is_member(i)) scores.emplace_back((*distance)(i), i);
    }
    std::sort(scores.begin(), scores.end(), [&](const auto& a, const auto& b) {
      if (a.first != b.first) return larger ? a.first > b.first : a.first < b.first;
      return a.second < b.second;
    });
    scores.resize(k, {empty, -1});
    for (const auto& [score, id] : scores) {
      all.distances.push_back(score);
      all.labels.push_back(id);
    }
  }
  return all;
}

TEST(IndexTurboQuant, BytesPerVector) {
  for (const int d : {1, 7, 50, 64, 100, 384}) {
    for (int bits = 1; bits <= 4; ++bits) {
      const auto packed = static_cast<std::size_t>((d * bits + 7) / 8);
      const std::string name = "TQ" + std::to_string(bits);
      EXPECT_EQ(make(name, kIp, d).code_size, packed + 4);
      EXPECT_EQ(make(name, kL2, d).code_size, packed + 8);
      EXPECT_EQ(make(name, kL2, d).sa_code_size(), packed + 8);
    }
  }
}

TEST(IndexTurboQuant, RefusesImpossibleOptions) {
  EXPECT_THAT(error_of([] { make("TQ3", faiss::METRIC_L1); }), HasSubstr("metric"));
  EXPECT_THAT(error_of([] { make("TQ3", kIp, 0); }), HasSubstr("dimension"));
  EXPECT_THAT(error_of([] { make("TQ3", kIp, 65537); }), HasSubstr("65536"));
  EXPECT_THAT(error_of([] { make("TQ3qjlg", kIp, 8193); }), HasSubstr("8192"));
  IndexOptions five;
  five.bits = 5;
  EXPECT_THROW(IndexTurboQuant(kD, five, kIp), faiss::FaissException);
}

TEST_P(BothMetrics, SearchEqualsTheDistanceComputer) {
  for (const char* name : {"TQ1", "TQ2", "TQ3", "TQ4", "TQ3qjl", "TQ3qjlg", "TQ4mse", "TQ3cos"}) {
    auto index = make(name, GetParam());
    const auto x = clustered(300, kD, 1);
    index.add(300, x.data());
    const auto queries = clustered(40, kD, 2);
    expect_same(search(index, queries, 12), ranked(index, queries, 12));
  }
}

TEST_P(BothMetrics, SearchEqualsTheScanner) {
  auto index = make("TQ3", GetParam());
  const auto x = clustered(300, kD, 1);
  index.add(150, x.data());
  index.add(150, x.data() + 150 * kD);
  const auto queries = clustered(30, kD, 2);
  Results direct{std::vector<float>(30 * 7), std::vector<std::int64_t>(30 * 7)};
  search_topk(index.codec(), GetParam() == kL2 ? Metric::kL2 : Metric::kInnerProduct,
              queries.data(), 30, {index.codes.data(), 300, nullptr}, 7, direct.distances.data(),
              direct.labels.data());
  expect_same(search(index, queries, 7), direct);
}

TEST_P(BothMetrics, NumberOfThreadsChangesNothing) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the thread sanitizer does not see libgomp's barriers";
#endif
  const int threads = omp_get_max_threads();
  auto index = make("TQ4", GetParam(), 384);
  const auto x = clustered(3000, 384, 1);
  omp_set_num_threads(1);
  index.add(3000, x.data());
  const auto queries = clustered(64, 384, 2);
  const auto one = search(index, queries, 10);
  omp_set_num_threads(3);
  auto again = make("TQ4", GetParam(), 384);
  again.add(3000, x.data());
  const auto three = search(again, queries, 10);
  omp_set_num_threads(threads);
  expect_same(one, three);
}

TEST_P(BothMetrics, RecallOnClusteredData) {
  const auto x = clustered(2000, 64, 1);
  const auto queries = clustered(100, 64, 2);
  faiss::IndexFlat exact(64, GetParam());
  exact.add(2000, x.data());
  const auto truth = search(exact, queries, 10);
  double last = 0;
  for (const char* name : {"TQ1", "TQ2", "TQ3", "TQ4"}) {
    auto index = make(name, GetParam(), 64);
    index.add(2000, x.data());
    const auto found = search(index, queries, 10);
    int hits = 0;
    for (std::size_t q = 0; q < 100; ++q) {
      const std::set<std::int64_t> expected(truth.labels.begin() + static_cast<long>(q) * 10,
                                            truth.labels.begin() + static_cast<long>(q) * 10 + 10);
      for (std::size_t i = 0; i < 10; ++i) {
        hits += static_cast<int>(expected.count(found.labels[q * 10 + i]));
      }
    }
    const double recall = hits / 1000.0;
    EXPECT_GT(recall, last) << name;
    last = recall;
  }
  EXPECT_GT(last, 0.85);
}

TEST_P(BothMetrics, EmptyOneRowAndMoreThanThereIs) {
  auto index = make("TQ3", GetParam());
  const auto x = clustered(3, kD, 1);
  const float empty =
      GetParam() == kIp ? std::numeric_limits<float>::lowest() : std::numeric_limits<float>::max();
  const auto nothing = search(index, x, 4);
  EXPECT_THAT(nothing.labels, testing::Each(-1));
  EXPECT_THAT(nothing.distances, testing::Each(empty));

  index.add(1, x.data());
  const auto one = search(index, x, 4);
  for (std::size_t q = 0; q < 3; ++q) {
    EXPECT_EQ(one.labels[4 * q], 0);
    for (std::size_t i = 1; i < 4; ++i) {
      EXPECT_EQ(one.labels[4 * q + i], -1);
      EXPECT_EQ(one.distances[4 * q + i], empty);
    }
  }
  index.add(0, nullptr);
  EXPECT_EQ(index.ntotal, 1);
  index.reset();
  EXPECT_EQ(index.ntotal, 0);
  EXPECT_THAT(search(index, x, 1).labels, testing::Each(-1));
}

TEST_P(BothMetrics, DuplicatesAreOrderedById) {
  auto index = make("TQ2", GetParam());
  const auto x = clustered(1, kD, 1);
  for (int i = 0; i < 100; ++i) index.add(1, x.data());
  const auto found = search(index, clustered(20, kD, 3), 30);
  for (std::size_t q = 0; q < 20; ++q) {
    for (std::size_t i = 0; i < 30; ++i) {
      EXPECT_EQ(found.labels[q * 30 + i], static_cast<std::int64_t>(i));
    }
  }
}

TEST_P(BothMetrics, ZeroHugeAndDenormalVectorsAreDefined) {
  for (const char* name : {"TQ1", "TQ3", "TQ3qjl", "TQ4mse", "TQ3cos"}) {
    auto index = make(name, GetParam());
    std::vector<float> x(4 * kD, 0.0F);  // row 0: zero
    for (int j = 0; j < kD; ++j) {
      x[kD + j] = 1e30F * (j % 2 == 0 ? 1.0F : -1.0F);
      x[2 * kD + j] = 1e-44F * static_cast<float>(j % 3);
      x[3 * kD + j] = 1.0F;
    }
    index.add(4, x.data());
    const auto found = search(index, x, 4);
    const auto expected = ranked(index, x, 4);
    EXPECT_EQ(found.labels, expected.labels);
    EXPECT_EQ(found.distances, expected.distances);  // 0 and -0 are equal
    for (std::size_t q = 0; q < 4; ++q) {
      const std::set<std::int64_t> ids(found.labels.begin() + static_cast<long>(q) * 4,
                                       found.labels.begin() + static_cast<long>(q) * 4 + 4);
      EXPECT_EQ(ids.size(), 4U) << name;
    }
    for (const float distance : found.distances) EXPECT_FALSE(std::isnan(distance)) << name;
    std::vector<float> back(4 * kD);
    index.reconstruct_n(0, 4, back.data());
    EXPECT_EQ(back[0], 0.0F);
    for (const float value : back) EXPECT_FALSE(std::isnan(value)) << name;
  }
}

TEST_P(BothMetrics, NanAndInfinityAreRefusedWithTheirRow) {
  for (const char* name : {"TQ3", "TQ3qjl", "TQ3cos"}) {
    for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
      auto index = make(name, GetParam());
      auto x = clustered(9, kD, 1);
      index.add(9, x.data());
      const auto before = search(index, x, 3);
      x[6 * kD + 17] = bad;
      x[8 * kD] = bad;
      EXPECT_THAT(error_of([&] { index.add(9, x.data()); }), HasSubstr("6"));
      EXPECT_EQ(index.ntotal, 9);
      EXPECT_EQ(index.codes.size(), 9 * index.code_size);
      EXPECT_THAT(error_of([&] { search(index, x, 3); }), HasSubstr("6"));
      faiss::RangeSearchResult range(9);
      EXPECT_THAT(error_of([&] { index.range_search(9, x.data(), 0, &range); }), HasSubstr("6"));
      std::vector<std::uint8_t> bytes(9 * index.code_size);
      EXPECT_THAT(error_of([&] { index.sa_encode(9, x.data(), bytes.data()); }), HasSubstr("6"));
      expect_same(search(index, clustered(9, kD, 1), 3), before);

      const std::unique_ptr<faiss::DistanceComputer> distance(index.get_distance_computer());
      distance->set_query(x.data() + 6 * kD);
      EXPECT_EQ((*distance)(0), GetParam() == kIp ? std::numeric_limits<float>::lowest()
                                                  : std::numeric_limits<float>::max());
    }
  }
}

// A graph asks for one distance or for four, a search for all: of every kind of code the same bits.
TEST_P(BothMetrics, DistancesOfEveryCodeEqualSearch) {
  for (const char* name : {"TQ1", "TQ2", "TQ3", "TQ4", "TQ1t", "TQ2t", "TQ3t", "TQ4t", "TQ3c",
                           "TQ3tc", "TQ3mse", "TQ3qjl"}) {
    for (const int d : {64, 77}) {
      auto index = make(name, GetParam(), d);
      const auto x = clustered(40, static_cast<std::size_t>(d), 1);
      index.add(40, x.data());
      const auto queries = clustered(3, static_cast<std::size_t>(d), 2);
      const Results all = search(index, queries, 40);
      expect_same(ranked(index, queries, 40), all);
#ifdef TURBOQUANT_FAISS_HAS_BATCH_4
      const std::unique_ptr<faiss::DistanceComputer> distance(index.get_distance_computer());
      distance->set_query(queries.data());
      float four[4];
      distance->distances_batch_4(39, 0, 17, 39, four[0], four[1], four[2], four[3]);
      for (const auto& [id, found] :
           {std::pair{39, four[0]}, {0, four[1]}, {17, four[2]}, {39, four[3]}}) {
        EXPECT_EQ(found, (*distance)(id)) << name;
      }
#endif
    }
  }
}

TEST_P(BothMetrics, SelectorsEqualBruteForceOverTheAllowedRows) {
  auto index = make("TQ3", GetParam());
  const auto x = clustered(333, kD, 1);
  index.add(333, x.data());
  const auto queries = clustered(25, kD, 2);
  const faiss::IDSelectorRange range(100, 180);
  const faiss::IDSelectorNot outside(&range);
  const faiss::IDSelectorRange none(500, 600);
  std::vector<std::int64_t> listed = {5, 332, 7, 333, -1, 64, 5};
  const faiss::IDSelectorArray array(listed.size(), listed.data());
  for (const faiss::IDSelector* selector : {static_cast<const faiss::IDSelector*>(&range),
                                            static_cast<const faiss::IDSelector*>(&outside),
                                            static_cast<const faiss::IDSelector*>(&none),
                                            static_cast<const faiss::IDSelector*>(&array)}) {
    faiss::SearchParameters params;
    params.sel = const_cast<faiss::IDSelector*>(selector);
    expect_same(search(index, queries, 9, &params), ranked(index, queries, 9, selector));
  }
}

TEST_P(BothMetrics, RangeSearchEqualsBruteForce) {
  auto index = make("TQ3", GetParam());
  const auto x = clustered(300, kD, 1);
  index.add(300, x.data());
  const auto queries = clustered(20, kD, 2);
  const auto all = ranked(index, queries, 300);
  const faiss::IDSelectorRange half(0, 150);
  for (const bool filtered : {false, true}) {
    faiss::SearchParameters params;
    params.sel = const_cast<faiss::IDSelectorRange*>(&half);
    const float radius = all.distances[30];
    faiss::RangeSearchResult found(20);
    index.range_search(20, queries.data(), radius, &found, filtered ? &params : nullptr);
    std::size_t total = 0;
    for (std::size_t q = 0; q < 20; ++q) {
      std::vector<std::pair<std::int64_t, float>> expected;
      for (std::size_t i = 300 * q; i < 300 * (q + 1); ++i) {
        const bool inside =
            GetParam() == kIp ? all.distances[i] > radius : all.distances[i] < radius;
        if (inside && (!filtered || all.labels[i] < 150)) {
          expected.emplace_back(all.labels[i], all.distances[i]);
        }
      }
      std::sort(expected.begin(), expected.end());
      ASSERT_EQ(found.lims[q + 1] - found.lims[q], expected.size());
      for (std::size_t i = 0; i < expected.size(); ++i) {
        EXPECT_EQ(found.labels[found.lims[q] + i], expected[i].first);
        EXPECT_EQ(found.distances[found.lims[q] + i], expected[i].second);
      }
      total += expected.size();
    }
    EXPECT_GT(total, 0U);
  }
}

TEST_P(BothMetrics, RangeSearchOfNothing) {
  auto index = make("TQ3", GetParam());
  faiss::RangeSearchResult no_queries(0);
  index.range_search(0, nullptr, 1, &no_queries);
  EXPECT_EQ(no_queries.lims[0], 0U);
  const auto queries = clustered(2, kD, 2);
  faiss::RangeSearchResult no_rows(2);
  index.range_search(2, queries.data(), 1, &no_rows);
  EXPECT_EQ(no_rows.lims[2], 0U);
}

TEST_P(BothMetrics, RemoveIdsShiftsTheRest) {
  auto index = make("TQ3", GetParam());
  const auto x = clustered(200, kD, 1);
  index.add(200, x.data());
  const faiss::IDSelectorRange gone(20, 70);
  EXPECT_EQ(index.remove_ids(gone), 50U);
  auto expected = make("TQ3", GetParam());
  expected.add(20, x.data());
  expected.add(130, x.data() + 70 * kD);
  EXPECT_EQ(index.ntotal, 150);
  const auto queries = clustered(10, kD, 2);
  expect_same(search(index, queries, 10), search(expected, queries, 10));
}

TEST_P(BothMetrics, MergeFromAppendsAndEmpties) {
  const auto x = clustered(120, kD, 1);
  auto a = make("TQ3", GetParam());
  auto b = make("TQ3", GetParam());
  auto whole = make("TQ3", GetParam());
  a.add(70, x.data());
  b.add(50, x.data() + 70 * kD);
  whole.add(120, x.data());
  a.merge_from(b);
  EXPECT_EQ(a.ntotal, 120);
  EXPECT_EQ(b.ntotal, 0);
  const auto queries = clustered(10, kD, 2);
  expect_same(search(a, queries, 10), search(whole, queries, 10));
}

TEST(IndexTurboQuant, MergeRefusesOtherCodes) {
  auto index = make("TQ3", kIp);
  auto bits = make("TQ4", kIp);
  auto metric = make("TQ3", kL2);
  auto dimension = make("TQ3", kIp, kD + 1);
  auto cosine = make("TQ3cos", kIp);
  IndexOptions other_seed = parse_index_name("TQ3");
  other_seed.seed = 1;
  IndexTurboQuant seed(kD, other_seed, kIp);
  faiss::IndexFlat flat(kD, kIp);
  EXPECT_THAT(error_of([&] { index.merge_from(bits); }), HasSubstr("TQ4"));
  EXPECT_THAT(error_of([&] { index.merge_from(metric); }), HasSubstr("metric"));
  EXPECT_THAT(error_of([&] { index.merge_from(dimension); }), HasSubstr("dimension"));
  EXPECT_THAT(error_of([&] { index.merge_from(cosine); }), HasSubstr("TQ3cos"));
  EXPECT_THAT(error_of([&] { index.merge_from(seed); }), HasSubstr("seed"));
  EXPECT_THAT(error_of([&] { index.merge_from(flat); }), HasSubstr("TurboQuant"));
  EXPECT_THAT(error_of([&] { index.merge_from(index); }), HasSubstr("itself"));
}

TEST_P(BothMetrics, CodecAndReconstruction) {
  for (const char* name : {"TQ4", "TQ4qjl", "TQ4mse"}) {
    auto index = make(name, GetParam());
    const auto x = clustered(40, kD, 1);
    index.add(40, x.data());
    std::vector<std::uint8_t> bytes(40 * index.code_size);
    index.sa_encode(40, x.data(), bytes.data());
    EXPECT_EQ(0, std::memcmp(bytes.data(), index.codes.data(), bytes.size()));
    std::vector<float> decoded(40 * kD);
    std::vector<float> reconstructed(40 * kD);
    index.sa_decode(40, bytes.data(), decoded.data());
    index.reconstruct_n(0, 40, reconstructed.data());
    EXPECT_EQ(decoded, reconstructed);
    std::vector<float> one(kD);
    index.reconstruct(11, one.data());
    EXPECT_TRUE(std::equal(one.begin(), one.end(), decoded.begin() + 11 * kD));
    double error = 0;
    double norm = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      error += (x[i] - decoded[i]) * (x[i] - decoded[i]);
      norm += x[i] * x[i];
    }
    EXPECT_LT(error / norm, 0.06) << name;
    EXPECT_THROW(index.reconstruct(40, one.data()), faiss::FaissException);
  }
}

TEST_P(BothMetrics, CosineIgnoresLengths) {
  auto index = make("TQ4cos", GetParam());
  auto x = clustered(100, kD, 1);
  index.add(100, x.data());
  auto longer = make("TQ4cos", GetParam());
  for (float& value : x) value *= 1024.0F;
  longer.add(100, x.data());
  auto queries = clustered(10, kD, 2);
  const auto expected = search(index, queries, 10);
  for (float& value : queries) value *= 0.125F;
  expect_same(search(longer, queries, 10), expected);
  if (GetParam() == kIp) {
    const auto self = search(index, x, 1);
    for (const float cosine : self.distances) EXPECT_NEAR(cosine, 1.0F, 0.1F);
  }
}

TEST_P(BothMetrics, SymmetricDistanceIsSymmetricAndClose) {
  for (const char* name : {"TQ4", "TQ4mse", "TQ4qjl"}) {
    auto index = make(name, GetParam());
    const auto x = clustered(30, kD, 1);
    index.add(30, x.data());
    faiss::IndexFlat exact(kD, GetParam());
    exact.add(30, x.data());
    const std::unique_ptr<faiss::DistanceComputer> estimate(index.get_distance_computer());
    const std::unique_ptr<faiss::DistanceComputer> truth(exact.get_distance_computer());
    for (std::int64_t i = 0; i < 30; ++i) {
      for (std::int64_t j = 0; j < 30; ++j) {
        const float value = estimate->symmetric_dis(i, j);
        EXPECT_NEAR(value, truth->symmetric_dis(i, j), 60) << name;
        if (std::string(name) != "TQ4qjl") {
          EXPECT_EQ(value, estimate->symmetric_dis(j, i));
        }
      }
    }
  }
}

TEST(IndexTurboQuant, TrainingChangesNothing) {
  auto index = make("TQ3", kIp);
  EXPECT_TRUE(index.is_trained);
  const auto x = clustered(50, kD, 1);
  index.add(50, x.data());
  const auto before = search(index, x, 5);
  index.train(50, x.data());
  index.train(0, nullptr);
  EXPECT_EQ(index.ntotal, 50);
  expect_same(search(index, x, 5), before);
}

TEST(IndexTurboQuant, BadArgumentsAreRefused) {
  auto index = make("TQ3", kIp);
  const auto x = clustered(1, kD, 1);
  float distance = 0;
  std::int64_t label = 0;
  EXPECT_THAT(error_of([&] { index.search(1, x.data(), 0, &distance, &label); }), HasSubstr("k"));
  EXPECT_THAT(error_of([&] { index.search(-1, x.data(), 1, &distance, &label); }), HasSubstr("-1"));
  EXPECT_THAT(error_of([&] { index.add(-1, x.data()); }), HasSubstr("-1"));
  faiss::RangeSearchResult wrong(2);
  EXPECT_THAT(error_of([&] { index.range_search(1, x.data(), 0, &wrong); }), HasSubstr("1"));
}

TEST_P(BothMetrics, SignsFollowTheRows) {
  constexpr std::size_t kRows = 17000;
  constexpr std::size_t kRowSigns = (kD + 7) / 8;
  const auto x = clustered(kRows, kD, 1);
  const auto q = clustered(8, kD, 2);
  IndexTurboQuant index = make("TQ4", GetParam());
  index.add(kRows, x.data());
  const auto expect_pruned_as_scanned = [&](IndexTurboQuant& tested) {
    SearchParametersTurboQuant parameters;
    parameters.prune_confidence = 0.999999f;
    for (std::size_t i = 0; i < 8; ++i) {
      const std::vector<float> one(q.begin() + static_cast<std::ptrdiff_t>(i * kD),
                                   q.begin() + static_cast<std::ptrdiff_t>((i + 1) * kD));
      tested.prune_confidence = 0;
      const Results all = search(tested, one, 10);
      expect_same(search(tested, one, 10, &parameters), all);
      tested.prune_confidence = 0.999999f;
      expect_same(search(tested, one, 10), all);
    }
  };
  EXPECT_EQ(index.sign_bytes(), 0u);
  expect_pruned_as_scanned(index);
  EXPECT_GE(index.sign_bytes(), kRows * (kRowSigns + 4));
  EXPECT_LE(index.sign_bytes(), (kRows + 64) * (kRowSigns + (GetParam() == kL2 ? 8 : 4) + 1));

  // The nearest row of every query comes and goes.
  index.add(8, q.data());
  expect_pruned_as_scanned(index);
  IndexTurboQuant copy = index;
  EXPECT_EQ(copy.sign_bytes(), 0u);
  const faiss::IDSelectorRange last(17000, 17008);
  EXPECT_EQ(index.remove_ids(last), 8u);
  index.add(8, x.data());  // as many rows as before
  expect_pruned_as_scanned(index);
  expect_pruned_as_scanned(copy);
  index.merge_from(copy);
  EXPECT_EQ(copy.sign_bytes(), 0u);
  expect_pruned_as_scanned(index);
  index = IndexTurboQuant(kD, parse_index_name("TQ4"), GetParam());
  EXPECT_EQ(index.sign_bytes(), 0u);
  copy.add(kRows, x.data());
  expect_pruned_as_scanned(copy);
  copy.reset();
  copy.add(kRows - 1, x.data() + kD);
  expect_pruned_as_scanned(copy);

  copy.prune_confidence = 0.5f;
  EXPECT_THAT(error_of([&] { search(copy, q, 3); }), HasSubstr("prune_confidence"));
}

// Vectors and queries that share a direction.
std::vector<float> shifted(std::vector<float> x) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += 3 + 2 * static_cast<float>(i % kD % 3);
  return x;
}

TEST_P(BothMetrics, CentresComeFromTrainOrTheFirstAdd) {
  const auto x = shifted(clustered(400, kD, 1));
  const auto q = shifted(clustered(10, kD, 2));
  std::vector<float> mean(kD);
  for (std::size_t i = 0; i < x.size(); ++i) mean[i % kD] += x[i] / 400;
  IndexTurboQuant added = make("TQ2c", GetParam());
  EXPECT_TRUE(added.is_trained);
  EXPECT_TRUE(added.centre().empty());
  std::vector<std::uint8_t> code(added.code_size);
  EXPECT_THAT(error_of([&] { added.sa_encode(1, x.data(), code.data()); }), HasSubstr("no centre"));
  added.add(400, x.data());
  ASSERT_EQ(added.centre().size(), static_cast<std::size_t>(kD));
  for (std::size_t j = 0; j < kD; ++j) EXPECT_NEAR(added.centre()[j], mean[j], 1e-4) << j;
  EXPECT_EQ(added.code_size, make("TQ2", GetParam()).code_size + 4);

  IndexTurboQuant trained = make("TQ2c", GetParam());
  trained.train(400, x.data());
  trained.add(150, x.data());
  trained.add(250, x.data() + 150 * kD);
  expect_same(search(trained, q, 10), search(added, q, 10));
  expect_same(search(added, q, 10), ranked(added, q, 10));
  const auto before = added.centre();
  added.train(100, q.data());  // holds vectors: nothing happens
  added.add(10, q.data());
  EXPECT_EQ(added.centre(), before);
  EXPECT_THAT(error_of([&] { added.set_centre(mean.data()); }), HasSubstr("holds vectors"));
  added.reset();
  EXPECT_EQ(added.centre(), before);

  const IndexTurboQuant copy = trained;
  expect_same(search(copy, q, 10), search(trained, q, 10));
  added.add(5, x.data());
  trained.merge_from(added);
  EXPECT_EQ(trained.ntotal, 405);
  IndexTurboQuant other = make("TQ2c", GetParam());
  other.add(10, q.data());
  EXPECT_THAT(error_of([&] { trained.merge_from(other); }), HasSubstr("different centres"));
  IndexTurboQuant without = make("TQ2", GetParam());
  EXPECT_THAT(error_of([&] { without.set_centre(mean.data()); }), HasSubstr("no centre"));

  // What vectors share does not count as error any more.
  const IndexTurboQuant* both[] = {&copy, &without};
  without.add(400, x.data());
  double error[2] = {};
  for (int i = 0; i < 2; ++i) {
    std::vector<float> back(x.size());
    both[i]->reconstruct_n(0, 400, back.data());
    for (std::size_t j = 0; j < x.size(); ++j) error[i] += std::pow(back[j] - x[j], 2);
  }
  EXPECT_LT(error[0], 0.5 * error[1]);
}

}  // namespace
}  // namespace turboquant
