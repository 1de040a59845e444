// Searches of one query each that arrive together become one search of many queries, which reads
// the codes once. A search that finds its collection idle starts at once. Those that arrive while
// it runs wait for its end and then go together; where that happens, the next batch also waits for
// the callers that were just answered, as long as they keep coming and a bounded time at most:
// taking in their calls is work that would have to be done anyway.
#pragma once

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "service/worker_pool.h"
#include "turboquant/store.h"

namespace turboquant::service {

struct BatchLimits {
  std::size_t max_queries = 64;                        ///< of one batch
  std::size_t max_waiting = 4096;                      ///< over all collections
  absl::Duration max_pause = absl::Microseconds(150);  ///< between two callers that come back
  absl::Duration max_wait = absl::Milliseconds(2);     ///< for all of them
};

class MicroBatcher {
 public:
  using Done = std::function<void(absl::StatusOr<std::vector<Hits>>)>;

  struct Query {
    std::vector<float> vector;  ///< [dimension], checked: the store would take it
    absl::Time deadline;
    const std::atomic<bool>* cancelled = nullptr;  ///< borrowed until done is called
    Done done;                                     ///< called once, from a thread of the pool
  };

  /// pool outlives this.
  MicroBatcher(WorkerPool& pool, const BatchLimits& limits) : pool_(pool), limits_(limits) {}
  /// Waits for the end of all searches.
  ~MicroBatcher();
  MicroBatcher(const MicroBatcher&) = delete;
  MicroBatcher& operator=(const MicroBatcher&) = delete;

  /// False, and done is not called, when too many wait. options without a filter and a control.
  [[nodiscard]] bool search(const std::shared_ptr<Collection>& collection,
                            const SearchOptions& options, Query query);

  /// Batches run and the queries in them since the start.
  std::uint64_t batches() const { return batches_.load(std::memory_order_relaxed); }
  std::uint64_t queries() const { return queries_.load(std::memory_order_relaxed); }

 private:
  // Searches with equal keys can be one search.
  using Key = std::tuple<const Collection*, std::size_t, bool, bool, bool, double, bool>;
  struct Lane {
    std::shared_ptr<Collection> collection;
    SearchOptions options;
    std::vector<Query> waiting;
    std::size_t last_batch = 0;
    std::size_t before_last = 0;
    std::size_t wanted = 0;  // so many waiting end the collecting of a batch; 0: nobody collects
  };

  void run(const Key& key, const std::shared_ptr<Lane>& lane);
  bool run_batch(const Key& key, Lane& lane);
  void collect(std::unique_lock<std::mutex>& lock, Lane& lane);
  static std::vector<Query> drop_unwanted(std::vector<Query> batch);
  absl::StatusOr<std::vector<Hits>> search_batch(const Lane& lane, const std::vector<Query>& batch);

  WorkerPool& pool_;
  const BatchLimits limits_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::condition_variable idle_;
  std::map<Key, std::shared_ptr<Lane>> lanes_;  // those with work under way
  std::size_t waiting_ = 0;
  std::atomic<std::uint64_t> batches_{0};
  std::atomic<std::uint64_t> queries_{0};
};

}  // namespace turboquant::service
