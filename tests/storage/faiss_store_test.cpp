// FAISS indexes in a store: the same index comes back, bit for bit.
#include "turboquant/faiss_store.h"

#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>

#include "tests/storage/store_util.h"
#include "turboquant/index_turboquant.h"

namespace turboquant::test {
namespace {

constexpr int kDimension = 40;

class FaissStoreTest : public testing::Test {
 protected:
  void SetUp() override { open(); }
  void open() {
    store_.reset();
    auto store = Store::open(folder_.path(), quiet_options());
    ASSERT_OK(store);
    store_ = *std::move(store);
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
};

void expect_same_search(const faiss::Index& a, const faiss::Index& b) {
  ASSERT_EQ(a.ntotal, b.ntotal);
  ASSERT_EQ(a.metric_type, b.metric_type);
  const std::vector<float> queries = random_vectors(5, kDimension, 41);
  std::vector<float> scores[2];
  std::vector<std::int64_t> labels[2];
  const faiss::Index* both[2] = {&a, &b};
  for (int i = 0; i < 2; ++i) {
    scores[i].resize(5 * 20);
    labels[i].resize(5 * 20);
    both[i]->search(5, queries.data(), 20, scores[i].data(), labels[i].data());
  }
  EXPECT_EQ(labels[0], labels[1]);
  EXPECT_EQ(0, std::memcmp(scores[0].data(), scores[1].data(), 5 * 20 * sizeof(float)));
}

TEST_F(FaissStoreTest, AFlatIndexComesBackWithItsCodes) {
  for (const char* name : {"TQ1", "TQ2", "TQ3", "TQ4", "TQ3qjl", "TQ3qjlg", "TQ4mse", "TQ3cos"}) {
    for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
      IndexOptions options = parse_index_name(name);
      options.seed = 99;
      IndexTurboQuant index(kDimension, options, metric);
      const std::vector<float> x = random_vectors(5000, kDimension, 42);
      index.add(5000, x.data());
      const absl::Status saved = save_to_store(index, *store_, "index");
      if (options.normalize && metric == faiss::METRIC_L2) {
        EXPECT_EQ("BAD_OPTION", error_reason(saved));
        continue;
      }
      ASSERT_OK(saved);
      open();
      const auto loaded = load_from_store(*store_, "index");
      ASSERT_OK(loaded);
      const auto* same = dynamic_cast<const IndexTurboQuant*>(loaded->get());
      ASSERT_NE(nullptr, same);
      EXPECT_EQ(index_name(options), index_name(same->options()));
      EXPECT_EQ(99u, same->options().seed);
      EXPECT_EQ(index.codes, same->codes);
      expect_same_search(index, *same);
    }
  }
  EXPECT_EQ(1u, store_->collections().size());
  EXPECT_OK(store_->verify());
}

TEST_F(FaissStoreTest, AnIdMapComesBackWithItsIds) {
  IndexTurboQuant index(kDimension, parse_index_name("TQ4"), faiss::METRIC_L2);
  faiss::IndexIDMap2 map(&index);
  const std::vector<float> x = random_vectors(300, kDimension, 43);
  std::vector<std::int64_t> ids(300);
  for (std::size_t i = 0; i < 300; ++i) ids[i] = static_cast<std::int64_t>(i * i) - 50;
  ids[60] = 1'000'000;
  map.add_with_ids(300, x.data(), ids.data());
  ASSERT_OK(save_to_store(map, *store_, "map"));
  const auto loaded = load_from_store(*store_, "map");
  ASSERT_OK(loaded);
  EXPECT_NE(nullptr, dynamic_cast<const faiss::IndexIDMap2*>(loaded->get()));
  expect_same_search(map, **loaded);
  std::vector<float> vector(kDimension);
  (*loaded)->reconstruct(1'000'000, vector.data());

  // A collection that grew since then is another index; deleted records are not in it.
  auto c = store_->collection("map");
  ASSERT_OK(c);
  const std::vector<RecordId> gone = {std::uint64_t{1'000'000}};
  ASSERT_OK((*c)->remove(gone));
  EXPECT_EQ(299, (*load_from_store(*store_, "map"))->ntotal);
  ASSERT_OK((*c)->upsert({{std::string("text")}, absl::MakeConstSpan(x).first(kDimension)}));
  EXPECT_EQ("BAD_ID", error_reason(load_from_store(*store_, "map").status()));
}

TEST_F(FaissStoreTest, SavingAgainReplacesTheCollectionWhole) {
  IndexTurboQuant first(kDimension, parse_index_name("TQ3"), faiss::METRIC_INNER_PRODUCT);
  IndexTurboQuant second(kDimension, parse_index_name("TQ2"), faiss::METRIC_L2);
  const std::vector<float> x = random_vectors(9000, kDimension, 44);
  first.add(9000, x.data());
  second.add(10, x.data());
  ASSERT_OK(save_to_store(first, *store_, "index"));
  ASSERT_OK(store_->set_alias("live", "index"));
  ASSERT_OK(save_to_store(second, *store_, "index"));
  expect_same_search(second, **load_from_store(*store_, "live"));
  open();
  expect_same_search(second, **load_from_store(*store_, "live"));
  EXPECT_OK(store_->verify());
}

TEST_F(FaissStoreTest, WhatCannotBeStoredIsRefused) {
  const faiss::IndexFlat other(kDimension);
  EXPECT_EQ("BAD_OPTION", error_reason(save_to_store(other, *store_, "x")));
  IndexTurboQuant index(kDimension, parse_index_name("TQ3"));
  EXPECT_EQ("BAD_NAME", error_reason(save_to_store(index, *store_, ".x")));
  faiss::IndexIDMap map(&index);
  const std::vector<float> x = random_vectors(2, kDimension, 45);
  const std::int64_t twice[2] = {7, 7};
  map.add_with_ids(2, x.data(), twice);
  EXPECT_EQ("DUPLICATE_ID", error_reason(save_to_store(map, *store_, "x")));
  EXPECT_EQ("COLLECTION_NOT_FOUND", error_reason(load_from_store(*store_, "x").status()));
  EXPECT_TRUE(store_->collections().empty());
}

}  // namespace
}  // namespace turboquant::test
