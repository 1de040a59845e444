// The same answers, bit for bit, before and after a restart, a compaction, a backup and a restore;
// originals and rescoring; what a start refuses.
#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/storage/store_util.h"
#include "turboquant/store.h"

namespace turboquant::test {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kDimension = 48;

class RestartTest : public testing::Test {
 protected:
  void SetUp() override { open(); }
  void open() {
    collection_.reset();
    store_.reset();
    auto store = Store::open(folder_.path(), quiet_options());
    ASSERT_OK(store);
    store_ = *std::move(store);
    if (store_->collection("c").ok()) collection_ = *store_->collection("c");
  }

  // 10,000 records over three blocks; a third replaced, a quarter deleted.
  void fill(DistanceMetric metric, Originals originals) {
    CollectionOptions options;
    options.dimension = kDimension;
    options.factory = "TQ3";
    options.metric = metric;
    options.originals = originals;
    options.fields = {{"part", FieldType::kInt64}};
    ASSERT_OK(store_->create_collection("c", options));
    collection_ = *store_->collection("c");
    vectors_ = random_vectors(10'000, kDimension, 21);
    write(0, 10'000);
    const std::vector<float> other = random_vectors(10'000, kDimension, 22);
    std::copy(other.begin(), other.begin() + 3333 * kDimension, vectors_.begin());
    write(0, 3333);
    ASSERT_OK(collection_->remove(number_ids(2500, 3000)));
  }

  void write(std::size_t first, std::size_t last) {
    for (; first < last; first += 1111) {
      const std::size_t n = std::min<std::size_t>(1111, last - first);
      RecordBatch batch;
      batch.ids = number_ids(n, first);
      batch.vectors = absl::MakeConstSpan(vectors_).subspan(first * kDimension, n * kDimension);
      for (std::size_t i = 0; i < n; ++i) {
        batch.metadata.push_back({{"part", static_cast<std::int64_t>((first + i) % 8)},
                                  {"name", "record " + std::to_string(first + i)}});
      }
      ASSERT_OK(collection_->upsert(batch, with(Durability::kWal)));
    }
  }

  static void append(absl::StatusOr<std::vector<Hits>> found, std::vector<Hits>& answers) {
    EXPECT_OK(found);
    for (Hits& hits : *found) answers.push_back(std::move(hits));
  }

  std::vector<Hits> answers() const {
    SearchOptions options;
    options.k = 50;
    options.parts = {true, true};
    const std::vector<float> queries = random_vectors(12, kDimension, 23);
    auto all = collection_->search(queries, options);
    EXPECT_OK(all);
    options.filter = Filter::equal("part", std::int64_t{3});
    auto filtered = collection_->search(queries, options);
    EXPECT_OK(filtered);
    std::vector<Hits> answers = *std::move(all);
    for (Hits& hits : *filtered) answers.push_back(std::move(hits));
    if (collection_->info().options.originals != Originals::kNone) {
      options.rescore = true;
      append(collection_->search(queries, options), answers);
      options.exact = true;
      append(collection_->search(queries, options), answers);
    }
    return answers;
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<Collection> collection_;
  std::vector<float> vectors_;
};

TEST_F(RestartTest, AnswersAreTheSameAfterRestartsAndCompaction) {
  for (const DistanceMetric metric :
       {DistanceMetric::kInnerProduct, DistanceMetric::kCosine, DistanceMetric::kL2}) {
    fill(metric, Originals::kFp32);
    const std::vector<Hits> before = answers();
    open();
    expect_same(before, answers());
    EXPECT_OK(store_->verify());
    EXPECT_GT(collection_->info().dead_rows, 0u);
    ASSERT_OK(collection_->compact());
    expect_same(before, answers());
    EXPECT_LT(collection_->info().dead_rows, 4096u);
    EXPECT_OK(store_->verify());
    open();
    expect_same(before, answers());
    ASSERT_OK(collection_->compact());
    ASSERT_OK(collection_->remove(number_ids(10'000)));
    ASSERT_OK(collection_->compact());
    EXPECT_EQ(0u, *collection_->count({}));
    open();
    write(0, 2000);
    open();
    EXPECT_EQ(2000u, *collection_->count({}));
    EXPECT_OK(store_->verify());
    ASSERT_OK(store_->drop_collection("c"));
  }
}

TEST_F(RestartTest, SnapshotsBringBackTheSameAnswers) {
  fill(DistanceMetric::kCosine, Originals::kFp16);
  const std::vector<Hits> before = answers();
  for (const SnapshotKind kind : {SnapshotKind::kCheckpoint, SnapshotKind::kBackup}) {
    const auto snapshot = store_->create_snapshot(kind);
    ASSERT_OK(snapshot);
    EXPECT_EQ(kind, snapshot->kind);
    EXPECT_GT(snapshot->bytes, 0u);
    EXPECT_OK(store_->verify_snapshot(snapshot->name));
    ASSERT_OK(collection_->remove(number_ids(10'000)));
    ASSERT_OK(store_->create_collection("later", collection_->info().options));
    const auto stale = collection_;
    ASSERT_OK(store_->restore_snapshot(snapshot->name));
    EXPECT_EQ("COLLECTION_NOT_FOUND", error_reason(stale->count({}).status()));
    EXPECT_FALSE(store_->collection("later").ok());
    collection_ = *store_->collection("c");
    expect_same(before, answers());
    open();
    expect_same(before, answers());
    EXPECT_OK(store_->verify());
    // Writes go on in the restored store, and are found.
    ASSERT_OK(collection_->remove(number_ids(1)));
    ASSERT_OK(
        collection_->upsert({number_ids(1),
                             absl::MakeConstSpan(vectors_).first(kDimension),
                             {{{"part", std::int64_t{0}}, {"name", std::string("record 0")}}}}));
    open();
    expect_same(before, answers());
  }
  EXPECT_EQ(2u, store_->snapshots()->size());

  // A second backup shares what has not changed.
  ASSERT_OK(store_->create_snapshot(SnapshotKind::kBackup));
  const TempFolder elsewhere;
  ASSERT_OK(restore_backup(folder_.path() + "/backups", "backup-00000002", elsewhere.path()));
  EXPECT_EQ("TARGET_NOT_EMPTY", error_reason(restore_backup(folder_.path() + "/backups",
                                                            "backup-00000002", elsewhere.path())));
  auto copy = Store::open(elsewhere.path(), quiet_options());
  ASSERT_OK(copy);
  collection_ = *(*copy)->collection("c");
  expect_same(before, answers());
  collection_.reset();

  for (const char* name : {"backup-00000009", "checkpoint-00000009", "../c", "backup-1", ""}) {
    EXPECT_EQ("SNAPSHOT_NOT_FOUND", error_reason(store_->verify_snapshot(name))) << name;
    EXPECT_EQ("SNAPSHOT_NOT_FOUND", error_reason(store_->restore_snapshot(name))) << name;
    EXPECT_EQ("SNAPSHOT_NOT_FOUND", error_reason(store_->delete_snapshot(name))) << name;
  }
  ASSERT_OK(store_->delete_snapshot("backup-00000001"));
  ASSERT_OK(store_->delete_snapshot("checkpoint-00000001"));
  EXPECT_EQ(1u, store_->snapshots()->size());
}

TEST_F(RestartTest, ADamagedSnapshotIsNotRestored) {
  fill(DistanceMetric::kInnerProduct, Originals::kNone);
  const std::vector<Hits> before = answers();
  for (const SnapshotKind kind : {SnapshotKind::kCheckpoint, SnapshotKind::kBackup}) {
    const auto snapshot = store_->create_snapshot(kind);
    ASSERT_OK(snapshot);
    const fs::path root =
        folder_.path() + (kind == SnapshotKind::kBackup ? "/backups" : "/snapshots");
    fs::path largest;
    for (const auto& entry : fs::recursive_directory_iterator(root)) {
      if (!entry.is_regular_file() || entry.path().extension() != ".sst") continue;
      if (largest.empty() || entry.file_size() > fs::file_size(largest)) largest = entry.path();
    }
    ASSERT_FALSE(largest.empty());
    // The checkpoint's file is a hard link of the store's: give it bytes of its own.
    fs::copy_file(largest, largest.string() + ".copy");
    fs::rename(largest.string() + ".copy", largest);
    std::fstream file(largest, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(fs::file_size(largest) / 2));
    const char byte = static_cast<char>(file.peek() ^ 4);
    file.seekp(file.tellg());
    file.put(byte);
    file.close();
    EXPECT_EQ("DAMAGED", error_reason(store_->verify_snapshot(snapshot->name)));
    EXPECT_EQ("DAMAGED", error_reason(store_->restore_snapshot(snapshot->name)));
    expect_same(before, answers());
  }
  open();
  expect_same(before, answers());
}

TEST_F(RestartTest, RescoringAndExactSearchUseTheOriginals) {
  for (const Originals originals : {Originals::kFp32, Originals::kFp16}) {
    for (const DistanceMetric metric :
         {DistanceMetric::kInnerProduct, DistanceMetric::kCosine, DistanceMetric::kL2}) {
      fill(metric, originals);
      const std::vector<float> query = random_vectors(1, kDimension, 24);
      std::vector<std::pair<double, std::uint64_t>> all;
      for (std::uint64_t i = 0; i < 10'000; ++i) {
        if (i >= 3000 && i < 5500) continue;
        double product = 0;
        double norms[2] = {};
        double distance = 0;
        for (std::size_t j = 0; j < kDimension; ++j) {
          const double a = query[j];
          const double b = vectors_[i * kDimension + j];
          product += a * b;
          norms[0] += a * a;
          norms[1] += b * b;
          distance += (a - b) * (a - b);
        }
        if (metric == DistanceMetric::kCosine) product /= std::sqrt(norms[0] * norms[1]);
        all.emplace_back(metric == DistanceMetric::kL2 ? distance : -product, i);
      }
      std::sort(all.begin(), all.end());
      const double tolerance = originals == Originals::kFp16 ? 2e-2 : 1e-5;
      SearchOptions options;
      options.exact = true;
      const auto exact = collection_->search(query, options);
      ASSERT_OK(exact);
      options.exact = false;
      options.rescore = true;
      options.oversampling = 20;
      const auto rescored = collection_->search(query, options);
      ASSERT_OK(rescored);
      for (std::size_t i = 0; i < 10; ++i) {
        const double score = (*exact)[0][i].score;
        EXPECT_NEAR(all[i].first, metric == DistanceMetric::kL2 ? score : -score, tolerance);
        if (originals == Originals::kFp32) {
          EXPECT_EQ(RecordId(all[i].second), (*exact)[0][i].id);
        }
      }
      expect_same(*exact, *rescored);
      ASSERT_OK(store_->drop_collection("c"));
    }
  }
}

TEST_F(RestartTest, Float16RefusesWhatItCannotHold) {
  CollectionOptions options;
  options.dimension = 2;
  options.originals = Originals::kFp16;
  auto c = store_->create_collection("h", options);
  ASSERT_OK(c);
  const std::vector<float> large = {1.0F, 7e4F};
  EXPECT_EQ("BAD_VECTOR", error_reason((*c)->upsert({number_ids(1), large}).status()));
  const std::vector<float> exact = {65504.0F, -0x1p-24F};
  ASSERT_OK((*c)->upsert({number_ids(1), exact}));
  EXPECT_EQ(exact, (*c)->get(number_ids(1), {false, true})->front()->vector);
}

}  // namespace
}  // namespace turboquant::test
