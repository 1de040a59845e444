// Filters: equal to brute force over the rows that match, scored with the same codes; k always full
// when k rows match; never much slower than no filter.
#include "turboquant/filter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <set>

#include "quantizer/scanner.h"
#include "tests/storage/store_util.h"
#include "turboquant/quantizer.h"

namespace turboquant::test {
namespace {

using Matches = std::function<bool(std::uint64_t)>;
struct Case {
  const char* name;
  Filter filter;
  Matches matches;
};

FilterRange between(MetadataValue gte, MetadataValue lt) {
  FilterRange range;
  range.gte = std::move(gte);
  range.lt = std::move(lt);
  return range;
}

Metadata metadata_of(std::uint64_t i) {
  Metadata metadata;
  metadata["share"] = static_cast<double>(i * 7919 % 10007) / 10007;
  metadata["even"] = i % 2 == 0;
  if (i % 5 != 0) metadata["number"] = static_cast<std::int64_t>(i) - 1000;
  metadata["lang"] = std::string(i % 3 == 0 ? "en" : i % 3 == 1 ? "de" : "");
  std::vector<std::string> tags;
  for (std::uint64_t t = 2; t < 8; ++t) {
    if (i % t == 0) tags.push_back("t" + std::to_string(t));
  }
  metadata["tags"] = tags;
  return metadata;
}

std::vector<FieldSchema> fields() {
  return {{"share", FieldType::kDouble},
          {"even", FieldType::kBool},
          {"number", FieldType::kInt64},
          {"lang", FieldType::kString},
          {"tags", FieldType::kStringList}};
}

double share(std::uint64_t i) { return static_cast<double>(i * 7919 % 10007) / 10007; }

std::vector<Case> cases() {
  FilterRange low;
  low.lt = 0.05;
  FilterRange above;
  above.gt = std::int64_t{500};
  FilterRange strings;
  strings.gte = std::string("");
  strings.lte = std::string("de");
  FilterRange empty_range = between(std::int64_t{9}, std::int64_t{3});
  return {
      {"half", Filter::range("share", between(0.0, 0.5)),
       [](std::uint64_t i) { return share(i) < 0.5; }},
      {"5%", Filter::range("share", low), [](std::uint64_t i) { return share(i) < 0.05; }},
      {"0.5%", Filter::range("share", between(0.2, 0.205)),
       [](std::uint64_t i) { return share(i) >= 0.2 && share(i) < 0.205; }},
      {"0.01%", Filter::range("share", between(0.4, 0.4002)),
       [](std::uint64_t i) { return share(i) >= 0.4 && share(i) < 0.4002; }},
      {"bool", Filter::equal("even", false), [](std::uint64_t i) { return i % 2 != 0; }},
      {"missing", Filter::negate(Filter::exists("number")),
       [](std::uint64_t i) { return i % 5 == 0; }},
      {"not equal takes the missing", Filter::negate(Filter::equal("number", std::int64_t{-999})),
       [](std::uint64_t i) { return i != 1; }},
      {"integer range", Filter::range("number", above),
       [](std::uint64_t i) { return i % 5 != 0 && i > 1500; }},
      {"integer for a double", Filter::equal("share", std::int64_t{0}),
       [](std::uint64_t i) { return share(i) == 0; }},
      {"strings", Filter::range("lang", strings), [](std::uint64_t i) { return i % 3 != 0; }},
      {"in",
       Filter::one_of("lang",
                      {std::string("xx"), std::string("en"), std::string("en"), std::string("")}),
       [](std::uint64_t i) { return i % 3 != 1; }},
      {"in nothing", Filter::one_of("lang", {}), [](std::uint64_t) { return false; }},
      {"empty range", Filter::range("number", empty_range), [](std::uint64_t) { return false; }},
      {"list", Filter::equal("tags", std::string("t7")),
       [](std::uint64_t i) { return i % 7 == 0; }},
      {"an empty list exists", Filter::exists("tags"), [](std::uint64_t) { return true; }},
      {"list in", Filter::one_of("tags", {std::string("t4"), std::string("t6")}),
       [](std::uint64_t i) { return i % 4 == 0 || i % 6 == 0; }},
      {"tree",
       Filter::all_of(
           {Filter::any_of({Filter::equal("lang", std::string("en")), Filter::equal("even", true)}),
            Filter::negate(Filter::equal("tags", std::string("t5")))}),
       [](std::uint64_t i) { return (i % 3 == 0 || i % 2 == 0) && i % 5 != 0; }},
      {"all", Filter::all_of({}), [](std::uint64_t) { return true; }},
      {"none", Filter::any_of({}), [](std::uint64_t) { return false; }},
  };
}

// Brute force: every live row's score by the code of its vector, one at a time.
std::vector<Hits> brute_force(const Quantizer& codec, Metric metric, const std::vector<float>& x,
                              const std::vector<float>& queries, std::size_t k,
                              const std::function<bool(std::uint64_t)>& wanted) {
  const std::size_t d = codec.dimension();
  const std::size_t n = x.size() / d;
  std::vector<std::uint8_t> codes(n * codec.code_size());
  codec.quantize(x.data(), n, codes.data());
  QueryScorer scorer(codec, metric);
  std::vector<Hits> all;
  for (std::size_t q = 0; q < queries.size() / d; ++q) {
    scorer.set_query(queries.data() + q * d);
    Hits hits;
    for (std::size_t i = 0; i < n; ++i) {
      if (!wanted(i)) continue;
      Hit hit;
      hit.id = std::uint64_t{i};
      hit.score = scorer.score(codes.data() + i * codec.code_size());
      hits.push_back(std::move(hit));
    }
    std::sort(hits.begin(), hits.end(), [&](const Hit& a, const Hit& b) {
      if (a.score != b.score) return metric == Metric::kL2 ? a.score < b.score : a.score > b.score;
      return a.id < b.id;
    });
    if (hits.size() > k) hits.resize(k);
    all.push_back(std::move(hits));
  }
  return all;
}

struct Setup {
  const char* factory;
  DistanceMetric metric;
};

class FilterTest : public testing::TestWithParam<Setup> {};

TEST_P(FilterTest, EqualsBruteForceOverMatchingRows) {
  const std::size_t d = 24;
  const std::size_t n = 9300;  // two full blocks and a part
  const TempFolder folder;
  auto store = Store::open(folder.path(), quiet_options());
  ASSERT_OK(store);
  CollectionOptions options;
  options.dimension = d;
  options.factory = GetParam().factory;
  options.metric = GetParam().metric;
  options.fields = fields();
  auto made = (*store)->create_collection("c", options);
  ASSERT_OK(made);
  std::vector<float> x = random_vectors(n, d, 11);
  // Equal scores must occur, and be ordered by id.
  for (std::size_t i = 0; i + 100 < n; i += 100) {
    std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(i * d), d,
                x.begin() + static_cast<std::ptrdiff_t>((i + 77) * d));
  }
  for (std::size_t first = 0; first < n; first += 1000) {
    const std::size_t rows = std::min<std::size_t>(1000, n - first);
    RecordBatch batch;
    batch.ids = number_ids(rows, first);
    batch.vectors = absl::MakeConstSpan(x).subspan(first * d, rows * d);
    for (std::size_t i = 0; i < rows; ++i) batch.metadata.push_back(metadata_of(first + i));
    ASSERT_OK((*made)->upsert(batch, with(Durability::kMemory)));
  }
  std::vector<RecordId> gone;
  for (std::size_t i = 0; i < n; i += 11) gone.emplace_back(std::uint64_t{i});
  ASSERT_OK((*made)->remove(gone));

  QuantizerOptions codec_options;
  codec_options.dimension = d;
  codec_options.bits = GetParam().factory[2] - '0';
  codec_options.with_norm = options.metric == DistanceMetric::kL2;
  const std::string variant = std::string(GetParam().factory).substr(3);
  if (variant == "qjl") codec_options.estimator = Estimator::kQjl;
  if (variant == "t") codec_options.estimator = Estimator::kTrellis;
  const Quantizer codec(codec_options);
  const Metric metric = codec_options.with_norm ? Metric::kL2 : Metric::kInnerProduct;

  for (const std::size_t nq : {std::size_t{1}, std::size_t{5}}) {
    const std::vector<float> queries = random_vectors(nq, d, 12 + nq);
    for (const Case& c : cases()) {
      SCOPED_TRACE(c.name);
      const auto wanted = [&](std::uint64_t i) { return i % 11 != 0 && c.matches(i); };
      std::uint64_t matching = 0;
      for (std::uint64_t i = 0; i < n; ++i) matching += wanted(i) ? 1 : 0;
      ASSERT_EQ(matching, *(*made)->count(c.filter));
      const auto best = brute_force(codec, metric, x, queries, n, wanted);
      for (const std::size_t k : {std::size_t{1}, std::size_t{10}, std::size_t{300}}) {
        SearchOptions search;
        search.k = k;
        search.filter = c.filter;
        const auto found = (*made)->search(queries, search);
        ASSERT_OK(found);
        for (const Hits& hits : *found) {
          ASSERT_EQ(std::min<std::size_t>(k, matching), hits.size());
        }
        std::vector<Hits> expected = best;
        for (Hits& hits : expected) hits.resize(std::min(k, hits.size()));
        expect_same(expected, *found);
      }
      RangeOptions range;
      range.radius = best[0].empty() ? 0.0F : best[0][best[0].size() / 20].score;
      range.filter = c.filter;
      const auto within = (*made)->range_search(queries, range);
      ASSERT_OK(within);
      std::vector<Hits> expected = best;
      for (Hits& hits : expected) {
        hits.erase(std::remove_if(hits.begin(), hits.end(),
                                  [&](const Hit& hit) {
                                    return metric == Metric::kL2 ? !(hit.score < range.radius)
                                                                 : !(hit.score > range.radius);
                                  }),
                   hits.end());
      }
      expect_same(expected, *within);
    }
  }
  RangeOptions wide;
  wide.radius = metric == Metric::kL2 ? 1e30F : -1e30F;
  wide.max_hits = 100;
  const std::vector<float> query = random_vectors(1, d, 13);
  EXPECT_EQ("TOO_MANY_HITS", error_reason((*made)->range_search(query, wide).status()));
}

INSTANTIATE_TEST_SUITE_P(Codes, FilterTest,
                         testing::Values(Setup{"TQ3", DistanceMetric::kInnerProduct},
                                         Setup{"TQ4", DistanceMetric::kL2},
                                         Setup{"TQ2t", DistanceMetric::kL2},
                                         Setup{"TQ2qjl", DistanceMetric::kInnerProduct}));

TEST(FilterRefused, WithAReasonAndASentence) {
  const TempFolder folder;
  auto store = Store::open(folder.path(), quiet_options());
  ASSERT_OK(store);
  CollectionOptions options;
  options.dimension = 8;
  options.fields = fields();
  auto made = (*store)->create_collection("c", options);
  ASSERT_OK(made);
  const auto reason = [&](const Filter& filter) {
    const absl::Status status = (*made)->count(filter).status();
    EXPECT_FALSE(status.message().empty());
    return error_reason(status);
  };
  EXPECT_EQ("FIELD_NOT_INDEXED", reason(Filter::exists("other")));
  EXPECT_EQ("BAD_FILTER", reason(Filter::equal("lang", std::int64_t{1})));
  EXPECT_EQ("BAD_FILTER", reason(Filter::equal("number", 1.0)));
  EXPECT_EQ("BAD_FILTER", reason(Filter::equal("share", std::nan(""))));
  EXPECT_EQ("BAD_FILTER", reason(Filter::equal("tags", std::vector<std::string>{"a"})));
  EXPECT_EQ("BAD_FILTER", reason(Filter::range("number", {})));
  FilterRange twice;
  twice.lt = std::int64_t{1};
  twice.lte = std::int64_t{1};
  EXPECT_EQ("BAD_FILTER", reason(Filter::range("number", twice)));
  Filter no_child = Filter::all_of({});
  no_child.op = Filter::Op::kNot;
  EXPECT_EQ("BAD_FILTER", reason(no_child));
  Filter deep = Filter::exists("lang");
  for (std::size_t i = 0; i < kMaxFilterDepth; ++i) deep = Filter::negate(std::move(deep));
  EXPECT_EQ("BAD_FILTER", reason(deep));
  EXPECT_EQ("BAD_FILTER",
            reason(Filter::any_of(std::vector<Filter>(kMaxFilterNodes, Filter::exists("lang")))));
  EXPECT_EQ("BAD_FILTER",
            reason(Filter::one_of(
                "number", std::vector<MetadataValue>(kMaxFilterValues + 1, std::int64_t{1}))));
  EXPECT_EQ("BAD_FILTER", reason(Filter::equal("lang", std::string(kMaxIndexedBytes + 1, 'x'))));
}

// The promise of time, on as many rows as make a scan measurable; the best of several rounds, taken
// in turn, so that both sides see the same machine.
TEST(FilterTime, IsNeverMuchAboveTheUnfilteredScans) {
  const std::size_t d = 128;
  const std::size_t n = 150'000;
  const TempFolder folder;
  auto store = Store::open(folder.path(), quiet_options());
  ASSERT_OK(store);
  CollectionOptions options;
  options.dimension = d;
  options.factory = "TQ3";
  options.fields = {{"share", FieldType::kDouble}};
  auto made = (*store)->create_collection("c", options);
  ASSERT_OK(made);
  const std::vector<float> x = random_vectors(10'000, d, 14);
  for (std::size_t first = 0; first < n; first += 10'000) {
    RecordBatch batch;
    batch.ids = number_ids(10'000, first);
    batch.vectors = x;
    for (std::size_t i = 0; i < 10'000; ++i) {
      const std::uint64_t mixed = (first + i) * 0x9e3779b97f4a7c15u >> 11;
      batch.metadata.push_back({{"share", static_cast<double>(mixed) * 0x1p-53}});
    }
    ASSERT_OK((*made)->upsert(batch, with(Durability::kMemory)));
  }
  const std::vector<double> selectivities = {0.5, 0.05, 0.005, 0.0001};
  for (const std::size_t nq : {std::size_t{1}, std::size_t{16}}) {
    const std::vector<float> queries = random_vectors(nq, d, 15);
    std::vector<double> best(selectivities.size() + 1, 1e9);
    for (int round = 0; round < 25; ++round) {
      for (std::size_t s = 0; s < best.size(); ++s) {
        SearchOptions search;
        if (s > 0) search.filter = Filter::range("share", between(0.0, selectivities[s - 1]));
        const auto start = std::chrono::steady_clock::now();
        const auto found = (*made)->search(queries, search);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        ASSERT_OK(found);
        ASSERT_EQ(10u, (*found)[0].size());
        best[s] = std::min(best[s], took.count());
      }
    }
    std::printf("%zu queries: no filter %.3f ms", nq, best[0] * 1e3);
    for (std::size_t s = 0; s < selectivities.size(); ++s) {
      std::printf(", %g%% %.3f ms", selectivities[s] * 100, best[s + 1] * 1e3);
    }
    std::printf("\n");
    // Times depend on what else runs: judged only where somebody asks for it.
    if (std::getenv("TURBOQUANT_TIMINGS") == nullptr) continue;
    for (std::size_t s = 1; s < best.size(); ++s) {
      EXPECT_LT(best[s], 1.2 * best[0]);
    }
    EXPECT_LT(best[3], best[1]);
    EXPECT_LT(best[4], best[0]);
  }
}

}  // namespace
}  // namespace turboquant::test
