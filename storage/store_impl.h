// The store: its folder, its collections, its background thread.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "storage/collection.h"
#include "storage/core.h"
#include "storage/files.h"
#include "storage/sorted_files.h"
#include "turboquant/store.h"

namespace turboquant::storage {

class StoreImpl final : public Store {
 public:
  StoreImpl(const std::string& path, const StoreOptions& options)
      : core_(std::make_shared<Core>(path, options)) {}
  ~StoreImpl() override;

  absl::Status start();

  absl::Status close() override;
  absl::StatusOr<std::shared_ptr<Collection>> create_collection(
      const std::string& name, const CollectionOptions& options) override;
  absl::StatusOr<std::shared_ptr<Collection>> collection(const std::string& name) const override;
  absl::Status drop_collection(const std::string& name) override;
  std::vector<CollectionInfo> collections() const override;
  absl::Status set_alias(const std::string& alias, const std::string& collection) override;
  absl::Status drop_alias(const std::string& alias) override;
  std::vector<Alias> aliases() const override;
  absl::StatusOr<SnapshotInfo> create_snapshot(SnapshotKind kind) override;
  absl::StatusOr<std::vector<SnapshotInfo>> snapshots() const override;
  absl::Status verify_snapshot(const std::string& name) const override;
  absl::Status delete_snapshot(const std::string& name) override;
  absl::Status restore_snapshot(const std::string& name) override;
  absl::Status verify() const override;
  absl::Status writable() const override { return core_->writable(); }
  absl::Status try_recover() override;
  StoreStats stats() const override;

  /// For faiss_store.cpp.
  absl::StatusOr<std::shared_ptr<CollectionImpl>> find(const std::string& name) const;

  /// As create_collection, without a check of the name; one of that name is dropped first.
  absl::StatusOr<std::shared_ptr<CollectionImpl>> create_hidden(const std::string& name,
                                                                const CollectionOptions& options);

  /// Gives `from` the name `to`, in place of what had it if `replace`.
  absl::Status rename_over(const std::string& from, const std::string& to, bool replace);

  // For loader.cpp.
  absl::StatusOr<std::unique_ptr<SortedFiles>> make_sorted_files() const;
  absl::Status ingest(SortedFiles& files) const;

 private:
  using Collections = std::map<std::string, std::shared_ptr<CollectionImpl>>;
  struct Contents {
    Collections collections;
    std::map<std::string, std::string> aliases;
  };

  Database::Config config(std::uint64_t number) const;
  std::string backup_path() const;
  /// Reads meta and loads all collections; those in `known` keep their objects. May be called by
  /// the owner of the gate only.
  absl::StatusOr<Contents> load(Database& database, const Collections& known) const;
  absl::Status initialize(Database& database) const;
  /// Writes, syncs, and stops writes when either fails.
  absl::Status commit(Database& database, Batch& batch) const;
  absl::StatusOr<std::shared_ptr<CollectionImpl>> create(const std::string& name,
                                                         const CollectionOptions& options);
  void stage_drop(Batch& batch, const CollectionImpl& collection) const;
  absl::StatusOr<std::uint64_t> copy_snapshot(const std::string& name);
  absl::StatusOr<SnapshotInfo> create_checkpoint(Database& database) const;
  absl::StatusOr<SnapshotInfo> create_backup(Database& database) const;
  void work();

  const std::shared_ptr<Core> core_;
  std::unique_ptr<FolderLock> folder_lock_;
  std::uint64_t database_number_ = 0;

  mutable std::mutex admin_;  // one change of the set of collections at a time; before the gate
  bool closed_ = false;       // under admin_
  mutable std::mutex map_;    // the set itself
  Contents contents_;

  std::mutex close_mutex_;
  std::thread worker_;
  mutable std::mutex worker_mutex_;
  std::condition_variable worker_wakes_;
  bool stopping_ = false;
  absl::Status background_;
};

/// INVALID_ARGUMENT unless the text may name a collection.
absl::Status check_name(const std::string& name);

}  // namespace turboquant::storage
