// Snapshots of a store: checkpoints (hard links beside it) and incremental backups.
#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <fcntl.h>
#include <rocksdb/env.h>
#include <rocksdb/utilities/backup_engine.h>
#include <rocksdb/utilities/checkpoint.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "storage/errors.h"
#include "storage/store_impl.h"

namespace turboquant {
namespace storage {
namespace {

namespace fs = std::filesystem;

constexpr char kCheckpointPrefix[] = "checkpoint-";
constexpr char kBackupPrefix[] = "backup-";

std::string numbered(const char* prefix, unsigned number) {
  char name[40];
  std::snprintf(name, sizeof name, "%s%08u", prefix, number);
  return name;
}

// The number in a name that numbered() made; nothing else gets near a path.
std::optional<unsigned> number_of(const char* prefix, const std::string& name) {
  const std::size_t size = std::char_traits<char>::length(prefix);
  unsigned number = 0;
  if (name.size() <= size || std::sscanf(name.c_str() + size, "%8u", &number) != 1) {
    return std::nullopt;
  }
  return numbered(prefix, number) == name ? std::optional<unsigned>(number) : std::nullopt;
}

absl::Status no_snapshot(const std::string& name) {
  return make_error(absl::StatusCode::kNotFound, "SNAPSHOT_NOT_FOUND",
                    absl::StrCat("there is no snapshot \"", name, "\""));
}

std::uint64_t folder_bytes(const fs::path& folder) {
  std::error_code error;
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder, error)) {
    if (entry.is_regular_file(error)) bytes += entry.file_size(error);
  }
  return bytes;
}

absl::Status fs_error(const std::error_code& error, std::string_view doing) {
  return error ? from_errno(error.value(), doing) : absl::OkStatus();
}

// Makes a folder's files and itself durable.
absl::Status sync_tree(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (!entry.is_regular_file(error)) continue;
    const int file = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    const bool done = file >= 0 && ::fsync(file) == 0;
    const int failure = errno;
    if (file >= 0) ::close(file);
    if (!done) return from_errno(failure, absl::StrCat("syncing ", entry.path().string()));
  }
  return sync_folder(folder.string());
}

rocksdb::BackupEngineOptions backup_options(const std::string& path) {
  rocksdb::BackupEngineOptions options(path);
  options.sync = true;
  return options;
}

absl::StatusOr<std::unique_ptr<rocksdb::BackupEngineReadOnly>> open_backups(
    const std::string& path) {
  rocksdb::BackupEngineReadOnly* engine = nullptr;
  const rocksdb::IOStatus status =
      rocksdb::BackupEngineReadOnly::Open(backup_options(path), rocksdb::Env::Default(), &engine);
  if (!status.ok()) return from_rocksdb(status, absl::StrCat("opening backups in ", path));
  return std::unique_ptr<rocksdb::BackupEngineReadOnly>(engine);
}

absl::StatusOr<std::unique_ptr<rocksdb::BackupEngine>> open_backups_to_change(
    const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  TQ_RETURN_IF_ERROR(fs_error(error, absl::StrCat("making folder ", path)));
  rocksdb::BackupEngine* engine = nullptr;
  const rocksdb::IOStatus status =
      rocksdb::BackupEngine::Open(backup_options(path), rocksdb::Env::Default(), &engine);
  if (!status.ok()) return from_rocksdb(status, absl::StrCat("opening backups in ", path));
  return std::unique_ptr<rocksdb::BackupEngine>(engine);
}

SnapshotInfo backup_info(const rocksdb::BackupInfo& backup) {
  SnapshotInfo info;
  info.name = numbered(kBackupPrefix, backup.backup_id);
  info.kind = SnapshotKind::kBackup;
  info.created = absl::FromUnixSeconds(backup.timestamp);
  info.bytes = backup.size;
  return info;
}

absl::StatusOr<SnapshotInfo> checkpoint_info(const fs::path& folder) {
  SnapshotInfo info;
  info.name = folder.filename().string();
  info.kind = SnapshotKind::kCheckpoint;
  info.bytes = folder_bytes(folder);
  std::error_code error;
  const auto written = fs::last_write_time(folder / "ACTIVE", error);
  TQ_RETURN_IF_ERROR(fs_error(error, absl::StrCat("reading ", folder.string())));
  // file_clock has no portable way to the system clock in C++17.
  const auto age = fs::file_time_type::clock::now() - written;
  info.created = absl::Now() - absl::FromChrono(age);
  return info;
}

}  // namespace

absl::StatusOr<SnapshotInfo> StoreImpl::create_checkpoint(Database& database) const {
  const fs::path parent = fs::path(core_->folder) / "snapshots";
  const fs::path fresh = parent / ".new";
  std::error_code error;
  fs::remove_all(fresh, error);
  fs::create_directories(fresh, error);
  TQ_RETURN_IF_ERROR(fs_error(error, absl::StrCat("making folder ", fresh.string())));
  TQ_RETURN_IF_ERROR(sync_folder(core_->folder));
  unsigned number = 1;
  for (const auto& entry : fs::directory_iterator(parent, error)) {
    const auto used = number_of(kCheckpointPrefix, entry.path().filename().string());
    if (used) number = std::max(number, *used + 1);
  }
  rocksdb::Checkpoint* raw = nullptr;
  TQ_RETURN_IF_ERROR(
      from_rocksdb(rocksdb::Checkpoint::Create(&database.db(), &raw), "preparing a checkpoint"));
  const std::unique_ptr<rocksdb::Checkpoint> checkpoint(raw);
  // Size 0: memtables are flushed first, so the copy does not depend on the log.
  TQ_RETURN_IF_ERROR(from_rocksdb(
      checkpoint->CreateCheckpoint((fresh / database_name(1)).string(), 0), "making a checkpoint"));
  TQ_RETURN_IF_ERROR(sync_tree(fresh / database_name(1)));
  TQ_RETURN_IF_ERROR(write_active(fresh.string(), 1));
  const fs::path folder = parent / numbered(kCheckpointPrefix, number);
  fs::rename(fresh, folder, error);
  TQ_RETURN_IF_ERROR(fs_error(error, absl::StrCat("naming ", folder.string())));
  TQ_RETURN_IF_ERROR(sync_folder(parent.string()));
  return checkpoint_info(folder);
}

absl::StatusOr<SnapshotInfo> StoreImpl::create_backup(Database& database) const {
  auto engine = open_backups_to_change(backup_path());
  if (!engine.ok()) return engine.status();
  rocksdb::CreateBackupOptions options;
  options.flush_before_backup = true;
  rocksdb::BackupID id = 0;
  TQ_RETURN_IF_ERROR(
      from_rocksdb((*engine)->CreateNewBackup(options, &database.db(), &id), "making a backup"));
  rocksdb::BackupInfo info;
  TQ_RETURN_IF_ERROR(from_rocksdb((*engine)->GetBackupInfo(id, &info), "reading the backup"));
  return backup_info(info);
}

absl::StatusOr<SnapshotInfo> StoreImpl::create_snapshot(SnapshotKind kind) {
  return guard([&]() -> absl::StatusOr<SnapshotInfo> {
    const std::lock_guard<std::mutex> admin(admin_);
    absl::StatusOr<SnapshotInfo> info;
    {
      const Use use(*core_);
      TQ_RETURN_IF_ERROR(use.status());
      TQ_RETURN_IF_ERROR(core_->writable());
      info = kind == SnapshotKind::kCheckpoint ? create_checkpoint(use.database())
                                               : create_backup(use.database());
    }
    if (!info.ok()) return info.status();
    TQ_RETURN_IF_ERROR(verify_snapshot(info->name));
    return info;
  });
}

absl::StatusOr<std::vector<SnapshotInfo>> StoreImpl::snapshots() const {
  return guard([&]() -> absl::StatusOr<std::vector<SnapshotInfo>> {
    std::vector<SnapshotInfo> all;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(core_->folder + "/snapshots", error)) {
      if (!number_of(kCheckpointPrefix, entry.path().filename().string())) continue;
      auto info = checkpoint_info(entry.path());
      if (!info.ok()) return info.status();
      all.push_back(*std::move(info));
    }
    if (fs::exists(backup_path(), error)) {
      auto engine = open_backups(backup_path());
      if (!engine.ok()) return engine.status();
      std::vector<rocksdb::BackupInfo> backups;
      (*engine)->GetBackupInfo(&backups);
      for (const rocksdb::BackupInfo& backup : backups) all.push_back(backup_info(backup));
    }
    std::sort(all.begin(), all.end(),
              [](const SnapshotInfo& a, const SnapshotInfo& b) { return a.name < b.name; });
    return all;
  });
}

absl::Status StoreImpl::verify_snapshot(const std::string& name) const {
  return guard([&]() -> absl::Status {
    std::error_code error;
    if (number_of(kCheckpointPrefix, name)) {
      Database::Config config;
      config.folder = core_->folder + "/snapshots/" + name;
      config.read_only = true;
      if (!fs::exists(config.folder, error)) return no_snapshot(name);
      const auto active = read_active(config.folder);
      if (!active.ok()) return active.status();
      auto database = Database::open(config);
      return database.ok() ? (*database)->verify_files() : database.status();
    }
    const auto number = number_of(kBackupPrefix, name);
    if (!number || !fs::exists(backup_path(), error)) return no_snapshot(name);
    auto engine = open_backups(backup_path());
    if (!engine.ok()) return engine.status();
    const rocksdb::IOStatus status = (*engine)->VerifyBackup(*number, true);
    if (status.IsNotFound()) return no_snapshot(name);
    return from_rocksdb(status, absl::StrCat("verifying ", name));
  });
}

absl::Status StoreImpl::delete_snapshot(const std::string& name) {
  return guard([&]() -> absl::Status {
    const std::lock_guard<std::mutex> admin(admin_);
    std::error_code error;
    if (number_of(kCheckpointPrefix, name)) {
      const fs::path folder = fs::path(core_->folder) / "snapshots" / name;
      if (!fs::exists(folder, error)) return no_snapshot(name);
      fs::remove_all(folder, error);
      return fs_error(error, absl::StrCat("removing ", folder.string()));
    }
    const auto number = number_of(kBackupPrefix, name);
    if (!number || !fs::exists(backup_path(), error)) return no_snapshot(name);
    auto engine = open_backups_to_change(backup_path());
    if (!engine.ok()) return engine.status();
    const rocksdb::IOStatus status = (*engine)->DeleteBackup(*number);
    if (status.IsNotFound()) return no_snapshot(name);
    return from_rocksdb(status, absl::StrCat("deleting ", name));
  });
}

namespace {

// Fills `target`, a new folder, with the database of a checkpoint: immutable files by hard links.
absl::Status copy_checkpoint(const fs::path& source, const fs::path& target) {
  std::error_code error;
  fs::create_directory(target, error);
  TQ_RETURN_IF_ERROR(fs_error(error, absl::StrCat("making folder ", target.string())));
  for (const auto& entry : fs::directory_iterator(source, error)) {
    const fs::path to = target / entry.path().filename();
    const std::string kind = entry.path().extension().string();
    std::error_code linked;
    if (kind == ".sst" || kind == ".blob") fs::create_hard_link(entry.path(), to, linked);
    if ((kind != ".sst" && kind != ".blob") || linked) fs::copy_file(entry.path(), to, error);
    TQ_RETURN_IF_ERROR(fs_error(error, absl::StrCat("copying ", entry.path().string())));
  }
  return fs_error(error, absl::StrCat("reading ", source.string()));
}

}  // namespace

absl::StatusOr<std::uint64_t> StoreImpl::copy_snapshot(const std::string& name) {
  const std::uint64_t number = database_number_ + 1;
  const fs::path target = fs::path(core_->folder) / database_name(number);
  std::error_code error;
  fs::remove_all(target, error);
  if (number_of(kCheckpointPrefix, name)) {
    TQ_RETURN_IF_ERROR(
        copy_checkpoint(fs::path(core_->folder) / "snapshots" / name / database_name(1), target));
  } else {
    auto engine = open_backups(backup_path());
    if (!engine.ok()) return engine.status();
    TQ_RETURN_IF_ERROR(
        from_rocksdb((*engine)->RestoreDBFromBackup(number_of(kBackupPrefix, name).value(),
                                                    target.string(), target.string()),
                     absl::StrCat("restoring ", name)));
  }
  TQ_RETURN_IF_ERROR(sync_tree(target));
  TQ_RETURN_IF_ERROR(sync_folder(core_->folder));
  return number;
}

absl::Status StoreImpl::restore_snapshot(const std::string& name) {
  return guard([&]() -> absl::Status {
    TQ_RETURN_IF_ERROR(verify_snapshot(name));
    const std::lock_guard<std::mutex> admin(admin_);
    const Own own(*core_);
    if (closed_) return closed_error();
    const auto number = copy_snapshot(name);
    if (!number.ok()) return number.status();
    auto database = Database::open(config(*number));
    if (!database.ok()) return database.status();
    TQ_RETURN_IF_ERROR(initialize(**database));
    auto contents = load(**database, {});
    if (!contents.ok()) return contents.status();
    if (absl::Status status = write_active(core_->folder, *number); !status.ok()) {
      // It may have been written all the same. Nothing may be acknowledged into a database that the
      // next start would not open.
      const bool undone = write_active(core_->folder, database_number_).ok();
      return undone ? status : core_->stop_writes(status);
    }
    const std::string old_path = core_->folder + "/" + database_name(database_number_);
    core_->database = *std::move(database);
    database_number_ = *number;
    {
      const std::lock_guard<std::mutex> lock(map_);
      for (auto& [old_name, collection] : contents_.collections) {
        collection->retire(make_error(absl::StatusCode::kNotFound, "COLLECTION_NOT_FOUND",
                                      absl::StrCat("collection \"", old_name,
                                                   "\" was replaced by a snapshot: look it up "
                                                   "again")));
      }
      contents_ = *std::move(contents);
    }
    std::error_code error;
    fs::remove_all(old_path, error);
    core_->resume_writes();
    return absl::OkStatus();
  });
}

}  // namespace storage

absl::Status restore_backup(const std::string& backup_path, const std::string& name,
                            const std::string& target) {
  using namespace storage;
  return guard([&]() -> absl::Status {
    std::error_code error;
    if (fs::exists(target, error) && !fs::is_empty(target, error)) {
      return make_error(absl::StatusCode::kFailedPrecondition, "TARGET_NOT_EMPTY",
                        absl::StrCat(target, " is not an empty folder"));
    }
    const auto number = number_of(kBackupPrefix, name);
    if (!number || !fs::exists(backup_path, error)) return no_snapshot(name);
    auto engine = open_backups(backup_path);
    if (!engine.ok()) return engine.status();
    const rocksdb::IOStatus verified = (*engine)->VerifyBackup(*number, true);
    if (verified.IsNotFound()) return no_snapshot(name);
    TQ_RETURN_IF_ERROR(from_rocksdb(verified, absl::StrCat("verifying ", name)));
    fs::create_directories(target, error);
    TQ_RETURN_IF_ERROR(fs_error(error, absl::StrCat("making folder ", target)));
    const std::string folder = target + "/" + database_name(1);
    TQ_RETURN_IF_ERROR(from_rocksdb((*engine)->RestoreDBFromBackup(*number, folder, folder),
                                    absl::StrCat("restoring ", name)));
    TQ_RETURN_IF_ERROR(sync_tree(folder));
    return write_active(target, 1);
  });
}

}  // namespace turboquant
