// Power loss: every write acknowledged with kFsync is in every image that a disk may show
// afterwards, and no write is there in part. TURBOQUANT_POWER_IMAGES=20000 is the long
// form, TURBOQUANT_POWER_SEED chooses other images.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "tests/storage/disk_journal.h"
#include "tests/storage/kill_model.h"

namespace turboquant::test {
namespace {

struct Acknowledged {
  std::size_t events;  // of the journal when the call returned
  std::uint64_t operation;
};

TEST(PowerLoss, EveryLegalImageHoldsWhatWasAcknowledged) {
  const TempFolder folder;
  const std::string path = folder.path() + "/store";
  std::filesystem::create_directory(path);
  start_journal(path);
  std::vector<Acknowledged> acknowledged;  // of synced operations
  std::vector<KillState> states = {{}};    // after so many operations
  std::size_t created = 0;
  std::uint64_t number = 0;
  for (int session = 0; session < 3; ++session) {
    auto store = Store::open(path, quiet_options());
    ASSERT_OK(store);
    auto collection = (*store)->collection("k");
    if (session == 0) {
      CollectionOptions options;
      options.dimension = kKillDimension;
      options.originals = Originals::kFp16;
      options.fields = {{"number", FieldType::kInt64}};
      collection = (*store)->create_collection("k", options);
      created = journal_size();
    }
    ASSERT_OK(collection);
    for (int i = 0; i < 40; ++i, ++number) {
      const KillOperation operation(0, number);
      WriteOptions options;
      options.durability = operation.fsync ? Durability::kFsync : Durability::kWal;
      ASSERT_OK(run(operation, **collection, options));
      states.push_back(states.back());
      perform(operation, states.back());
      if (operation.fsync) acknowledged.push_back({journal_size(), number});
      if (i == 30) {
        ASSERT_OK((*collection)->compact());
      }
    }
  }
  stop_journal();

  const char* chosen = std::getenv("TURBOQUANT_POWER_IMAGES");
  const int images = chosen != nullptr ? std::atoi(chosen) : 120;
  const char* seed = std::getenv("TURBOQUANT_POWER_SEED");
  std::mt19937_64 random(seed != nullptr ? std::strtoull(seed, nullptr, 10) : 91);
  const std::size_t events = journal_size();
  ASSERT_GT(events, 300u);
  int checked = 0;
  for (int image = 0; image < images && !testing::Test::HasFatalFailure(); ++image) {
    const auto cut = static_cast<std::size_t>(random() % (events + 1));
    const auto unsynced = static_cast<Unsynced>(image % 3);
    SCOPED_TRACE("image " + std::to_string(image) + ", event " + std::to_string(cut) + " of " +
                 std::to_string(events) + ", unsynced " + std::to_string(image % 3));
    const TempFolder target;
    make_image(cut, unsynced, random, target.path());
    const auto store = Store::open(target.path(), quiet_options());
    ASSERT_OK(store);
    const auto collection = (*store)->collection("k");
    if (!collection.ok()) {
      ASSERT_LT(cut, created) << "the collection is gone";
      continue;
    }
    KillState found;
    for (const Record& record : scroll_all(**collection, 10'000, {}, {true, false})) {
      found[record.id] =
          static_cast<std::uint64_t>(std::get<std::int64_t>(record.metadata.at("number")));
    }
    // The log is one sequence: what is found is the state after some operation, none before the
    // last that was acknowledged.
    std::uint64_t first = 0;
    for (const Acknowledged& one : acknowledged) {
      if (one.events <= cut) first = one.operation + 1;
    }
    const auto from = states.begin() + static_cast<std::ptrdiff_t>(first);
    ASSERT_TRUE(std::find(from, states.end(), found) != states.end())
        << found.size() << " records; acknowledged: " << first << " operations";
    ASSERT_OK((*store)->verify());
    ++checked;
  }
  std::printf("%d images of %zu events, %d of them after the collection was made\n", images, events,
              checked);
  EXPECT_GT(checked, images / 2);
}

}  // namespace
}  // namespace turboquant::test
