// What kill_writer does, as a function of thread and number, for it and for the test that kills it.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tests/storage/store_util.h"
#include "turboquant/store.h"

namespace turboquant::test {

inline constexpr std::size_t kKillDimension = 24;
inline constexpr std::size_t kKillThreads = 3;
inline constexpr std::uint64_t kIdsPerThread = 4000;

/// Operation `number` of `thread`: replaces records, or deletes some, of the thread's own ids.
struct KillOperation {
  KillOperation(std::uint64_t thread, std::uint64_t n_th)
      : name(std::to_string(thread) + "/" + std::to_string(n_th)), number(n_th) {
    std::mt19937_64 random(thread * 1'000'003 + n_th);
    const std::uint64_t kind = random() % 10;
    remove = kind < 3;
    const std::size_t n = random() % (kind == 9 ? 600 : 40) + 1;
    const std::uint64_t first = random() % (kIdsPerThread - n);
    ids = number_ids(n, thread * kIdsPerThread + first);
    fsync = random() % 4 != 0;
  }

  std::vector<float> vectors() const {
    return random_vectors(ids.size(), kKillDimension, number * 7 + std::get<std::uint64_t>(ids[0]));
  }

  std::string name;
  std::uint64_t number;
  bool remove;
  bool fsync;
  std::vector<RecordId> ids;
};

inline absl::StatusOr<WriteResult> run(const KillOperation& operation, Collection& collection,
                                       const WriteOptions& options) {
  if (operation.remove) return collection.remove(operation.ids, options);
  const std::vector<float> x = operation.vectors();
  RecordBatch batch;
  batch.ids = operation.ids;
  batch.vectors = x;
  batch.metadata.assign(operation.ids.size(),
                        {{"number", static_cast<std::int64_t>(operation.number)}});
  return collection.upsert(batch, options);
}

/// Id to the number of the operation that wrote its record.
using KillState = std::map<RecordId, std::uint64_t>;

inline void perform(const KillOperation& operation, KillState& state) {
  for (const RecordId& id : operation.ids) {
    if (operation.remove) {
      state.erase(id);
    } else {
      state[id] = operation.number;
    }
  }
}

}  // namespace turboquant::test
