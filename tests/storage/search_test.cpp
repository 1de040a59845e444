// Searches of many queries over many blocks, on several threads, against the same queries alone.
#include <absl/time/clock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include "tests/storage/store_util.h"
#include "turboquant/store.h"

namespace turboquant::test {
namespace {

constexpr std::size_t kDimension = 16;
constexpr std::size_t kRows = 22'000;

class SearchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    threads_ = omp_get_max_threads();
    auto store = Store::open(folder_.path(), quiet_options());
    ASSERT_OK(store);
    store_ = *std::move(store);
    CollectionOptions options;
    options.dimension = kDimension;
    auto made = store_->create_collection("c", options);
    ASSERT_OK(made);
    collection_ = *made;
  }
  ~SearchTest() override { omp_set_num_threads(threads_); }

  absl::Span<const float> row(const std::vector<float>& x, std::size_t i) const {
    return absl::MakeConstSpan(x).subspan(i * kDimension, kDimension);
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<Collection> collection_;
  int threads_ = 1;
};

TEST_F(SearchTest, ManyQueriesGetWhatEachGetsAlone) {
  const std::vector<float> vectors = random_vectors(kRows, kDimension, 1);
  ASSERT_OK(collection_->upsert({number_ids(kRows), vectors, {}}));
  // Holes: some rows of every block, and a whole block.
  std::vector<RecordId> gone = number_ids(4096, 8192);
  for (std::uint64_t i = 0; i < kRows; i += 7) gone.emplace_back(i);
  ASSERT_OK(collection_->remove(gone));

  constexpr std::size_t kQueries = 700;
  const std::vector<float> queries = random_vectors(kQueries, kDimension, 2);
  SearchOptions options;
  options.k = 12;
  std::vector<Hits> alone;
  omp_set_num_threads(1);
  for (std::size_t q = 0; q < kQueries; ++q) {
    auto found = collection_->search(row(queries, q), options);
    ASSERT_OK(found);
    alone.push_back((*found)[0]);
  }
  RangeOptions range;
  range.radius = alone[0].back().score;
  range.max_hits = 1 << 24;
  auto one_thread = collection_->range_search(queries, range);
  ASSERT_OK(one_thread);
  for (const int threads : {2, 3, 5, 16}) {
    omp_set_num_threads(threads);
    auto found = collection_->search(queries, options);
    ASSERT_OK(found);
    ASSERT_EQ(found->size(), kQueries);
    for (std::size_t q = 0; q < kQueries; ++q) {
      ASSERT_EQ((*found)[q].size(), alone[q].size());
      for (std::size_t j = 0; j < alone[q].size(); ++j) {
        ASSERT_EQ((*found)[q][j].id, alone[q][j].id) << "query " << q << ", " << threads;
        ASSERT_EQ((*found)[q][j].score, alone[q][j].score);
      }
    }
    auto ranged = collection_->range_search(queries, range);
    ASSERT_OK(ranged);
    for (std::size_t q = 0; q < kQueries; ++q) {
      ASSERT_EQ((*ranged)[q].size(), (*one_thread)[q].size()) << "query " << q << ", " << threads;
      for (std::size_t j = 0; j < (*ranged)[q].size(); ++j) {
        ASSERT_EQ((*ranged)[q][j].id, (*one_thread)[q][j].id);
      }
    }
  }
}

// Equal rows, far more than are asked for: the smallest ids win, in whatever order rows came.
TEST_F(SearchTest, TiesGoToTheSmallestIds) {
  const std::vector<float> one = random_vectors(1, kDimension, 3);
  std::vector<float> vectors;
  std::vector<RecordId> ids;
  for (std::uint64_t i = 0; i < 9000; ++i) {
    vectors.insert(vectors.end(), one.begin(), one.end());
    ids.emplace_back(8999 - i);
  }
  ASSERT_OK(collection_->upsert({ids, vectors, {}}));
  SearchOptions options;
  options.k = 50;
  for (const int threads : {1, 4}) {
    omp_set_num_threads(threads);
    std::vector<float> queries;
    for (int q = 0; q < 20; ++q) queries.insert(queries.end(), one.begin(), one.end());
    auto found = collection_->search(queries, options);
    ASSERT_OK(found);
    for (const Hits& hits : *found) {
      ASSERT_EQ(hits.size(), 50U);
      for (std::uint64_t j = 0; j < 50; ++j) ASSERT_EQ(hits[j].id, RecordId(j));
    }
  }
}

TEST_F(SearchTest, ADeadlineEndsAnExactSearchWithinABlock) {
  constexpr std::size_t kD = 256;
  CollectionOptions options;
  options.dimension = kD;
  options.originals = Originals::kFp32;
  const auto made = store_->create_collection("exact", options);
  ASSERT_OK(made);
  constexpr std::size_t kFew = 2000;  // one block
  const std::vector<float> vectors = random_vectors(kFew, kD, 3);
  ASSERT_OK((*made)->upsert({number_ids(kFew), vectors, {}}));
  // A billion products and more take longer than the deadline on any processor.
  SearchOptions search;
  search.k = 1;
  search.exact = true;
  search.control.deadline = absl::Now() + absl::Milliseconds(5);
  EXPECT_EQ(absl::StatusCode::kDeadlineExceeded, (*made)->search(vectors, search).status().code());
}

}  // namespace
}  // namespace turboquant::test
