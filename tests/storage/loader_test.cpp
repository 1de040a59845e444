// A first load by sorted files: the collection is the one that inserts would have made, bit for
// bit, all or nothing, and keeps being so after a restart.
#include <gmock/gmock.h>

#include <filesystem>

#include "tests/storage/store_util.h"
#include "turboquant/collection_loader.h"
#include "turboquant/store.h"

namespace turboquant::test {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kDimension = 24;

class LoaderTest : public testing::Test {
 protected:
  void SetUp() override { open(); }
  void open() {
    store_.reset();
    auto store = Store::open(folder_.path(), quiet_options());
    ASSERT_OK(store);
    store_ = *std::move(store);
  }

  static CollectionOptions options(DistanceMetric metric, Originals originals) {
    CollectionOptions made;
    made.dimension = kDimension;
    made.factory = "TQ3";
    made.metric = metric;
    made.originals = originals;
    made.fields = {{"part", FieldType::kInt64}, {"tags", FieldType::kStringList}};
    return made;
  }

  // Rows first to first + n: ids of both kinds, metadata on most of them.
  struct Rows {
    Rows(std::size_t first, std::size_t n) : vectors(random_vectors(n, kDimension, first)) {
      for (std::size_t i = first; i < first + n; ++i) {
        batch.ids.push_back(i % 3 == 0 ? RecordId("row " + std::to_string(i))
                                       : RecordId(std::uint64_t{1'000'000 - i}));
        Metadata metadata;
        if (i % 5 != 0) {
          metadata["part"] = static_cast<std::int64_t>(i % 4);
          metadata["tags"] = std::vector<std::string>{"a", std::to_string(i % 7)};
          metadata["text"] = std::string("text of row ") + std::to_string(i);
        }
        batch.metadata.push_back(std::move(metadata));
      }
      batch.vectors = vectors;
    }
    std::vector<float> vectors;
    RecordBatch batch;
  };

  static constexpr std::size_t kRows = 10'000;  // two full blocks and a part of one
  static constexpr std::size_t kBatch = 1'700;

  absl::StatusOr<std::uint64_t> load(const std::string& name, const CollectionOptions& made) {
    auto loader = CollectionLoader::begin(*store_, name, made);
    if (!loader.ok()) return loader.status();
    for (std::size_t first = 0; first < kRows; first += kBatch) {
      const Rows rows(first, std::min(kBatch, kRows - first));
      if (absl::Status status = (*loader)->add(rows.batch); !status.ok()) return status;
    }
    return (*loader)->finish();
  }

  void expect_equal(const std::string& a, const std::string& b) {
    const auto first = store_->collection(a);
    const auto second = store_->collection(b);
    ASSERT_OK(first);
    ASSERT_OK(second);
    EXPECT_EQ((*first)->info().records, (*second)->info().records);
    SearchOptions search;
    search.k = 50;
    search.parts = {true, true};
    const std::vector<float> queries = random_vectors(5, kDimension, 77);
    for (const bool filtered : {false, true}) {
      if (filtered) {
        search.filter = Filter::all_of(
            {Filter::equal("part", std::int64_t{3}), Filter::equal("tags", std::string("5"))});
      }
      const auto found = (*first)->search(queries, search);
      const auto expected = (*second)->search(queries, search);
      ASSERT_OK(found);
      ASSERT_OK(expected);
      ASSERT_EQ(50u, (*found)[0].size());
      expect_same(*found, *expected);
    }
    const auto x = scroll_all(**first);
    const auto y = scroll_all(**second);
    ASSERT_EQ(x.size(), y.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(x[i].id, y[i].id);
      ASSERT_EQ(x[i].metadata, y[i].metadata);
      ASSERT_EQ(x[i].vector, y[i].vector);
    }
  }

  bool loading_folder() const { return fs::exists(folder_.path() + "/loading"); }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
};

TEST_F(LoaderTest, IsTheCollectionThatInsertsMake) {
  const std::pair<DistanceMetric, Originals> kinds[] = {
      {DistanceMetric::kInnerProduct, Originals::kNone},
      {DistanceMetric::kCosine, Originals::kFp16},
      {DistanceMetric::kL2, Originals::kFp32}};
  for (const auto& [metric, originals] : kinds) {
    SCOPED_TRACE(static_cast<int>(metric));
    CollectionOptions made = options(metric, originals);
    made.pack_codes = metric == DistanceMetric::kL2;
    const auto loaded = load("loaded", made);
    ASSERT_OK(loaded);
    EXPECT_EQ(kRows, *loaded);
    EXPECT_FALSE(loading_folder());
    auto inserted = store_->create_collection("inserted", made);
    ASSERT_OK(inserted);
    for (std::size_t first = 0; first < kRows; first += kBatch) {
      const Rows rows(first, std::min(kBatch, kRows - first));
      ASSERT_OK((*inserted)->insert(rows.batch, with(Durability::kMemory)));
    }
    expect_equal("loaded", "inserted");
    ASSERT_OK(store_->verify());
    open();
    expect_equal("loaded", "inserted");
    // It takes writes as any other.
    for (const char* name : {"loaded", "inserted"}) {
      auto collection = *store_->collection(name);
      const Rows again(9'000, 3'000);  // replaces 1,000, adds 2,000, fills the third block's end
      const auto written = collection->upsert(again.batch);
      ASSERT_OK(written);
      EXPECT_EQ(1'000u, written->updated);
      ASSERT_OK(collection->remove(Rows(0, 500).batch.ids));
    }
    expect_equal("loaded", "inserted");
    open();
    expect_equal("loaded", "inserted");
    ASSERT_OK(store_->verify());
    ASSERT_OK(store_->drop_collection("loaded"));
    ASSERT_OK(store_->drop_collection("inserted"));
  }
}

TEST_F(LoaderTest, AnEmptyLoadMakesAnEmptyCollection) {
  auto loader = CollectionLoader::begin(*store_, "c", options(DistanceMetric::kL2, {}));
  ASSERT_OK(loader);
  const auto records = (*loader)->finish();
  ASSERT_OK(records);
  EXPECT_EQ(0u, *records);
  EXPECT_EQ(0u, *(*store_->collection("c"))->count({}));
  EXPECT_FALSE((*loader)->finish().ok());
}

TEST_F(LoaderTest, NothingIsLeftOfALoadThatDoesNotFinish) {
  const CollectionOptions made = options(DistanceMetric::kCosine, Originals::kFp32);
  const Rows rows(0, 5'000);
  {
    auto loader = CollectionLoader::begin(*store_, "c", made);
    ASSERT_OK(loader);
    ASSERT_OK((*loader)->add(rows.batch));
    EXPECT_TRUE(loading_folder());
    EXPECT_TRUE(store_->collections().empty());
    EXPECT_FALSE(store_->collection("c").ok());
  }
  EXPECT_FALSE(loading_folder());
  {
    auto loader = CollectionLoader::begin(*store_, "c", made);
    ASSERT_OK(loader);
    ASSERT_OK((*loader)->add(rows.batch));
    ASSERT_OK((*loader)->add(Rows(4'000, 2'000).batch));  // 4,000 to 4,999 again
    EXPECT_EQ("DUPLICATE_ID", error_reason((*loader)->finish().status()));
  }
  EXPECT_FALSE(loading_folder());
  EXPECT_FALSE(store_->collection("c").ok());
  ASSERT_OK(store_->verify());
  ASSERT_OK(load("c", made));
  EXPECT_EQ("COLLECTION_EXISTS",
            error_reason(CollectionLoader::begin(*store_, "c", made).status()));
}

TEST_F(LoaderTest, ABadBatchIsRefusedAndTheOthersStay) {
  auto loader = CollectionLoader::begin(*store_, "c", options(DistanceMetric::kCosine, {}));
  ASSERT_OK(loader);
  ASSERT_OK((*loader)->add(Rows(0, 10).batch));
  Rows bad(10, 10);
  bad.vectors[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ("BAD_VECTOR", error_reason((*loader)->add(bad.batch)));
  ASSERT_OK((*loader)->add(Rows(20, 10).batch));
  const auto records = (*loader)->finish();
  ASSERT_OK(records);
  EXPECT_EQ(20u, *records);
}

TEST_F(LoaderTest, ACollectionThatCameMeanwhileIsNotReplaced) {
  const CollectionOptions made = options(DistanceMetric::kL2, {});
  {
    auto loader = CollectionLoader::begin(*store_, "c", made);
    ASSERT_OK(loader);
    ASSERT_OK((*loader)->add(Rows(0, 10).batch));
    ASSERT_OK(store_->create_collection("c", made));
    EXPECT_EQ("COLLECTION_EXISTS", error_reason((*loader)->finish().status()));
  }
  EXPECT_EQ(0u, *(*store_->collection("c"))->count({}));
  ASSERT_OK(store_->verify());
}

}  // namespace
}  // namespace turboquant::test
