// What a store and its collections share: the database, who may use it, why writes are refused.
#pragma once

#include <absl/status/status.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "storage/database.h"
#include "turboquant/store.h"

namespace turboquant::storage {

/// Many users or one owner; a waiting owner keeps new users out. A user must not enter twice.
class Gate {
 public:
  void enter();
  void leave();
  void own();
  void disown();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t users_ = 0;
  std::size_t waiting_owners_ = 0;
  bool owned_ = false;
};

class Core {
 public:
  Core(std::string path, StoreOptions store_options)
      : folder(std::move(path)), options(std::move(store_options)) {}

  const std::string folder;
  const StoreOptions options;

  Gate gate;
  std::unique_ptr<Database> database;  ///< null: see `absent`; replaced by the owner of the gate
  absl::Status absent;                 ///< why there is no database; OK: the store is closed

  std::atomic<std::uint64_t> memory{0};  ///< bytes of all collections
  std::atomic<std::uint64_t> recoveries{0};

  /// OK, or why writes are refused.
  absl::Status writable() const;
  /// After a failed write or sync: refuses writes until the store has recovered. Returns `status`.
  absl::Status stop_writes(const absl::Status& status);
  void resume_writes();

 private:
  mutable std::mutex error_mutex_;
  absl::Status error_;
};

/// A user's stay in the gate. Everything that touches the database holds one.
class Use {
 public:
  explicit Use(Core& core) : core_(core) { core_.gate.enter(); }
  ~Use() { core_.gate.leave(); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

  /// CLOSED when there is no database, or why it could not be opened again.
  absl::Status status() const;
  Database& database() const { return *core_.database; }

 private:
  Core& core_;
};

/// The owner's stay.
class Own {
 public:
  explicit Own(Core& core) : core_(core) { core_.gate.own(); }
  ~Own() { core_.gate.disown(); }
  Own(const Own&) = delete;
  Own& operator=(const Own&) = delete;

 private:
  Core& core_;
};

absl::Status closed_error();

}  // namespace turboquant::storage
