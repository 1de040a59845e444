#include "storage/database.h"

#include <absl/strings/str_cat.h>
#include <rocksdb/cache.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_buffer_manager.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>

#include "storage/coding.h"
#include "storage/log_check.h"
#include "storage/table_check.h"

namespace turboquant::storage {
namespace {

constexpr const char* kFamilyNames[kFamilyCount] = {"meta", "codes",   "delta",  "orig",
                                                    "ids",  "payload", "pindex", "ops"};
constexpr std::size_t kProtectionBytes = 8;
constexpr std::uint64_t kMinCache = std::uint64_t{32} << 20;

// RocksDB's own log of messages goes nowhere. Written to a file it would be one more thing that can
// fail: on a full disk its second failure aborts a RocksDB built with assertions, as Debian's is.
class NoLog final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char* /*format*/, va_list /*arguments*/) override {}
};

rocksdb::DBOptions db_options(std::uint64_t cache_bytes, std::shared_ptr<rocksdb::Cache> cache) {
  rocksdb::DBOptions options;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.paranoid_checks = true;
  // Ends at the first damaged record of the log; SYNCED tells a torn end from a loss.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  options.track_and_verify_wals_in_manifest = true;
  options.file_checksum_gen_factory = rocksdb::GetFileChecksumGenCrc32cFactory();
  options.max_bgerror_resume_count = 0;  // the store closes and opens again instead
  options.max_background_jobs = 2;
  options.info_log = std::make_shared<NoLog>();
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.max_total_wal_size = std::uint64_t{256} << 20;
  options.write_buffer_manager =
      std::make_shared<rocksdb::WriteBufferManager>(cache_bytes / 2, std::move(cache));
  return options;
}

rocksdb::ColumnFamilyOptions family_options(Family family,
                                            const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.cache_index_and_filter_blocks = true;
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  if (family == kIds || family == kOps || family == kPayload || family == kOrig) {
    table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  }
  rocksdb::ColumnFamilyOptions options;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.max_write_buffer_number = 2;
  options.write_buffer_size =
      family == kOrig || family == kCodes ? std::size_t{64} << 20 : std::size_t{16} << 20;
  options.compression = family == kPayload || family == kPindex || family == kIds
                            ? rocksdb::kLZ4Compression
                            : rocksdb::kNoCompression;
  options.paranoid_file_checks = true;
  if (family == kOrig) {
    options.enable_blob_files = true;
    options.min_blob_size = 256;
    options.enable_blob_garbage_collection = true;
  }
  return options;
}

absl::Status log_loss(const std::string& path, std::uint64_t have, std::uint64_t want) {
  return make_error(
      absl::StatusCode::kDataLoss, "DAMAGED",
      absl::StrCat(path, ": acknowledged writes are missing (the log ends at number ", have,
                   ", but was synced up to ", want,
                   "). Nothing was changed. Restore a snapshot, or remove the file SYNCED to go on "
                   "without them"));
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

}  // namespace

Batch::Batch(Database& database) : database_(database), batch_(0, 0, kProtectionBytes, 0) {}

void Batch::note(const rocksdb::Status& status) {
  if (!status.ok() && status_.ok()) status_ = from_rocksdb(status, "preparing a write");
}

void Batch::put(Family family, const std::string& key, std::string value) {
  seal(key, value);
  note(batch_.Put(database_.family(family), key, value));
}

void Batch::remove(Family family, const std::string& key) {
  note(batch_.Delete(database_.family(family), key));
}

void Batch::remove_range(Family family, const std::string& begin, const std::string& end) {
  note(batch_.DeleteRange(database_.family(family), begin, end));
}

absl::StatusOr<std::unique_ptr<Database>> Database::open(const Config& config) {
  std::unique_ptr<Database> database(new Database(config));
  TQ_RETURN_IF_ERROR(database->open_files());
  return database;
}

absl::Status Database::open_files() {
  const std::string where = path();
  const std::uint64_t promised = read_synced(config_.folder, config_.number);
  const bool is_new = !exists(where + "/CURRENT");
  if (is_new && promised > 0) return log_loss(where, 0, promised);
  if (!is_new) {
    TQ_RETURN_IF_ERROR(check_manifest(where));
    TQ_RETURN_IF_ERROR(check_tables(where));
  }

  const std::uint64_t cache_bytes = std::max(config_.cache_bytes, kMinCache);
  const std::shared_ptr<rocksdb::Cache> cache = rocksdb::NewLRUCache(cache_bytes);
  const rocksdb::DBOptions options = db_options(cache_bytes, cache);
  std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, rocksdb::ColumnFamilyOptions()}};
  for (std::size_t i = 0; i < kFamilyCount; ++i) {
    families.emplace_back(kFamilyNames[i], family_options(static_cast<Family>(i), cache));
  }

  const auto open = [&](bool read_only) {
    rocksdb::DB* db = nullptr;
    handles_.clear();
    const rocksdb::Status status =
        read_only ? rocksdb::DB::OpenForReadOnly(options, where, families, &handles_, &db)
                  : rocksdb::DB::Open(options, where, families, &handles_, &db);
    db_.reset(db);
    return from_rocksdb(status, absl::StrCat("opening ", where));
  };
  const auto shut = [&] {
    for (rocksdb::ColumnFamilyHandle* handle : handles_) {
      (void)db_->DestroyColumnFamilyHandle(handle);
    }
    handles_.clear();
    db_.reset();
  };
  if (!is_new) {
    // A database whose creation was cut short has no families yet and nothing to compare.
    const absl::Status status = open(true);
    if (!status.ok() && (promised > 0 || config_.read_only)) return status;
    if (status.ok()) {
      const std::uint64_t have = db_->GetLatestSequenceNumber();
      if (have < promised) {
        shut();
        return log_loss(where, have, promised);
      }
    }
    if (status.ok() && !config_.read_only) shut();
  }
  if (!config_.read_only) TQ_RETURN_IF_ERROR(open(false));
  if (db_ == nullptr) return damaged(absl::StrCat(where, " is missing"));
  // The default family is not used.
  (void)db_->DestroyColumnFamilyHandle(handles_.front());
  handles_.erase(handles_.begin());
  if (config_.read_only) return absl::OkStatus();
  auto synced = SyncedFile::open(config_.folder, config_.number);
  if (!synced.ok()) return synced.status();
  synced_ = std::move(*synced);
  return absl::OkStatus();
}

Database::~Database() {
  for (rocksdb::ColumnFamilyHandle* handle : handles_) {
    (void)db_->DestroyColumnFamilyHandle(handle);
  }
  if (db_) (void)db_->Close();
}

absl::Status Database::write(Batch& batch) {
  TQ_RETURN_IF_ERROR(batch.status());
  if (failed_.load()) {
    return make_error(absl::StatusCode::kUnavailable, "WRITES_STOPPED",
                      "an earlier write to the log failed");
  }
  rocksdb::WriteOptions options;
  options.protection_bytes_per_key = kProtectionBytes;
  const rocksdb::Status status = db_->Write(options, &batch.get());
  if (!status.ok()) {
    failed_.store(true);
    return from_rocksdb(status, "writing to the log");
  }
  const std::lock_guard<std::mutex> lock(sync_mutex_);
  ++written_;
  return absl::OkStatus();
}

absl::Status Database::sync() {
  std::unique_lock<std::mutex> lock(sync_mutex_);
  const std::uint64_t mine = written_;
  while (synced_writes_ < mine && sync_error_.ok()) {
    if (syncing_) {
      sync_done_.wait(lock);
      continue;
    }
    syncing_ = true;
    const std::uint64_t covered = written_;
    lock.unlock();
    const std::uint64_t sequence = db_->GetLatestSequenceNumber();
    const auto start = std::chrono::steady_clock::now();
    absl::Status status = from_rocksdb(db_->SyncWAL(), "syncing the log");
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (status.ok()) status = synced_->write(sequence);
    lock.lock();
    syncing_ = false;
    if (status.ok()) {
      synced_writes_ = std::max(synced_writes_, covered);
      ++sync_stats_.count;
      sync_stats_.seconds += took.count();
    } else {
      // What the kernel failed to write it may have dropped: nothing unsynced can be trusted, and
      // no later sync would tell.
      sync_error_ = status;
    }
    sync_done_.notify_all();
  }
  return synced_writes_ >= mine ? absl::OkStatus() : sync_error_;
}

absl::Status bad_crc(Family family) {
  return damaged(absl::StrCat("a value in family ", kFamilyNames[family], " has a wrong checksum"));
}

absl::StatusOr<std::optional<std::string>> Database::get(Family family,
                                                         const std::string& key) const {
  std::string value;
  const rocksdb::Status status =
      db_->Get(rocksdb::ReadOptions(), this->family(family), key, &value);
  if (status.IsNotFound()) return std::optional<std::string>();
  if (!status.ok()) {
    return from_rocksdb(status, absl::StrCat("reading family ", kFamilyNames[family]));
  }
  std::string_view body = value;
  if (!unseal(key, body)) return bad_crc(family);
  value.resize(body.size());
  return std::optional<std::string>(std::move(value));
}

absl::StatusOr<std::vector<std::optional<std::string>>> Database::get_many(
    Family family, const std::vector<std::string>& keys) const {
  std::vector<std::optional<std::string>> found(keys.size());
  std::vector<rocksdb::Slice> slices(keys.begin(), keys.end());
  constexpr std::size_t kPiece = 1024;
  for (std::size_t first = 0; first < keys.size(); first += kPiece) {
    const std::size_t n = std::min(kPiece, keys.size() - first);
    std::vector<rocksdb::PinnableSlice> values(n);
    std::vector<rocksdb::Status> statuses(n);
    db_->MultiGet(rocksdb::ReadOptions(), this->family(family), n, slices.data() + first,
                  values.data(), statuses.data());
    for (std::size_t i = 0; i < n; ++i) {
      if (statuses[i].IsNotFound()) continue;
      if (!statuses[i].ok()) {
        return from_rocksdb(statuses[i], absl::StrCat("reading family ", kFamilyNames[family]));
      }
      std::string_view body(values[i].data(), values[i].size());
      if (!unseal(keys[first + i], body)) return bad_crc(family);
      found[first + i] = std::string(body);
    }
  }
  return found;
}

absl::Status Database::each(Family family, const std::string& prefix, const Visit& visit,
                            const std::string& from) const {
  rocksdb::ReadOptions options;
  options.readahead_size = std::size_t{2} << 20;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(options, this->family(family)));
  for (at->Seek(std::max(prefix, from)); at->Valid(); at->Next()) {
    const std::string_view key(at->key().data(), at->key().size());
    if (key.substr(0, prefix.size()) != prefix) break;
    std::string_view value(at->value().data(), at->value().size());
    if (!unseal(key, value)) return bad_crc(family);
    const absl::StatusOr<bool> go_on = visit(key, value);
    if (!go_on.ok()) return go_on.status();
    if (!*go_on) return absl::OkStatus();
  }
  return from_rocksdb(at->status(), absl::StrCat("reading family ", kFamilyNames[family]));
}

absl::Status Database::verify_files() const {
  rocksdb::ReadOptions options;
  options.readahead_size = std::size_t{2} << 20;
  TQ_RETURN_IF_ERROR(from_rocksdb(db_->VerifyFileChecksums(options), "comparing file checksums"));
  return from_rocksdb(db_->VerifyChecksum(options), "comparing block checksums");
}

absl::Status Database::sync_all() {
  if (read_only()) return absl::OkStatus();
  return sync();
}

Database::SyncStats Database::sync_stats() const {
  const std::lock_guard<std::mutex> lock(sync_mutex_);
  return sync_stats_;
}

std::uint64_t Database::disk_bytes() const {
  std::uint64_t total = 0;
  for (rocksdb::ColumnFamilyHandle* handle : handles_) {
    for (const char* property : {"rocksdb.live-sst-files-size", "rocksdb.total-blob-file-size"}) {
      std::uint64_t bytes = 0;
      if (db_->GetIntProperty(handle, property, &bytes)) total += bytes;
    }
  }
  return total;
}

}  // namespace turboquant::storage
