// A full disk and a failing fsync: the write is refused with the right reason, reads go on, nothing
// is acknowledged that is not there later, and writes return once the disk is well.
#include <gmock/gmock.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <thread>

#include "storage/collection.h"
#include "tests/storage/fault_shim.h"
#include "tests/storage/store_util.h"
#include "tests/storage/totals_util.h"
#include "turboquant/store.h"

namespace turboquant::test {
namespace {

constexpr std::size_t kDimension = 64;
constexpr std::size_t kRows = 50;

class DiskErrorTest : public testing::Test {
 protected:
  void SetUp() override { open(quiet_options()); }
  void TearDown() override { set_faults({}); }

  void open(const StoreOptions& options) {
    collection_.reset();
    store_.reset();
    auto store = Store::open(folder_.path(), options);
    ASSERT_OK(store);
    store_ = *std::move(store);
    auto c = store_->collection("c");
    if (!c.ok()) {
      CollectionOptions made;
      made.dimension = kDimension;
      made.originals = Originals::kFp32;
      c = store_->create_collection("c", made);
    }
    ASSERT_OK(c);
    collection_ = *c;
  }

  // Write number n: kRows records of its own. What was acknowledged is remembered.
  absl::Status write(std::uint64_t n) {
    const std::vector<float> x = random_vectors(kRows, kDimension, n);
    RecordBatch batch;
    batch.ids = number_ids(kRows, n * kRows);
    batch.vectors = x;
    batch.metadata.assign(kRows, {{"write", static_cast<std::int64_t>(n)}});
    absl::Status status = collection_->upsert(batch).status();
    if (status.ok()) acknowledged_[n] = true;
    return status;
  }

  // Every acknowledged write is there whole; others are there whole or not at all.
  void expect_acknowledged() {
    std::map<std::uint64_t, std::size_t> rows;
    for (const Record& record : scroll_all(*collection_, 5000)) {
      const auto n = std::get<std::uint64_t>(record.id) / kRows;
      ++rows[n];
      EXPECT_EQ(MetadataValue(static_cast<std::int64_t>(n)), record.metadata.at("write"));
    }
    for (const auto& [n, there] : acknowledged_) EXPECT_EQ(kRows, rows[n]) << "write " << n;
    for (const auto& [n, count] : rows) EXPECT_TRUE(count == 0 || count == kRows) << "write " << n;
    const auto view = static_cast<storage::CollectionImpl&>(*collection_).view();
    expect_totals(*view, collection_->info());
  }

  void expect_reads_work() {
    SearchOptions options;
    options.parts.metadata = true;
    const auto found = collection_->search(random_vectors(1, kDimension, 71), options);
    ASSERT_OK(found);
    EXPECT_EQ(10u, found->front().size());
    EXPECT_OK(collection_->get(number_ids(5), {true, true}));
  }

  TempFolder folder_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<Collection> collection_;
  std::map<std::uint64_t, bool> acknowledged_;
};

TEST_F(DiskErrorTest, AFullDiskRefusesWritesUntilThereIsSpace) {
  std::uint64_t n = 0;
  for (; n < 5; ++n) {
    ASSERT_OK(write(n));
  }
  // Several limits, so that writes are cut at different places.
  for (const std::int64_t space : {0, 700, 5'000, 20'001, 100'000}) {
    set_faults({space});
    absl::Status status;
    for (int tries = 0; status.ok() && tries < 20; ++tries) status = write(n++);
    EXPECT_EQ(absl::StatusCode::kResourceExhausted, status.code()) << status;
    EXPECT_EQ("DISK_FULL", error_reason(status));
    EXPECT_EQ("DISK_FULL", error_reason(write(n++)));
    EXPECT_EQ("DISK_FULL", error_reason(store_->writable()));
    EXPECT_EQ("DISK_FULL", error_reason(store_->try_recover()));
    expect_reads_work();
    expect_acknowledged();
    set_faults({});
    ASSERT_OK(store_->try_recover());
    EXPECT_OK(store_->writable());
    ASSERT_OK(write(n++));
    expect_acknowledged();
    expect_reads_work();
  }
  EXPECT_EQ(5u, store_->stats().recoveries);
  EXPECT_GT(faults_injected(), 5u);
  EXPECT_OK(store_->verify());
  open(quiet_options());
  expect_acknowledged();
}

TEST_F(DiskErrorTest, AFailedSyncIsNeverAcknowledged) {
  std::uint64_t n = 0;
  for (; n < 5; ++n) {
    ASSERT_OK(write(n));
  }
  for (int round = 0; round < 3; ++round) {
    set_faults({-1, true});
    const absl::Status status = write(n++);
    EXPECT_EQ(absl::StatusCode::kUnavailable, status.code()) << status;
    EXPECT_EQ("IO_ERROR", error_reason(status));
    // The disk is well again, but what it lost before is not known: no write until a recovery.
    set_faults({});
    EXPECT_EQ("WRITES_STOPPED", error_reason(write(n++)));
    expect_reads_work();
    ASSERT_OK(store_->try_recover());
    ASSERT_OK(write(n++));
    expect_acknowledged();
  }
  open(quiet_options());
  expect_acknowledged();
  EXPECT_OK(store_->verify());
}

TEST_F(DiskErrorTest, ConcurrentWritersAreAllToldOfAFailedSync) {
  ASSERT_OK(write(0));
  set_faults({-1, true});
  std::vector<std::thread> writers;
  for (std::uint64_t t = 1; t <= 4; ++t) {
    writers.emplace_back([&, t] {
      const std::vector<float> x = random_vectors(1, kDimension, t);
      EXPECT_FALSE(collection_->upsert({number_ids(1, 1000 + t), x}).ok());
    });
  }
  for (std::thread& writer : writers) writer.join();
}

TEST_F(DiskErrorTest, TheBackgroundThreadRecovers) {
  open(StoreOptions());
  std::uint64_t n = 0;
  ASSERT_OK(write(n++));
  set_faults({300});
  EXPECT_EQ("DISK_FULL", error_reason(write(n++)));
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_EQ("DISK_FULL", error_reason(write(n++)));
  set_faults({});
  const auto start = std::chrono::steady_clock::now();
  while (!store_->writable().ok() &&
         std::chrono::steady_clock::now() - start < std::chrono::minutes(10)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  ASSERT_OK(write(n++));
  expect_acknowledged();
}

TEST_F(DiskErrorTest, ACollectionWhoseDropFailedGoesOn) {
  std::uint64_t n = 0;
  ASSERT_OK(write(n++));
  set_faults({0});
  EXPECT_EQ("DISK_FULL", error_reason(store_->drop_collection("c")));
  expect_reads_work();
  set_faults({});
  ASSERT_OK(store_->try_recover());
  expect_reads_work();
  ASSERT_OK(write(n++));
  expect_acknowledged();
  // Where the drop came into the log, it may show up.
  set_faults({-1, true});
  EXPECT_EQ("IO_ERROR", error_reason(store_->drop_collection("c")));
  set_faults({});
  ASSERT_OK(store_->try_recover());
  if (store_->collection("c").ok()) {
    ASSERT_OK(write(n++));
    expect_acknowledged();
  } else {
    EXPECT_EQ("COLLECTION_NOT_FOUND", error_reason(write(n++)));
  }
  EXPECT_OK(store_->verify());
}

TEST_F(DiskErrorTest, ADatabaseThatCannotBeOpenedAgainIsTriedAgain) {
  std::uint64_t n = 0;
  ASSERT_OK(write(n++));
  set_faults({-1, true});
  EXPECT_FALSE(write(n++).ok());
  set_faults({});
  const std::string database = folder_.path() + "/db-00000001";
  std::filesystem::rename(database, database + ".away");
  for (int tries = 0; tries < 2; ++tries) {
    EXPECT_EQ("DAMAGED", error_reason(store_->try_recover()));
    EXPECT_EQ("DAMAGED", error_reason(collection_->get(number_ids(5), {}).status()));
    EXPECT_FALSE(write(n++).ok());
    EXPECT_OK(collection_->search(random_vectors(1, kDimension, 71), SearchOptions()));
  }
  std::filesystem::rename(database + ".away", database);
  ASSERT_OK(store_->try_recover());
  ASSERT_OK(write(n++));
  expect_acknowledged();
  expect_reads_work();
  ASSERT_OK(store_->close());
  EXPECT_EQ("CLOSED", error_reason(write(n++)));
  EXPECT_EQ("CLOSED", error_reason(store_->create_snapshot(SnapshotKind::kBackup).status()));
}

// Whichever sync fails, the store is as before and stays so over a restart, or is the snapshot.
TEST_F(DiskErrorTest, AFailedRestoreLosesNoWrite) {
  std::uint64_t n = 0;
  ASSERT_OK(write(n++));
  for (const SnapshotKind kind : {SnapshotKind::kBackup, SnapshotKind::kCheckpoint}) {
    const auto snapshot = store_->create_snapshot(kind);
    ASSERT_OK(snapshot);
    const std::map<std::uint64_t, bool> kept = acknowledged_;
    ASSERT_OK(write(n++));
    bool failed = true;
    for (std::int64_t syncs = 0; failed; ++syncs) {
      SCOPED_TRACE(syncs);
      ASSERT_LT(syncs, 200);
      const std::uint64_t before = faults_injected();
      set_faults({-1, false, syncs});
      // A sync that RocksDB can do without may fail too.
      const bool restored = store_->restore_snapshot(snapshot->name).ok();
      set_faults({});
      failed = faults_injected() > before;
      EXPECT_TRUE(restored || failed);
      if (restored) acknowledged_ = kept;
      collection_ = *store_->collection("c");
      if (!store_->writable().ok()) ASSERT_OK(store_->try_recover());
      ASSERT_OK(write(n++));
      open(quiet_options());
      expect_acknowledged();
    }
    EXPECT_OK(store_->verify());
  }
}

}  // namespace
}  // namespace turboquant::test
