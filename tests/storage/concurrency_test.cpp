// Readers and writers at once: every read sees whole writes only, and never waits for a writer's
// disk. Run it under the thread sanitizer.
#include <atomic>
#include <chrono>
#include <thread>

#include "storage/collection.h"
#include "tests/storage/store_util.h"
#include "tests/storage/totals_util.h"
#include "turboquant/store.h"

namespace turboquant::test {
namespace {

constexpr std::size_t kDimension = 16;
constexpr std::size_t kGroup = 37;
constexpr std::size_t kGroups = 40;
constexpr std::uint64_t kReads = 10;  // at least, before writers end

// Writes group g's records, all of generation `generation`.
RecordBatch group_batch(std::size_t g, std::int64_t generation, const std::vector<float>& vectors) {
  RecordBatch batch;
  batch.ids = number_ids(kGroup, g * kGroup);
  batch.vectors = vectors;
  for (std::size_t i = 0; i < kGroup; ++i) {
    batch.metadata.push_back({{"group", static_cast<std::int64_t>(g)}, {"generation", generation}});
  }
  return batch;
}

TEST(Concurrency, ReadersSeeWholeWritesWhileRowsMove) {
  const TempFolder folder;
  StoreOptions store_options;
  store_options.background = true;
  auto store = Store::open(folder.path(), store_options);
  ASSERT_OK(store);
  CollectionOptions options;
  options.dimension = kDimension;
  options.originals = Originals::kFp32;
  options.fields = {{"group", FieldType::kInt64}, {"generation", FieldType::kInt64}};
  auto made = (*store)->create_collection("c", options);
  ASSERT_OK(made);
  Collection& c = **made;
  for (std::size_t g = 0; g < kGroups; ++g) {
    const std::vector<float> x = random_vectors(kGroup, kDimension, g);
    ASSERT_OK(c.upsert(group_batch(g, 0, x), with(Durability::kMemory)));
  }

  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> reads{0};
  std::atomic<std::uint64_t> compared{0};
  std::vector<std::thread> readers;
  std::vector<std::thread> writers;
  // Each writer owns half the groups; deletes and rewrites them whole.
  for (std::size_t w = 0; w < 2; ++w) {
    writers.emplace_back([&, w] {
      const std::vector<float> x = random_vectors(kGroup, kDimension, 100 + w);
      const auto enough = [&] { return reads.load() > kReads && compared.load() > kReads; };
      for (std::int64_t generation = 1; generation <= 250 || !enough(); ++generation) {
        const std::size_t g = static_cast<std::size_t>(generation) % (kGroups / 2) * 2 + w;
        if (generation % 7 == 0) {
          EXPECT_OK(c.remove_if(Filter::equal("group", static_cast<std::int64_t>(g)),
                                with(Durability::kWal)));
        }
        EXPECT_OK(c.upsert(group_batch(g, generation, x),
                           with(generation % 50 == 0 ? Durability::kFsync : Durability::kWal)));
      }
    });
  }
  for (std::size_t r = 0; r < 2; ++r) {
    readers.emplace_back([&, r] {
      const std::vector<float> query = random_vectors(1, kDimension, 200 + r);
      std::mt19937 random(static_cast<std::uint32_t>(r));
      while (!stop.load()) {
        SearchOptions search;
        search.k = 2 * kGroup;
        search.filter = Filter::equal("group", static_cast<std::int64_t>(random() % kGroups));
        search.parts.metadata = true;
        search.rescore = random() % 2 == 0;
        const auto found = c.search(query, search);
        ASSERT_OK(found);
        const Hits& hits = found->front();
        EXPECT_TRUE(hits.empty() || hits.size() == kGroup) << hits.size();
        for (const Hit& hit : hits) {
          EXPECT_EQ(hits.front().metadata, hit.metadata);
        }
        reads.fetch_add(1);
      }
    });
  }
  readers.emplace_back([&] {
    while (!stop.load()) {
      // What is there all the time is seen exactly once, whatever moves meanwhile.
      const std::vector<Record> all = scroll_all(c, 97);
      for (std::size_t i = 1; i < all.size(); ++i) {
        ASSERT_LT(all[i - 1].id, all[i].id);
      }
      const auto got = c.get(number_ids(kGroup * kGroups), {true, true});
      ASSERT_OK(got);
      for (const auto& record : *got) {
        if (record) {
          ASSERT_EQ(2u, record->metadata.size());
        }
      }
      ASSERT_OK(c.compact());
      reads.fetch_add(1);
    }
  });
  readers.emplace_back([&] {
    while (!stop.load()) {
      const auto view = static_cast<storage::CollectionImpl&>(c).view();
      const CollectionInfo info = c.info();
      if (info.version != view->version) continue;  // a write came in between
      expect_totals(*view, info);
      compared.fetch_add(1);
    }
  });
  for (std::thread& writer : writers) writer.join();
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(kGroup * kGroups, *c.count({}));
  EXPECT_OK((*store)->stats().background);
  EXPECT_OK((*store)->verify());
}

TEST(Concurrency, WritersShareOneSyncAndCollectionsComeAndGo) {
  const TempFolder folder;
  auto store = Store::open(folder.path());
  ASSERT_OK(store);
  CollectionOptions options;
  options.dimension = kDimension;
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      const std::string name = "c" + std::to_string(t % 3);
      const std::vector<float> x = random_vectors(1, kDimension, t);
      for (std::uint64_t i = 0; i < 25; ++i) {
        auto c = (*store)->collection(name);
        if (!c.ok()) c = (*store)->create_collection(name, options);
        if (!c.ok()) c = (*store)->collection(name);  // another thread was first
        if (!c.ok()) continue;
        const absl::Status status = (*c)->upsert({number_ids(1, t * 1000 + i), x}).status();
        EXPECT_TRUE(status.ok() || error_reason(status) == "COLLECTION_NOT_FOUND") << status;
        if (t == 0 && i % 10 == 9) (void)(*store)->drop_collection(name);
        if (t == 1 && i % 10 == 5) {
          EXPECT_OK((*store)->create_snapshot(SnapshotKind::kCheckpoint));
        }
        (void)(*store)->collections();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(50u, *(*(*store)->collection("c2"))->count({}));
  EXPECT_OK((*store)->verify());
}

}  // namespace
}  // namespace turboquant::test
