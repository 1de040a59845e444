// Random operations with restarts, every answer compared with a model: a map and brute force.
// TURBOQUANT_MODEL_OPERATIONS=500000 runs the long form, TURBOQUANT_MODEL_SEED another one.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "quantizer/scanner.h"
#include "storage/collection.h"
#include "tests/storage/store_util.h"
#include "tests/storage/totals_util.h"
#include "turboquant/quantizer.h"
#include "turboquant/store.h"

namespace turboquant::test {
namespace {

constexpr std::size_t kDimension = 16;
constexpr std::size_t kIds = 1500;

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

struct Entry {
  std::vector<float> vector;
  std::vector<std::uint8_t> code;
  std::int64_t color;  // -1: no metadata
};

class ModelTest : public testing::TestWithParam<DistanceMetric> {
 protected:
  void run(std::uint64_t operations) {
    options_.dimension = kDimension;
    options_.factory = "TQ3";
    options_.metric = GetParam();
    options_.originals = Originals::kFp32;
    options_.fields = {{"color", FieldType::kInt64}};
    options_.pack_codes = GetParam() == DistanceMetric::kL2;  // blocks of many sizes on disk
    QuantizerOptions codec;
    codec.dimension = kDimension;
    codec.bits = 3;
    codec.with_norm = GetParam() == DistanceMetric::kL2;
    codec_ = std::make_unique<Quantizer>(codec);
    open();
    ASSERT_OK(store_->create_collection("m", options_));
    open();
    for (step_ = 0; step_ < operations && !HasFatalFailure(); ++step_) {
      SCOPED_TRACE("operation " + std::to_string(step_));
      one();
      compare_totals();
    }
    open();
    compare_all();
    EXPECT_OK(store_->verify());
  }

 private:
  void open() {
    const CollectionInfo before = collection_ ? collection_->info() : CollectionInfo();
    collection_.reset();
    store_.reset();
    auto store = Store::open(folder_.path(), quiet_options());
    ASSERT_OK(store);
    store_ = *std::move(store);
    if (!store_->collection("m").ok()) return;
    collection_ = *store_->collection("m");
    const CollectionInfo after = collection_->info();
    EXPECT_EQ(before.records, after.records);
    EXPECT_EQ(before.dead_rows, after.dead_rows);
    EXPECT_EQ(before.block_bytes, after.block_bytes);
    compare_totals();
  }

  void one() {
    const std::uint64_t dice = random_() % 1000;
    if (dice < 350) return write(false);
    if (dice < 400) return write(true);
    if (dice < 500) return remove();
    if (dice < 510) return remove_color();
    if (dice < 800) return search();
    if (dice < 900) return get();
    if (dice < 950) return count();
    if (dice < 980) return range();
    if (dice < 990) return compact();
    if (dice < 992) return compare_all();
    if (dice < 998) return;
    open();
  }

  RecordId random_id() {
    const std::uint64_t n = random_() % kIds;
    if (n % 4 == 0) return "id " + std::to_string(n);
    return n;
  }

  std::vector<RecordId> random_ids(std::size_t most) {
    std::vector<RecordId> ids(random_() % most + 1);
    for (RecordId& id : ids) id = random_id();
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    std::shuffle(ids.begin(), ids.end(), random_);
    return ids;
  }

  WriteOptions durability() {
    return with(random_() % 200 == 0 ? Durability::kFsync : Durability::kMemory);
  }

  Entry entry(const float* x, std::int64_t color) {
    Entry entry{{x, x + kDimension}, std::vector<std::uint8_t>(codec_->code_size()), color};
    codec_->quantize(unit(entry.vector).data(), 1, entry.code.data());
    return entry;
  }

  std::vector<float> unit(std::vector<float> x) const {
    if (GetParam() != DistanceMetric::kCosine) return x;
    double sum = 0;
    for (const float v : x) sum += static_cast<double>(v) * v;
    for (float& v : x) v = static_cast<float>(v * (1 / std::sqrt(sum)));
    return x;
  }

  void write(bool insert) {
    RecordBatch batch;
    batch.ids = random_ids(40);
    const std::size_t n = batch.ids.size();
    std::vector<float> x = random_vectors(n, kDimension, random_());
    if (random_() % 3 == 0) std::copy_n(x.begin(), kDimension, x.end() - kDimension);
    batch.vectors = x;
    std::uint64_t existing = 0;
    std::map<RecordId, Entry> changed;
    for (std::size_t i = 0; i < n; ++i) {
      const auto color = static_cast<std::int64_t>(random_() % 13) - 1;
      batch.metadata.push_back(color < 0 ? Metadata() : Metadata{{"color", color}});
      existing += model_.count(batch.ids[i]);
      changed[batch.ids[i]] = entry(x.data() + i * kDimension, color);
    }
    const auto result = insert ? collection_->insert(batch, durability())
                               : collection_->upsert(batch, durability());
    if (insert && existing > 0) {
      ASSERT_EQ("ID_EXISTS", error_reason(result.status()));
      return;
    }
    ASSERT_OK(result);
    ASSERT_EQ(existing, result->updated);
    ASSERT_EQ(n - existing, result->inserted);
    for (auto& [id, value] : changed) model_[id] = std::move(value);
  }

  void remove() {
    const std::vector<RecordId> ids = random_ids(30);
    std::uint64_t existing = 0;
    for (const RecordId& id : ids) existing += model_.erase(id);
    const auto result = collection_->remove(ids, durability());
    ASSERT_OK(result);
    ASSERT_EQ(existing, result->deleted);
  }

  void remove_color() {
    const auto color = static_cast<std::int64_t>(random_() % 12);
    std::uint64_t existing = 0;
    for (auto at = model_.begin(); at != model_.end();) {
      const bool gone = at->second.color == color;
      existing += gone ? 1 : 0;
      at = gone ? model_.erase(at) : std::next(at);
    }
    const auto result = collection_->remove_if(Filter::equal("color", color), durability());
    ASSERT_OK(result);
    ASSERT_EQ(existing, result->deleted);
  }

  Hits brute_force(const std::vector<float>& query, const std::optional<std::int64_t>& color) {
    const bool l2 = GetParam() == DistanceMetric::kL2;
    QueryScorer scorer(*codec_, l2 ? Metric::kL2 : Metric::kInnerProduct);
    scorer.set_query(unit(query).data());
    Hits hits;
    for (const auto& [id, value] : model_) {
      if (color && value.color != *color) continue;
      Hit hit;
      hit.id = id;
      hit.score = scorer.score(value.code.data());
      hits.push_back(std::move(hit));
    }
    std::stable_sort(hits.begin(), hits.end(), [&](const Hit& a, const Hit& b) {
      return l2 ? a.score < b.score : a.score > b.score;
    });
    return hits;
  }

  std::optional<std::int64_t> random_color(std::optional<Filter>& filter) {
    if (random_() % 2 == 0) return std::nullopt;
    const auto color = static_cast<std::int64_t>(random_() % 12);
    filter = Filter::equal("color", color);
    return color;
  }

  void search() {
    const std::vector<float> query = random_vectors(1, kDimension, random_());
    SearchOptions options;
    options.k = random_() % 30 + 1;
    const auto color = random_color(options.filter);
    Hits expected = brute_force(query, color);
    if (expected.size() > options.k) expected.resize(options.k);
    const auto found = collection_->search(query, options);
    ASSERT_OK(found);
    expect_same({expected}, *found);
  }

  void range() {
    const std::vector<float> query = random_vectors(1, kDimension, random_());
    RangeOptions options;
    const auto color = random_color(options.filter);
    Hits expected = brute_force(query, color);
    if (expected.empty()) return;
    options.radius = expected[random_() % expected.size()].score;
    expected.erase(std::find_if(expected.begin(), expected.end(),
                                [&](const Hit& hit) { return hit.score == options.radius; }),
                   expected.end());
    const auto found = collection_->range_search(query, options);
    ASSERT_OK(found);
    expect_same({expected}, *found);
  }

  void check(const RecordId& id, const Metadata& metadata, const std::vector<float>& vector) {
    const auto at = model_.find(id);
    ASSERT_TRUE(at != model_.end());
    ASSERT_EQ(at->second.vector, vector);
    Metadata expected;
    if (at->second.color >= 0) expected["color"] = at->second.color;
    ASSERT_EQ(expected, metadata);
  }

  void get() {
    const std::vector<RecordId> ids = random_ids(10);
    const auto got = collection_->get(ids, {true, true});
    ASSERT_OK(got);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ASSERT_EQ(model_.count(ids[i]) != 0, (*got)[i].has_value());
      if ((*got)[i]) check(ids[i], (*got)[i]->metadata, (*got)[i]->vector);
    }
  }

  void count() {
    std::optional<Filter> filter;
    const auto color = random_color(filter);
    std::uint64_t expected = 0;
    for (const auto& [id, value] : model_) expected += !color || value.color == *color ? 1 : 0;
    const auto counted = collection_->count(filter);
    ASSERT_OK(counted);
    ASSERT_EQ(expected, *counted);
  }

  void compact() { ASSERT_OK(collection_->compact()); }

  void compare_all() {
    const std::vector<Record> all = scroll_all(*collection_, random_() % 500 + 1);
    ASSERT_EQ(model_.size(), all.size());
    auto at = model_.begin();
    for (const Record& record : all) {
      ASSERT_EQ(at->first, record.id);
      check(record.id, record.metadata, record.vector);
      ++at;
    }
  }

  // The counters are what a walk over all blocks finds.
  void compare_totals() {
    const CollectionInfo info = collection_->info();
    ASSERT_EQ(model_.size(), info.records);
    const auto view = static_cast<storage::CollectionImpl&>(*collection_).view();
    expect_totals(*view, info);
    ASSERT_EQ(info.memory_bytes, store_->stats().memory_bytes);
  }

  TempFolder folder_;
  CollectionOptions options_;
  std::unique_ptr<Quantizer> codec_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<Collection> collection_;
  std::map<RecordId, Entry> model_;
  std::mt19937_64 random_{from_environment("TURBOQUANT_MODEL_SEED", 31)};
  std::uint64_t step_ = 0;
};

TEST_P(ModelTest, EveryAnswerIsTheModels) {
  run(from_environment("TURBOQUANT_MODEL_OPERATIONS", 5000) / 2);
}

INSTANTIATE_TEST_SUITE_P(Metrics, ModelTest,
                         testing::Values(DistanceMetric::kInnerProduct, DistanceMetric::kL2));

}  // namespace
}  // namespace turboquant::test
