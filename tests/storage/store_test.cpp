// Collections: create, drop, alias; writes and their semantics; reads; what is refused.
#include "turboquant/store.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "packing/streams.h"
#include "tests/storage/store_util.h"

namespace turboquant::test {
namespace {

constexpr std::size_t kDimension = 32;

CollectionOptions small(DistanceMetric metric = DistanceMetric::kInnerProduct) {
  CollectionOptions options;
  options.dimension = kDimension;
  options.metric = metric;
  options.fields = {{"lang", FieldType::kString}, {"year", FieldType::kInt64}};
  return options;
}

class StoreTest : public testing::Test {
 protected:
  void SetUp() override { reopen(); }

  void reopen() {
    collection_.reset();
    store_.reset();
    auto store = Store::open(folder_.path(), quiet_options());
    ASSERT_OK(store);
    store_ = *std::move(store);
  }

  Collection& make(const CollectionOptions& options, const std::string& name = "c") {
    auto made = store_->create_collection(name, options);
    EXPECT_OK(made);
    collection_ = *made;
    return *collection_;
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<Collection> collection_;
};

TEST_F(StoreTest, WhatIsWrittenIsReadBackAfterARestart) {
  CollectionOptions options = small();
  options.originals = Originals::kFp32;
  options.shard = 7;
  Collection& c = make(options);
  const std::vector<float> x = random_vectors(3, kDimension, 1);
  RecordBatch batch;
  batch.ids = {std::uint64_t{7}, std::string("7"), std::string("b\0c", 3)};
  batch.vectors = x;
  batch.metadata = {{{"lang", std::string("en")}, {"year", std::int64_t{1990}}},
                    {{"note", std::string("not declared")}, {"ok", true}, {"p", 0.5}},
                    {{"tags", std::vector<std::string>{"a", "", "a"}}}};
  const auto result = c.upsert(batch);
  ASSERT_OK(result);
  EXPECT_EQ(3u, result->inserted);
  EXPECT_EQ(0u, result->updated);
  reopen();
  const auto again = store_->collection("c");
  ASSERT_OK(again);
  EXPECT_EQ(7u, (*again)->info().options.shard);
  EXPECT_EQ(3u, (*again)->info().records);
  const std::vector<RecordId> asked = {std::string("7"), std::uint64_t{8}, std::uint64_t{7},
                                       batch.ids[2]};
  const auto got = (*again)->get(asked, {true, true});
  ASSERT_OK(got);
  EXPECT_FALSE((*got)[1].has_value());
  EXPECT_EQ(batch.metadata[1], (*got)[0]->metadata);
  EXPECT_EQ(batch.metadata[0], (*got)[2]->metadata);
  EXPECT_EQ(batch.metadata[2], (*got)[3]->metadata);
  EXPECT_EQ(std::vector<float>(x.begin(), x.begin() + kDimension), (*got)[2]->vector);
}

TEST_F(StoreTest, InsertRefusesIdsThatExistAndWritesNothing) {
  Collection& c = make(small());
  const std::vector<float> x = random_vectors(2, kDimension, 2);
  RecordBatch batch;
  batch.ids = number_ids(1);
  batch.vectors = absl::MakeConstSpan(x).subspan(0, kDimension);
  ASSERT_OK(c.insert(batch));
  batch.ids = {std::uint64_t{5}, std::uint64_t{0}};
  batch.vectors = x;
  const auto refused = c.insert(batch);
  EXPECT_EQ(absl::StatusCode::kAlreadyExists, refused.status().code());
  EXPECT_EQ("ID_EXISTS", error_reason(refused.status()));
  EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("id 0 "));
  EXPECT_EQ(1u, *c.count({}));
  const auto replaced = c.upsert(batch);
  ASSERT_OK(replaced);
  EXPECT_EQ(1u, replaced->inserted);
  EXPECT_EQ(1u, replaced->updated);
  EXPECT_EQ(2u, *c.count({}));
}

TEST_F(StoreTest, DeletesCountWhatExisted) {
  Collection& c = make(small());
  RecordBatch batch;
  batch.ids = number_ids(10);
  const std::vector<float> x = random_vectors(10, kDimension, 3);
  batch.vectors = x;
  for (std::size_t i = 0; i < 10; ++i) {
    batch.metadata.push_back({{"year", static_cast<std::int64_t>(i)}});
  }
  ASSERT_OK(c.upsert(batch));
  const std::vector<RecordId> gone = {std::uint64_t{3}, std::uint64_t{3}, std::uint64_t{99},
                                      std::string("3")};
  EXPECT_EQ(1u, c.remove(gone)->deleted);
  EXPECT_EQ(0u, c.remove(gone)->deleted);
  FilterRange from_7;
  from_7.gte = std::int64_t{7};
  EXPECT_EQ(3u, c.remove_if(Filter::range("year", from_7))->deleted);
  EXPECT_EQ(6u, *c.count({}));
  reopen();
  EXPECT_EQ(6u, *(*store_->collection("c"))->count({}));
}

TEST_F(StoreTest, ARetryReturnsTheFirstAnswerAndWritesNothing) {
  Collection& c = make(small());
  const std::vector<float> x = random_vectors(1, kDimension, 4);
  RecordBatch batch;
  batch.ids = number_ids(1);
  batch.vectors = x;
  WriteOptions named;
  named.operation_id = "first";
  ASSERT_OK(c.insert(batch, named));
  ASSERT_OK(c.remove(batch.ids));
  const auto retry = c.insert(batch, named);
  ASSERT_OK(retry);
  EXPECT_TRUE(retry->replayed);
  EXPECT_EQ(1u, retry->inserted);
  EXPECT_EQ(0u, *c.count({}));
  reopen();
  Collection& again = **store_->collection("c");
  EXPECT_TRUE(again.insert(batch, named)->replayed);
  const auto other = again.upsert(batch, named);
  EXPECT_EQ("OPERATION_MISMATCH", error_reason(other.status()));
  batch.ids = number_ids(1, 4);
  EXPECT_EQ("OPERATION_MISMATCH", error_reason(again.insert(batch, named).status()));
}

TEST_F(StoreTest, OperationIdsExpire) {
  store_.reset();
  StoreOptions options = quiet_options();
  options.operation_ttl = absl::Seconds(-1);
  auto store = Store::open(folder_.path(), options);
  ASSERT_OK(store);
  auto c = (*store)->create_collection("c", small());
  ASSERT_OK(c);
  const std::vector<float> x = random_vectors(1, kDimension, 4);
  RecordBatch batch;
  batch.ids = number_ids(1);
  batch.vectors = x;
  WriteOptions named;
  named.operation_id = "first";
  ASSERT_OK((*c)->upsert(batch, named));
  const auto again = (*c)->upsert(batch, named);
  ASSERT_OK(again);
  EXPECT_FALSE(again->replayed);
  EXPECT_EQ(1u, again->updated);
}

struct BadWrite {
  std::string reason;
  RecordBatch batch;
};

TEST_F(StoreTest, BadWritesAreRefusedWithAReasonAndWriteNothing) {
  Collection& c = make(small(DistanceMetric::kCosine));
  const std::vector<float> good = random_vectors(2, kDimension, 5);
  std::vector<float> nan = good;
  nan[40] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> zero(2 * kDimension);
  std::fill_n(zero.begin(), kDimension, 1.0F);
  const std::vector<RecordId> two = number_ids(2);
  const auto metadata = [&](const std::string& name, MetadataValue value) {
    RecordBatch batch{two, good, {{}, {}}};
    batch.metadata[1].emplace(name, std::move(value));
    return batch;
  };
  const std::vector<BadWrite> bad = {
      {"BAD_VECTOR", {two, nan}},
      {"BAD_VECTOR", {two, zero}},
      {"BAD_VECTOR", {two, absl::MakeConstSpan(good).subspan(1)}},
      {"BAD_VECTOR", {number_ids(1), good}},
      {"DUPLICATE_ID", {{std::string("a"), std::string("a")}, good}},
      {"BAD_ID", {{std::string("a"), std::string()}, good}},
      {"BAD_ID", {{std::string("a"), std::string(kMaxIdBytes + 1, 'x')}, good}},
      {"BAD_METADATA", {two, good, {{}}}},
      {"BAD_METADATA", metadata("year", std::string("1990"))},
      {"BAD_METADATA", metadata("year", 1990.0)},
      {"BAD_METADATA", metadata("", true)},
      {"BAD_METADATA", metadata(std::string(kMaxFieldNameBytes + 1, 'f'), true)},
      {"BAD_METADATA", metadata("p", std::numeric_limits<double>::infinity())},
      {"BAD_METADATA", metadata("lang", std::string(kMaxIndexedBytes + 1, 'x'))},
      {"BAD_METADATA", metadata("text", std::string(kMaxMetadataBytes, 'x'))},
      {"BAD_METADATA", metadata("t", std::vector<std::string>(kMaxListElements + 1))},
  };
  for (std::size_t i = 0; i < bad.size(); ++i) {
    const auto result = c.upsert(bad[i].batch);
    EXPECT_EQ(absl::StatusCode::kInvalidArgument, result.status().code()) << i;
    EXPECT_EQ(bad[i].reason, error_reason(result.status())) << i << status_of(result);
    EXPECT_FALSE(result.status().message().empty());
  }
  EXPECT_EQ(0u, *c.count({}));
  EXPECT_EQ(0u, c.info().dead_rows);
  WriteOptions long_name;
  long_name.operation_id = std::string(kMaxOperationIdBytes + 1, 'o');
  EXPECT_EQ("BAD_OPTION", error_reason(c.upsert({two, good}, long_name).status()));
  EXPECT_OK(c.upsert(RecordBatch{}));
}

TEST_F(StoreTest, BadReadsAreRefused) {
  Collection& c = make(small(DistanceMetric::kCosine));
  const std::vector<float> q = random_vectors(1, kDimension, 6);
  SearchOptions options;
  EXPECT_EQ("BAD_VECTOR", error_reason(c.search({}, options).status()));
  EXPECT_EQ("BAD_VECTOR",
            error_reason(c.search(absl::MakeConstSpan(q).subspan(1), options).status()));
  EXPECT_EQ("BAD_VECTOR", error_reason(c.search(std::vector<float>(kDimension), options).status()));
  EXPECT_EQ("BAD_VECTOR",
            error_reason(c.search(std::vector<float>(kDimension, NAN), options).status()));
  options.k = 0;
  EXPECT_EQ("BAD_OPTION", error_reason(c.search(q, options).status()));
  options.k = kMaxK + 1;
  EXPECT_EQ("BAD_OPTION", error_reason(c.search(q, options).status()));
  options.k = 1;
  options.rescore = true;
  EXPECT_EQ("NO_ORIGINALS", error_reason(c.search(q, options).status()));
  options.rescore = false;
  options.exact = true;
  EXPECT_EQ("NO_ORIGINALS", error_reason(c.search(q, options).status()));
  RangeOptions range;
  range.radius = NAN;
  EXPECT_EQ("BAD_OPTION", error_reason(c.range_search(q, range).status()));
  ScrollOptions scroll;
  scroll.limit = 0;
  EXPECT_EQ("BAD_OPTION", error_reason(c.scroll(scroll).status()));
  scroll.limit = 1;
  scroll.cursor = "nonsense";
  EXPECT_EQ("BAD_CURSOR", error_reason(c.scroll(scroll).status()));
}

TEST_F(StoreTest, FactoriesAndNamesAreChecked) {
  CollectionOptions options = small();
  for (const char* factory : {"TQ1", "TQ2", "TQ3", "TQ4", "TQ3t", "TQ3qjl", "TQ2mse", "TQ4qjlg"}) {
    options.factory = factory;
    EXPECT_OK(store_->create_collection(factory, options));
  }
  for (const char* factory :
       {"", "TQ5", "TQ3cos", "TQ3c", "TQ3tc", "IVF16,TQ3", "PQ8", "IDMap,TQ3"}) {
    options.factory = factory;
    const auto made = store_->create_collection("bad", options);
    EXPECT_EQ("BAD_FACTORY", error_reason(made.status())) << factory;
    EXPECT_FALSE(made.status().message().empty());
  }
  options.factory = "TQ4";
  for (const char* name : {"", ".hidden", "a/b", "a b", "ä"}) {
    EXPECT_EQ("BAD_NAME", error_reason(store_->create_collection(name, options).status())) << name;
  }
  EXPECT_EQ("COLLECTION_EXISTS", error_reason(store_->create_collection("TQ1", options).status()));
  for (const std::size_t dimension : {std::size_t{0}, std::size_t{65537}}) {
    options.dimension = dimension;
    EXPECT_EQ("BAD_OPTION", error_reason(store_->create_collection("d", options).status()));
  }
  options = small();
  options.fields.push_back(options.fields.front());
  EXPECT_EQ("BAD_OPTION", error_reason(store_->create_collection("f", options).status()));
  EXPECT_EQ(8u, store_->collections().size());
}

TEST_F(StoreTest, AliasesSwapAtOnceAndSurviveARestart) {
  make(small(), "a");
  make(small(), "b");
  ASSERT_OK(store_->set_alias("live", "a"));
  EXPECT_EQ("a", (*store_->collection("live"))->info().name);
  EXPECT_EQ("a", (*store_->collection("live"))->name());
  ASSERT_OK(store_->set_alias("live", "b"));
  EXPECT_EQ("COLLECTION_NOT_FOUND", error_reason(store_->set_alias("live", "none")));
  EXPECT_EQ("COLLECTION_EXISTS", error_reason(store_->set_alias("a", "b")));
  EXPECT_EQ("COLLECTION_EXISTS", error_reason(store_->create_collection("live", small()).status()));
  reopen();
  EXPECT_EQ("b", (*store_->collection("live"))->info().name);
  ASSERT_OK(store_->drop_collection("b"));
  EXPECT_EQ("COLLECTION_NOT_FOUND", error_reason(store_->collection("live").status()));
  EXPECT_EQ("ALIAS_NOT_FOUND", error_reason(store_->drop_alias("live")));
  EXPECT_TRUE(store_->aliases().empty());
}

TEST_F(StoreTest, ADroppedCollectionIsGoneAndItsNameIsFree) {
  Collection& c = make(small());
  const auto held = collection_;
  const std::vector<float> x = random_vectors(1, kDimension, 7);
  ASSERT_OK(c.upsert({number_ids(1), x}));
  ASSERT_OK(store_->drop_collection("c"));
  EXPECT_EQ("COLLECTION_NOT_FOUND", error_reason(held->search(x, {}).status()));
  EXPECT_EQ("COLLECTION_NOT_FOUND", error_reason(held->upsert({number_ids(1), x}).status()));
  EXPECT_EQ("COLLECTION_NOT_FOUND", error_reason(store_->drop_collection("c")));
  EXPECT_EQ("c", held->info().name);
  EXPECT_EQ(0u, held->info().records);
  EXPECT_EQ(0u, held->info().memory_bytes);
  EXPECT_EQ(0u, store_->stats().memory_bytes);
  make(small());
  EXPECT_EQ(0u, *collection_->count({}));
  reopen();
  EXPECT_EQ(0u, *(*store_->collection("c"))->count({}));
  EXPECT_OK(store_->verify());
}

TEST_F(StoreTest, AStoreIsOpenOnlyOnce) {
  EXPECT_EQ("STORE_IN_USE", error_reason(Store::open(folder_.path()).status()));
  make(small());
  ASSERT_OK(store_->close());
  EXPECT_EQ("CLOSED", error_reason(collection_->count({}).status()));
  EXPECT_EQ("CLOSED", error_reason(collection_->upsert({}).status()));
  EXPECT_EQ("CLOSED", error_reason(store_->create_collection("d", small()).status()));
  EXPECT_OK(Store::open(folder_.path()));
  StoreOptions options;
  options.create_if_missing = false;
  EXPECT_EQ("STORE_NOT_FOUND", error_reason(Store::open(folder_.path() + "/x", options).status()));
}

TEST_F(StoreTest, TheMemoryLimitRefusesAndDeletesMakeRoom) {
  store_.reset();
  StoreOptions options = quiet_options();
  options.memory_limit_bytes = 400'000;
  auto store = Store::open(folder_.path(), options);
  ASSERT_OK(store);
  auto c = (*store)->create_collection("c", small());
  ASSERT_OK(c);
  const std::vector<float> x = random_vectors(1000, kDimension, 8);
  std::uint64_t n = 0;
  absl::Status status;
  while (status.ok() && n < 100'000) {
    status = (*c)->upsert({number_ids(1000, n), x}, with(Durability::kWal)).status();
    if (status.ok()) n += 1000;
  }
  EXPECT_EQ("MEMORY_LIMIT", error_reason(status));
  EXPECT_EQ(absl::StatusCode::kResourceExhausted, status.code());
  EXPECT_GT(n, 4000u);
  EXPECT_LE((*store)->stats().memory_bytes, options.memory_limit_bytes);
  EXPECT_EQ(n, *(*c)->count({}));
  // Reads and deletes go on, and reclaimed blocks let writes in again.
  EXPECT_OK((*c)->remove(number_ids(n)));
  ASSERT_OK((*c)->compact());
  EXPECT_OK((*c)->upsert({number_ids(1000, n), x}));
}

TEST_F(StoreTest, DeadlinesAndCancellationStopReads) {
  Collection& c = make(small());
  const std::vector<float> x = random_vectors(100, kDimension, 9);
  ASSERT_OK(c.upsert({number_ids(100), x}));
  SearchOptions options;
  options.control.deadline = absl::Now() - absl::Seconds(1);
  EXPECT_EQ(absl::StatusCode::kDeadlineExceeded, c.search(x, options).status().code());
  const std::atomic<bool> cancelled{true};
  options.control = {};
  options.control.cancelled = &cancelled;
  EXPECT_EQ(absl::StatusCode::kCancelled, c.search(x, options).status().code());
}

TEST_F(StoreTest, PackedCodesGiveTheSameAnswersAndFewerBytes) {
  constexpr std::size_t kRows = 9000;  // two full blocks and some
  const std::vector<float> x = random_vectors(kRows, kDimension, 11);
  const std::vector<float> queries = random_vectors(5, kDimension, 12);
  RecordBatch batch;
  batch.ids = number_ids(kRows);
  batch.vectors = x;
  std::vector<std::vector<Hits>> answers;
  for (const bool pack : {false, true}) {
    for (const char* factory : {"TQ3", "TQ4"}) {
      CollectionOptions options = small();
      options.factory = factory;
      options.pack_codes = pack;
      Collection& c = make(options, std::string(factory) + (pack ? "p" : ""));
      EXPECT_EQ(0u, c.info().block_bytes);
      ASSERT_OK(c.upsert(batch));
      ASSERT_OK(c.remove(number_ids(1500, 3000)));
    }
  }
  const std::vector<CollectionInfo> before = store_->collections();
  reopen();
  const std::vector<CollectionInfo> after = store_->collections();
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].block_bytes, after[i].block_bytes) << before[i].name;
  }
  for (const char* factory : {"TQ3", "TQ4"}) {
    const auto plain = store_->collection(factory);
    const auto packed = store_->collection(std::string(factory) + "p");
    ASSERT_OK(plain);
    ASSERT_OK(packed);
    EXPECT_FALSE((*plain)->info().options.pack_codes);
    EXPECT_TRUE((*packed)->info().options.pack_codes);
    EXPECT_TRUE((*packed)->options().pack_codes);
    // Two blocks: a head of 8 bytes, codes, ids of 9 bytes.
    const std::uint64_t codes = 2 * 4096 * (*plain)->info().code_bytes;
    const std::uint64_t rest = 2 * (8 + 4096 * 9);
    EXPECT_EQ(codes + rest, (*plain)->info().block_bytes);
    if (packing::can_code()) {
      EXPECT_LT((*packed)->info().block_bytes, codes * 96 / 100 + rest);
    }
    EXPECT_GT((*packed)->info().block_bytes, codes * 85 / 100 + rest);
    SearchOptions options;
    options.k = 20;
    const auto a = (*plain)->search(queries, options);
    const auto b = (*packed)->search(queries, options);
    ASSERT_OK(a);
    ASSERT_OK(b);
    expect_same(*a, *b);
    // Blocks that go take their bytes along.
    ASSERT_OK((*packed)->remove(number_ids(kRows)));
    ASSERT_OK((*packed)->compact());
    EXPECT_EQ(0u, (*packed)->info().block_bytes);
  }
  EXPECT_OK(store_->verify());
}

TEST_F(StoreTest, ScrollSeesEveryRecordOnceInTheOrderOfIds) {
  Collection& c = make(small());
  const std::size_t n = 700;
  const std::vector<float> x = random_vectors(n, kDimension, 10);
  RecordBatch batch;
  batch.vectors = x;
  for (std::size_t i = 0; i < n; ++i) {
    if (i % 3 == 0) {
      batch.ids.emplace_back("s" + std::to_string(i));
    } else {
      batch.ids.emplace_back(std::uint64_t{i * 1'000'003 % 65'537});
    }
    batch.metadata.push_back({{"year", static_cast<std::int64_t>(i % 10)}});
  }
  ASSERT_OK(c.upsert(batch));
  std::vector<RecordId> sorted = batch.ids;
  std::sort(sorted.begin(), sorted.end());
  for (const std::size_t page : {std::size_t{1}, std::size_t{7}, n, n + 1}) {
    const std::vector<Record> all = scroll_all(c, page);
    ASSERT_EQ(n, all.size());
    for (std::size_t i = 0; i < n; ++i) {
      ASSERT_EQ(sorted[i], all[i].id);
    }
  }
  const auto some = scroll_all(c, 3, Filter::equal("year", std::int64_t{4}));
  EXPECT_EQ(70u, some.size());
  for (const Record& record : some) {
    EXPECT_EQ(MetadataValue(std::int64_t{4}), record.metadata.at("year"));
  }
}

}  // namespace
}  // namespace turboquant::test
