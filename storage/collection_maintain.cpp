// Work in the background: folding tombstones, emptying blocks that are mostly dead, forgetting old
// operations. Every step holds the writer's lock for a bounded time and is one batch.
#include <absl/time/clock.h>

#include <algorithm>
#include <limits>
#include <set>

#include "storage/collection.h"
#include "storage/errors.h"

namespace turboquant::storage {
namespace {

constexpr std::size_t kFoldFrom = 1024;     // tombstones that are worth a fold
constexpr std::size_t kFoldMost = 16384;    // tombstones of one batch
constexpr std::size_t kMoveMost = 256;      // rows of one batch
constexpr std::size_t kForgetMost = 10000;  // operations looked at in one round

}  // namespace

std::uint64_t CollectionImpl::oldest_view() const {
  const std::lock_guard<std::mutex> lock(state_);
  // The current view may be unused; it shows the current state, which is new enough.
  std::uint64_t oldest = std::numeric_limits<std::uint64_t>::max();
  for (const auto& [version, view] : views_) {
    if (!view.expired()) oldest = std::min(oldest, version);
  }
  return oldest;
}

absl::Status CollectionImpl::fold_tombstones(Database& database, bool all) {
  const std::lock_guard<std::mutex> writer(writer_);
  TQ_RETURN_IF_ERROR(check_alive());
  if (retiring_rows_.empty() && (all ? !dead_rows_.empty() : dead_rows_.size() >= kFoldFrom)) {
    retiring_rows_ = std::move(dead_rows_);
    dead_rows_.clear();
    std::sort(retiring_rows_.begin(), retiring_rows_.end(), std::greater<>());
    retire_version_ = version_;
  }
  if (retiring_rows_.empty() || oldest_view() < retire_version_) return absl::OkStatus();

  Stage stage(*this, database);
  std::set<std::uint32_t> touched;
  std::size_t left = retiring_rows_.size();
  for (std::size_t n = 0; left > 0 && n < kFoldMost; ++n) {
    const std::uint64_t row = retiring_rows_[--left];
    touched.insert(static_cast<std::uint32_t>(row / kBlockRows));
    stage.batch.remove(kDelta, delta_key(cid(), kTombstone, row));
    stage.batch.remove(kPayload, row_key(cid(), row));
    if (!fields().empty()) stage.batch.remove(kPindex, row_key(cid(), row));
    if (record_.options.originals != Originals::kNone) {
      stage.batch.remove(kOrig, row_key(cid(), row));
    }
  }
  // A block can go once none of its rows waits for a fold.
  std::set<std::uint32_t> waiting;
  for (const std::uint64_t row : dead_rows_) {
    waiting.insert(static_cast<std::uint32_t>(row / kBlockRows));
  }
  for (std::size_t i = 0; i < left; ++i) {
    waiting.insert(static_cast<std::uint32_t>(retiring_rows_[i] / kBlockRows));
  }
  std::vector<std::uint32_t> removed;
  for (const std::uint32_t number : touched) {
    const Block& block = *find_block(blocks_, number);
    if (block.full() && block.live_rows == 0 && waiting.count(number) == 0) {
      stage.batch.remove(kCodes, block_key(cid(), number, kBlockPart));
      stage.batch.remove(kCodes, block_key(cid(), number, kDeadPart));
      std::string row_bytes;
      turboquant::storage::put(row_bytes, next_row_ / kBlockRows * kBlockRows);
      stage.batch.put(kMeta, next_row_key(cid()), std::move(row_bytes));
      removed.push_back(number);
      continue;
    }
    RowBits dead = RowBits::first(block.rows);
    dead -= *block.live;
    stage.batch.put(
        kCodes, block_key(cid(), number, kDeadPart),
        std::string(reinterpret_cast<const char*>(dead.words.data()), sizeof dead.words));
  }
  if (absl::Status status = database.write(stage.batch); !status.ok()) {
    return core_->stop_writes(status);
  }
  retiring_rows_.resize(left);
  if (removed.empty()) return absl::OkStatus();
  for (const std::uint32_t number : removed) stage.edit.remove_block(number);
  const BlockTotals change = stage.edit.change();
  const std::lock_guard<std::mutex> lock(state_);
  publish(stage.edit, change);
  return absl::OkStatus();
}

std::uint64_t CollectionImpl::next_row() const {
  const std::lock_guard<std::mutex> lock(state_);
  return next_row_;
}

std::optional<std::uint32_t> CollectionImpl::block_to_empty(bool all, std::uint32_t from,
                                                            std::uint64_t before) const {
  const std::lock_guard<std::mutex> lock(state_);
  auto at = std::lower_bound(blocks_.begin(), blocks_.end(), from,
                             [](const auto& block, std::uint32_t n) { return block->number < n; });
  for (; at != blocks_.end() && (*at)->first_row() < before; ++at) {
    const Block& block = **at;
    const std::uint32_t dead = block.rows - block.live_rows;
    if (!block.full() || block.live_rows == 0 || dead == 0) continue;
    if (all || dead > kBlockRows / 2) return block.number;
  }
  return std::nullopt;
}

absl::Status CollectionImpl::empty_block(Database& database, std::uint32_t number) {
  const std::lock_guard<std::mutex> writer(writer_);
  TQ_RETURN_IF_ERROR(check_alive());
  const Block* block = find_block(blocks_, number);
  if (block == nullptr) return absl::OkStatus();
  std::vector<std::uint64_t> rows;
  std::vector<std::string> keys;
  for (std::uint32_t i = 0; i < block->rows && rows.size() < kMoveMost; ++i) {
    if (!block->live->test(i)) continue;
    rows.push_back(block->first_row() + i);
    keys.push_back(row_key(cid(), rows.back()));
  }
  const auto metadata = database.get_many(kPayload, keys);
  if (!metadata.ok()) return metadata.status();
  const auto indexed = database.get_many(kPindex, keys);
  if (!indexed.ok()) return indexed.status();
  absl::StatusOr<std::vector<std::optional<std::string>>> originals(
      std::vector<std::optional<std::string>>(rows.size()));
  if (record_.options.originals != Originals::kNone) {
    originals = database.get_many(kOrig, keys);
    if (!originals.ok()) return originals.status();
  }
  Stage stage(*this, database);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    IndexedValues values;
    if ((*indexed)[i] && !decode_indexed(*(*indexed)[i], fields(), values)) {
      return damaged("the indexed values of a record are damaged");
    }
    const auto at = static_cast<std::uint32_t>(rows[i] % kBlockRows);
    TQ_RETURN_IF_ERROR(stage_kill(stage, rows[i]));
    stage_row(stage, block->memory->id(at), block->memory->code(at), std::move(values),
              (*metadata)[i].value_or(std::string()), (*originals)[i]);
  }
  return rows.empty() ? absl::OkStatus() : commit(stage, database, false);
}

absl::Status CollectionImpl::forget_operations(Database& database) {
  const std::lock_guard<std::mutex> writer(writer_);
  TQ_RETURN_IF_ERROR(check_alive());
  const auto now = static_cast<std::uint64_t>(absl::ToUnixSeconds(absl::Now()));
  Batch batch(database);
  std::size_t seen = 0;
  std::string next;
  const auto visit = [&](std::string_view key, std::string_view value) -> absl::StatusOr<bool> {
    if (seen++ == kForgetMost) {
      next = std::string(key);
      return false;
    }
    OperationRecord operation;
    if (!decode_operation(value, operation)) return damaged("an operation record is damaged");
    if (operation.expiry <= now) batch.remove(kOps, std::string(key));
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kOps, collection_key(cid()), visit, forget_from_));
  forget_from_ = next;
  if (batch.empty()) return absl::OkStatus();
  if (absl::Status status = database.write(batch); !status.ok()) return core_->stop_writes(status);
  return absl::OkStatus();
}

absl::Status CollectionImpl::maintain(bool idle) {
  return guard([&]() -> absl::Status {
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    TQ_RETURN_IF_ERROR(core_->writable());
    TQ_RETURN_IF_ERROR(fold_tombstones(use.database(), idle));
    // One block a round, so that other collections get their turn.
    if (const auto number = block_to_empty(false, 0, next_row())) {
      for (std::size_t n = 0; n < kBlockRows; n += kMoveMost) {
        TQ_RETURN_IF_ERROR(empty_block(use.database(), *number));
      }
    }
    return idle ? forget_operations(use.database()) : absl::OkStatus();
  });
}

absl::Status CollectionImpl::compact() {
  return guard([&]() -> absl::Status {
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    TQ_RETURN_IF_ERROR(core_->writable());
    TQ_RETURN_IF_ERROR(check_alive());
    const std::uint64_t before = next_row();
    // Onwards only: what dies meanwhile in the blocks behind is left to the next time.
    std::uint32_t from = 0;
    while (const auto number = block_to_empty(true, from, before)) {
      TQ_RETURN_IF_ERROR(empty_block(use.database(), *number));
      from = *number;
    }
    bool waits = false;
    do {
      TQ_RETURN_IF_ERROR(fold_tombstones(use.database(), true));
      const std::uint64_t oldest = oldest_view();
      const std::lock_guard<std::mutex> writer(writer_);
      waits = !retiring_rows_.empty() && oldest < retire_version_;
      if (!waits && retiring_rows_.empty() && dead_rows_.empty()) break;
    } while (!waits);
    if (absl::Status status = use.database().sync(); !status.ok()) {
      return core_->stop_writes(status);
    }
    return absl::OkStatus();
  });
}

}  // namespace turboquant::storage
