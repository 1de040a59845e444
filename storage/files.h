// The few files beside the database (docs/storage_format.md): LOCK, ACTIVE, SYNCED.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace turboquant::storage {

/// Holds the lock of a store's folder until destroyed. Fails with STORE_IN_USE.
class FolderLock {
 public:
  static absl::StatusOr<std::unique_ptr<FolderLock>> take(const std::string& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  explicit FolderLock(int file) : file_(file) {}
  int file_;
};

std::string database_name(std::uint64_t number);  ///< db-00000001

/// The number of the database folder that counts; nothing when there is no ACTIVE.
absl::StatusOr<std::optional<std::uint64_t>> read_active(const std::string& folder);

/// Replaces ACTIVE, durably.
absl::Status write_active(const std::string& folder, std::uint64_t number);

/// What SYNCED says of a database folder: the last sequence number known to be on disk; 0 when it
/// says nothing.
std::uint64_t read_synced(const std::string& folder, std::uint64_t database);

/// Writes SYNCED.
class SyncedFile {
 public:
  static absl::StatusOr<std::unique_ptr<SyncedFile>> open(const std::string& folder,
                                                          std::uint64_t database);
  ~SyncedFile();
  SyncedFile(const SyncedFile&) = delete;
  SyncedFile& operator=(const SyncedFile&) = delete;

  absl::Status write(std::uint64_t sequence);

 private:
  SyncedFile(int file, std::uint64_t database) : file_(file), database_(database) {}
  int file_;
  std::uint64_t database_;
};

absl::Status sync_folder(const std::string& folder);

/// Whether `bytes` more fit on the folder's disk, found out by writing them.
absl::Status probe_space(const std::string& folder, std::uint64_t bytes);

}  // namespace turboquant::storage
