#include "service/micro_batcher.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "service/errors.h"

namespace turboquant::service {
namespace {

// Before the scan: what nobody waits for any more is not scanned.
absl::Status still_wanted(const MicroBatcher::Query& query, absl::Time now) {
  if (query.cancelled != nullptr && *query.cancelled) {
    return make_error(absl::StatusCode::kCancelled, "CANCELLED", "the caller cancelled");
  }
  if (query.deadline <= now) {
    return make_error(absl::StatusCode::kDeadlineExceeded, "DEADLINE",
                      "the deadline passed before the search began");
  }
  return absl::OkStatus();
}

}  // namespace

MicroBatcher::~MicroBatcher() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return lanes_.empty(); });
}

bool MicroBatcher::search(const std::shared_ptr<Collection>& collection,
                          const SearchOptions& options, Query query) {
  const Key key(collection.get(), options.k, options.parts.metadata, options.parts.vector,
                options.rescore, options.oversampling, options.exact);
  std::shared_ptr<Lane> started;
  bool complete = false;
  {
    const std::lock_guard lock(mutex_);
    if (waiting_ >= limits_.max_waiting) return false;
    ++waiting_;
    std::shared_ptr<Lane>& lane = lanes_[key];
    if (lane == nullptr) {
      lane = std::make_shared<Lane>();
      lane->collection = collection;
      lane->options = options;
      started = lane;
    }
    lane->waiting.push_back(std::move(query));
    complete = lane->waiting.size() == lane->wanted;
  }
  if (complete) arrived_.notify_all();
  if (started != nullptr) pool_.submit_unbounded([this, key, started] { run(key, started); });
  return true;
}

// Batch after batch in one thread, whose OpenMP team is awake; others that wait for a thread get
// their turn in between.
void MicroBatcher::run(const Key& key, const std::shared_ptr<Lane>& lane) {
  while (run_batch(key, *lane)) {
    if (pool_.queued() == 0) continue;
    pool_.submit_unbounded([this, key, lane] { run(key, lane); });
    return;
  }
}

// False when nobody waits any more; the lane is gone then.
bool MicroBatcher::run_batch(const Key& key, Lane& lane) {
  std::vector<Query> batch;
  {
    std::unique_lock lock(mutex_);
    collect(lock, lane);
    if (lane.waiting.empty()) {
      lanes_.erase(key);
      idle_.notify_all();
      return false;
    }
    const std::size_t n = std::min(lane.waiting.size(), limits_.max_queries);
    const auto end = lane.waiting.begin() + static_cast<std::ptrdiff_t>(n);
    batch.assign(std::make_move_iterator(lane.waiting.begin()), std::make_move_iterator(end));
    lane.waiting.erase(lane.waiting.begin(), end);
    lane.before_last = std::exchange(lane.last_batch, n);
    waiting_ -= n;
  }
  std::vector<Query> wanted = drop_unwanted(std::move(batch));
  absl::StatusOr<std::vector<Hits>> found;
  if (!wanted.empty()) found = search_batch(lane, wanted);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (!found.ok()) {
      wanted[i].done(found.status());
      continue;
    }
    std::vector<Hits> mine;
    mine.push_back(std::move((*found)[i]));
    wanted[i].done(std::move(mine));
  }
  return true;
}

// Waits for the callers of the last two batches: while one was searched, the others may have come
// back already.
void MicroBatcher::collect(std::unique_lock<std::mutex>& lock, Lane& lane) {
  if (lane.last_batch <= 1) return;
  lane.wanted = std::min(lane.last_batch + lane.before_last, limits_.max_queries);
  const absl::Time end = absl::Now() + limits_.max_wait;
  for (;;) {
    const std::size_t before = lane.waiting.size();
    if (arrived_.wait_for(lock, absl::ToChronoMicroseconds(limits_.max_pause),
                          [&] { return lane.waiting.size() >= lane.wanted; })) {
      break;
    }
    if (lane.waiting.size() == before || absl::Now() >= end) break;
  }
  lane.wanted = 0;
}

std::vector<MicroBatcher::Query> MicroBatcher::drop_unwanted(std::vector<Query> batch) {
  const absl::Time now = absl::Now();
  std::vector<Query> wanted;
  wanted.reserve(batch.size());
  for (Query& query : batch) {
    if (absl::Status status = still_wanted(query, now); !status.ok()) {
      query.done(std::move(status));
    } else {
      wanted.push_back(std::move(query));
    }
  }
  return wanted;
}

absl::StatusOr<std::vector<Hits>> MicroBatcher::search_batch(const Lane& lane,
                                                             const std::vector<Query>& batch) {
  std::vector<float> vectors;
  SearchOptions options = lane.options;
  options.control.deadline = absl::InfinitePast();
  for (const Query& query : batch) {
    options.control.deadline = std::max(options.control.deadline, query.deadline);
    vectors.insert(vectors.end(), query.vector.begin(), query.vector.end());
  }
  if (batch.size() == 1) options.control.cancelled = batch.front().cancelled;
  batches_.fetch_add(1, std::memory_order_relaxed);
  queries_.fetch_add(batch.size(), std::memory_order_relaxed);
  return lane.collection->search(vectors, options);
}

}  // namespace turboquant::service
