// The RocksDB database of a store: families, options, writes, group sync of the log.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "storage/errors.h"
#include "storage/files.h"

namespace turboquant::storage {

enum Family : std::size_t {
  kMeta,
  kCodes,
  kDelta,
  kOrig,
  kIds,
  kPayload,
  kPindex,
  kOps,
  kFamilyCount
};

/// One request's changes. Values are sealed with their CRC here.
class Batch {
 public:
  explicit Batch(class Database& database);
  void put(Family family, const std::string& key, std::string value);
  void remove(Family family, const std::string& key);
  void remove_range(Family family, const std::string& begin, const std::string& end);
  rocksdb::WriteBatch& get() { return batch_; }
  bool empty() const { return batch_.Count() == 0; }
  /// The first error of the calls above.
  const absl::Status& status() const { return status_; }

 private:
  void note(const rocksdb::Status& status);
  Database& database_;
  rocksdb::WriteBatch batch_;
  absl::Status status_;
};

class Database {
 public:
  struct Config {
    std::string folder;  ///< of the store
    std::uint64_t number = 1;
    std::uint64_t cache_bytes = 0;
    bool read_only = false;  ///< after a disk error, so that reads can go on
  };

  /// Refuses when acknowledged writes are missing (SYNCED).
  static absl::StatusOr<std::unique_ptr<Database>> open(const Config& config);
  ~Database();

  rocksdb::DB& db() const { return *db_; }
  rocksdb::ColumnFamilyHandle* family(Family family) const { return handles_[family]; }
  std::string path() const { return config_.folder + "/" + database_name(config_.number); }
  bool read_only() const { return config_.read_only; }

  /// Hands the batch to the operating system.
  absl::Status write(Batch& batch);

  /// Returns once everything written before the call is on disk. Callers share one fsync.
  absl::Status sync();

  /// The value without its CRC; nothing when there is none.
  absl::StatusOr<std::optional<std::string>> get(Family family, const std::string& key) const;
  /// One entry per key.
  absl::StatusOr<std::vector<std::optional<std::string>>> get_many(
      Family family, const std::vector<std::string>& keys) const;

  /// Calls visit(key, value) in order of keys for all keys that start with the prefix, from the
  /// first one not below `from` on, until it returns false or an error. Compares CRCs.
  using Visit = std::function<absl::StatusOr<bool>(std::string_view key, std::string_view value)>;
  absl::Status each(Family family, const std::string& prefix, const Visit& visit,
                    const std::string& from = {}) const;

  /// Compares the checksums of all files and of all their blocks.
  absl::Status verify_files() const;

  /// Syncs everything and says so in SYNCED. For closing.
  absl::Status sync_all();

  struct SyncStats {
    std::uint64_t count = 0;
    double seconds = 0;
  };
  SyncStats sync_stats() const;
  std::uint64_t disk_bytes() const;

 private:
  explicit Database(const Config& config) : config_(config) {}
  absl::Status open_files();

  Config config_;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
  std::unique_ptr<SyncedFile> synced_;

  // Group sync: one caller syncs for all whose writes came before it started.
  std::atomic<bool> failed_{false};  // a write failed: what comes after it would not be found

  mutable std::mutex sync_mutex_;
  std::condition_variable sync_done_;
  std::uint64_t written_ = 0;        // writes so far
  std::uint64_t synced_writes_ = 0;  // of them on disk
  bool syncing_ = false;
  absl::Status sync_error_;
  SyncStats sync_stats_;
};

absl::Status bad_crc(Family family);

}  // namespace turboquant::storage
