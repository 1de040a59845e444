#include "turboquant/store.h"

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "index/checksum.h"
#include "storage/errors.h"
#include "storage/store_impl.h"

namespace turboquant {

absl::StatusOr<std::unique_ptr<Store>> Store::open(const std::string& path,
                                                   const StoreOptions& options) {
  return storage::guard([&]() -> absl::StatusOr<std::unique_ptr<Store>> {
    auto store = std::make_unique<storage::StoreImpl>(path, options);
    if (absl::Status status = store->start(); !status.ok()) return status;
    return std::unique_ptr<Store>(std::move(store));
  });
}

namespace storage {
namespace {

namespace fs = std::filesystem;

constexpr char kFormatKey[] = "format";
constexpr char kNextCollectionKey[] = "next_collection";
constexpr char kCollectionPrefix[] = "c/";
constexpr char kAliasPrefix[] = "a/";
constexpr auto kTick = std::chrono::milliseconds(200);
constexpr unsigned kIdleTicks = 25;
constexpr unsigned kMostRecoverTicks = 150;  // between two tries to recover

absl::Status not_found(const std::string& name) {
  return make_error(absl::StatusCode::kNotFound, "COLLECTION_NOT_FOUND",
                    absl::StrCat("there is no collection \"", name, "\""));
}

absl::Status check_options(const CollectionOptions& options) {
  if (options.fields.size() > kMaxFields) {
    return invalid("BAD_OPTION", absl::StrCat("more than ", kMaxFields, " fields"));
  }
  std::set<std::string> names;
  for (const FieldSchema& field : options.fields) {
    if (field.name.empty() || field.name.size() > kMaxFieldNameBytes) {
      return invalid("BAD_OPTION", absl::StrCat("a field name is empty or longer than ",
                                                kMaxFieldNameBytes, " bytes"));
    }
    if (!names.insert(field.name).second) {
      return invalid("BAD_OPTION", absl::StrCat("field \"", field.name, "\" is declared twice"));
    }
    if (field.type > FieldType::kStringList) return invalid("BAD_OPTION", "unknown field type");
  }
  if (options.metric > DistanceMetric::kL2 || options.originals > Originals::kFp32) {
    return invalid("BAD_OPTION", "unknown metric, or unknown kind of originals");
  }
  if (options.dimension < 1 || options.dimension > 65536) {
    return invalid("BAD_OPTION",
                   absl::StrCat("dimension must be 1 to 65536, not ", options.dimension));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<CollectionImpl>> make_collection(const std::shared_ptr<Core>& core,
                                                                const std::string& name,
                                                                CollectionRecord record) {
  auto quantizer = make_quantizer(record.options);
  if (!quantizer.ok()) return quantizer.status();
  return std::make_shared<CollectionImpl>(core, name, std::move(record), *std::move(quantizer));
}

// A record that was read: is it one that this program can serve?
absl::StatusOr<CollectionRecord> check_record(const std::string& name, std::string_view bytes) {
  CollectionRecord record;
  if (decode_collection(bytes, record)) return record;
  if (record.version <= kPackedVersion) {
    return damaged(absl::StrCat("the record of collection \"", name, "\" is damaged"));
  }
  return make_error(
      absl::StatusCode::kFailedPrecondition, "UNKNOWN_FORMAT",
      absl::StrCat("collection \"", name, "\" has format version ", record.version,
                   "; this program knows versions ", kFormatVersion, " and ", kPackedVersion,
                   ": open it with the program that wrote it, or a newer one"));
}

}  // namespace

absl::Status check_name(const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  if (name.empty() || name.size() > kMaxNameBytes || name.front() == '.' ||
      !std::all_of(name.begin(), name.end(), allowed)) {
    return invalid("BAD_NAME", absl::StrCat("a name has 1 to ", kMaxNameBytes,
                                            " of A-Z a-z 0-9 _ - . and does not start with a dot"));
  }
  return absl::OkStatus();
}

StoreImpl::~StoreImpl() { (void)close(); }

Database::Config StoreImpl::config(std::uint64_t number) const {
  Database::Config config;
  config.folder = core_->folder;
  config.number = number;
  config.cache_bytes = core_->options.cache_bytes;
  return config;
}

std::string StoreImpl::backup_path() const {
  const std::string& path = core_->options.backup_path;
  return path.empty() ? core_->folder + "/backups" : path;
}

absl::Status StoreImpl::commit(Database& database, Batch& batch) const {
  TQ_RETURN_IF_ERROR(core_->writable());
  absl::Status status = database.write(batch);
  if (status.ok()) status = database.sync();
  return status.ok() ? status : core_->stop_writes(status);
}

absl::Status StoreImpl::initialize(Database& database) const {
  const auto version = database.get(kMeta, kFormatKey);
  if (!version.ok()) return version.status();
  if (version->has_value()) {
    ByteReader reader(**version);
    const auto number = reader.take<std::uint32_t>();
    if (!reader.at_end()) return damaged("the format version is damaged");
    if (number == kFormatVersion) return absl::OkStatus();
    return make_error(
        absl::StatusCode::kFailedPrecondition, "UNKNOWN_FORMAT",
        absl::StrCat(core_->folder, " has format version ", number, "; this program knows version ",
                     kFormatVersion, ": open it with the program that wrote it, or a newer one"));
  }
  bool empty = true;
  const auto visit = [&](std::string_view, std::string_view) -> absl::StatusOr<bool> {
    empty = false;
    return false;
  };
  TQ_RETURN_IF_ERROR(database.each(kMeta, "", visit));
  if (!empty) return damaged("the format version is missing");
  Batch batch(database);
  std::string bytes;
  put(bytes, kFormatVersion);
  batch.put(kMeta, kFormatKey, bytes);
  bytes.clear();
  put(bytes, std::uint32_t{1});
  batch.put(kMeta, kNextCollectionKey, bytes);
  TQ_RETURN_IF_ERROR(database.write(batch));
  return database.sync();
}

absl::StatusOr<StoreImpl::Contents> StoreImpl::load(Database& database,
                                                    const Collections& known) const {
  Contents contents;
  const auto visit_collection = [&](std::string_view key,
                                    std::string_view value) -> absl::StatusOr<bool> {
    const std::string name(key.substr(2));
    auto record = check_record(name, value);
    if (!record.ok()) return record.status();
    const auto same = known.find(name);
    if (same != known.end() && same->second->record().cid == record->cid) {
      TQ_RETURN_IF_ERROR(same->second->load(database));
      contents.collections.emplace(name, same->second);
      return true;
    }
    const std::uint64_t fingerprint = record->fingerprint;
    auto made = make_collection(core_, name, *std::move(record));
    if (!made.ok()) return damaged(std::string(made.status().message()));
    if (code_fingerprint((*made)->quantizer()) != fingerprint) {
      return make_error(
          absl::StatusCode::kFailedPrecondition, "WRONG_FINGERPRINT",
          absl::StrCat("the codes of collection \"", name,
                       "\" were made with another rotation or other levels than this program's: "
                       "open it with the version that wrote it and export it"));
    }
    TQ_RETURN_IF_ERROR((*made)->load(database));
    contents.collections.emplace(name, *std::move(made));
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kMeta, kCollectionPrefix, visit_collection));
  const auto visit_alias = [&](std::string_view key,
                               std::string_view value) -> absl::StatusOr<bool> {
    if (contents.collections.count(std::string(value)) == 0) {
      return damaged("an alias names no collection");
    }
    contents.aliases.emplace(key.substr(2), value);
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kMeta, kAliasPrefix, visit_alias));
  return contents;
}

absl::Status StoreImpl::start() {
  std::error_code error;
  const std::string& folder = core_->folder;
  if (!core_->options.create_if_missing && !fs::exists(folder + "/ACTIVE", error)) {
    return make_error(absl::StatusCode::kNotFound, "STORE_NOT_FOUND",
                      absl::StrCat("there is no store in ", folder));
  }
  const bool made = fs::create_directories(folder, error);
  if (error) return from_errno(error.value(), absl::StrCat("making folder ", folder));
  // Where the folder above may not be read, the system has to see to it by itself.
  if (made) (void)sync_folder(fs::absolute(folder).lexically_normal().parent_path().string());
  auto lock = FolderLock::take(folder);
  if (!lock.ok()) return lock.status();
  folder_lock_ = *std::move(lock);

  const auto active = read_active(folder);
  if (!active.ok()) return active.status();
  database_number_ = active->value_or(1);
  if (!active->has_value()) {
    if (fs::exists(folder + "/" + database_name(1), error)) {
      return damaged(absl::StrCat(folder, " has a database, but the file ACTIVE is missing"));
    }
    TQ_RETURN_IF_ERROR(write_active(folder, database_number_));
  }
  // What a restore or a load that did not get to its end has left.
  std::vector<fs::path> leftover;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const bool other = name.rfind("db-", 0) == 0 && name != database_name(database_number_);
    if (other || name == kLoadingFolder) {
      leftover.push_back(entry.path());
    }
  }
  for (const fs::path& path : leftover) fs::remove_all(path, error);

  auto database = Database::open(config(database_number_));
  if (!database.ok()) return database.status();
  TQ_RETURN_IF_ERROR(initialize(**database));
  auto contents = load(**database, {});
  if (!contents.ok()) return contents.status();
  contents_ = *std::move(contents);
  core_->database = *std::move(database);
  std::vector<std::string> hidden;
  for (const auto& [name, collection] : contents_.collections) {
    if (name.front() == '.') hidden.push_back(name);
  }
  for (const std::string& name : hidden) TQ_RETURN_IF_ERROR(drop_collection(name));
  if (core_->options.background) worker_ = std::thread([this] { work(); });
  return absl::OkStatus();
}

absl::Status StoreImpl::close() {
  const std::lock_guard<std::mutex> closing(close_mutex_);
  {
    const std::lock_guard<std::mutex> lock(worker_mutex_);
    stopping_ = true;
    worker_wakes_.notify_all();
  }
  if (worker_.joinable()) worker_.join();
  const std::lock_guard<std::mutex> admin(admin_);
  const Own own(*core_);
  if (closed_) return absl::OkStatus();
  closed_ = true;
  absl::Status status = core_->database ? core_->database->sync_all() : core_->absent;
  {
    const std::lock_guard<std::mutex> lock(map_);
    for (auto& [name, collection] : contents_.collections) collection->retire(closed_error());
    contents_ = {};
  }
  core_->database.reset();
  core_->absent = absl::OkStatus();
  folder_lock_.reset();
  return status;
}

absl::StatusOr<std::shared_ptr<CollectionImpl>> StoreImpl::find(const std::string& name) const {
  const std::lock_guard<std::mutex> lock(map_);
  const auto alias = contents_.aliases.find(name);
  const auto at =
      contents_.collections.find(alias != contents_.aliases.end() ? alias->second : name);
  if (at == contents_.collections.end()) return not_found(name);
  return at->second;
}

absl::StatusOr<std::shared_ptr<Collection>> StoreImpl::collection(const std::string& name) const {
  auto found = find(name);
  if (!found.ok()) return found.status();
  return std::shared_ptr<Collection>(*std::move(found));
}

absl::StatusOr<std::shared_ptr<Collection>> StoreImpl::create_collection(
    const std::string& name, const CollectionOptions& options) {
  if (absl::Status status = check_name(name); !status.ok()) return status;
  auto made = create(name, options);
  if (!made.ok()) return made.status();
  return std::shared_ptr<Collection>(*std::move(made));
}

absl::StatusOr<std::shared_ptr<CollectionImpl>> StoreImpl::create_hidden(
    const std::string& name, const CollectionOptions& options) {
  if (find(name).ok()) TQ_RETURN_IF_ERROR(drop_collection(name));
  return create(name, options);
}

absl::StatusOr<std::shared_ptr<CollectionImpl>> StoreImpl::create(
    const std::string& name, const CollectionOptions& options) {
  return guard([&]() -> absl::StatusOr<std::shared_ptr<CollectionImpl>> {
    TQ_RETURN_IF_ERROR(check_options(options));
    const std::lock_guard<std::mutex> admin(admin_);
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    {
      const std::lock_guard<std::mutex> lock(map_);
      if (contents_.collections.count(name) != 0 || contents_.aliases.count(name) != 0) {
        return make_error(absl::StatusCode::kAlreadyExists, "COLLECTION_EXISTS",
                          absl::StrCat("there is a collection or alias \"", name, "\""));
      }
    }
    Database& database = use.database();
    const auto next = database.get(kMeta, kNextCollectionKey);
    if (!next.ok()) return next.status();
    ByteReader reader(next->has_value() ? std::string_view(**next) : std::string_view());
    CollectionRecord record;
    record.cid = reader.take<std::uint32_t>();
    if (!reader.at_end()) return damaged("the number of the next collection is damaged");
    record.options = options;
    record.options.seed = options.seed.value_or(QuantizerOptions::kDefaultSeed);
    auto quantizer = make_quantizer(record.options);
    if (!quantizer.ok()) return quantizer.status();
    record.fingerprint = code_fingerprint(*quantizer);
    auto made = std::make_shared<CollectionImpl>(core_, name, record, *std::move(quantizer));
    Batch batch(database);
    batch.put(kMeta, kCollectionPrefix + name, encode_collection(record));
    std::string bytes;
    put(bytes, record.cid + 1);
    batch.put(kMeta, kNextCollectionKey, bytes);
    TQ_RETURN_IF_ERROR(commit(database, batch));
    const std::lock_guard<std::mutex> lock(map_);
    contents_.collections.emplace(name, made);
    return made;
  });
}

void StoreImpl::stage_drop(Batch& batch, const CollectionImpl& collection) const {
  const std::uint32_t cid = collection.record().cid;
  for (const Family family : {kCodes, kDelta, kOrig, kIds, kPayload, kPindex, kOps}) {
    batch.remove_range(family, collection_key(cid), collection_key(cid + 1));
  }
  batch.remove(kMeta, next_row_key(cid));
  batch.remove(kMeta, kCollectionPrefix + collection.name());
}

absl::Status StoreImpl::drop_collection(const std::string& name) {
  return guard([&]() -> absl::Status {
    const std::lock_guard<std::mutex> admin(admin_);
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    TQ_RETURN_IF_ERROR(core_->writable());
    std::shared_ptr<CollectionImpl> dropped;
    Batch batch(use.database());
    {
      const std::lock_guard<std::mutex> lock(map_);
      const auto at = contents_.collections.find(name);
      if (at == contents_.collections.end()) return not_found(name);
      dropped = at->second;
      for (const auto& [alias, target] : contents_.aliases) {
        if (target == name) batch.remove(kMeta, kAliasPrefix + alias);
      }
    }
    stage_drop(batch, *dropped);
    // No write may follow the removal of its keys.
    TQ_RETURN_IF_ERROR(
        dropped->retire_with(not_found(name), [&] { return commit(use.database(), batch); }));
    const std::lock_guard<std::mutex> lock(map_);
    contents_.collections.erase(name);
    for (auto at = contents_.aliases.begin(); at != contents_.aliases.end();) {
      at = at->second == name ? contents_.aliases.erase(at) : std::next(at);
    }
    return absl::OkStatus();
  });
}

std::vector<CollectionInfo> StoreImpl::collections() const {
  std::vector<std::shared_ptr<CollectionImpl>> all;
  {
    const std::lock_guard<std::mutex> lock(map_);
    for (const auto& [name, collection] : contents_.collections) {
      if (name.front() != '.') all.push_back(collection);
    }
  }
  std::vector<CollectionInfo> infos;
  infos.reserve(all.size());
  for (const auto& collection : all) infos.push_back(collection->info());
  return infos;
}

absl::Status StoreImpl::set_alias(const std::string& alias, const std::string& collection) {
  return guard([&]() -> absl::Status {
    TQ_RETURN_IF_ERROR(check_name(alias));
    const std::lock_guard<std::mutex> admin(admin_);
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    {
      const std::lock_guard<std::mutex> lock(map_);
      if (contents_.collections.count(collection) == 0) return not_found(collection);
      if (contents_.collections.count(alias) != 0) {
        return make_error(absl::StatusCode::kAlreadyExists, "COLLECTION_EXISTS",
                          absl::StrCat("there is a collection \"", alias, "\""));
      }
    }
    Batch batch(use.database());
    batch.put(kMeta, kAliasPrefix + alias, collection);
    TQ_RETURN_IF_ERROR(commit(use.database(), batch));
    const std::lock_guard<std::mutex> lock(map_);
    contents_.aliases[alias] = collection;
    return absl::OkStatus();
  });
}

absl::Status StoreImpl::drop_alias(const std::string& alias) {
  return guard([&]() -> absl::Status {
    const std::lock_guard<std::mutex> admin(admin_);
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    {
      const std::lock_guard<std::mutex> lock(map_);
      if (contents_.aliases.count(alias) == 0) {
        return make_error(absl::StatusCode::kNotFound, "ALIAS_NOT_FOUND",
                          absl::StrCat("there is no alias \"", alias, "\""));
      }
    }
    Batch batch(use.database());
    batch.remove(kMeta, kAliasPrefix + alias);
    TQ_RETURN_IF_ERROR(commit(use.database(), batch));
    const std::lock_guard<std::mutex> lock(map_);
    contents_.aliases.erase(alias);
    return absl::OkStatus();
  });
}

std::vector<Alias> StoreImpl::aliases() const {
  const std::lock_guard<std::mutex> lock(map_);
  std::vector<Alias> all;
  for (const auto& [alias, collection] : contents_.aliases) all.push_back({alias, collection});
  return all;
}

absl::Status StoreImpl::verify() const {
  return guard([&]() -> absl::Status {
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    TQ_RETURN_IF_ERROR(use.database().verify_files());
    Collections all;
    {
      const std::lock_guard<std::mutex> lock(map_);
      all = contents_.collections;
    }
    for (const auto& [name, collection] : all) {
      absl::Status status = collection->verify(use.database());
      if (!status.ok() && error_reason(status) != "COLLECTION_NOT_FOUND") return status;
    }
    return absl::OkStatus();
  });
}

StoreStats StoreImpl::stats() const {
  StoreStats stats;
  const Use use(*core_);
  stats.memory_bytes = core_->memory.load();
  stats.recoveries = core_->recoveries.load();
  if (use.status().ok()) {
    const Database::SyncStats sync = use.database().sync_stats();
    stats.fsyncs = sync.count;
    stats.fsync_seconds = sync.seconds;
    stats.disk_bytes = use.database().disk_bytes();
  }
  const std::lock_guard<std::mutex> lock(worker_mutex_);
  stats.background = background_;
  return stats;
}

absl::Status StoreImpl::try_recover() {
  return guard([&]() -> absl::Status {
    if (writable().ok()) return absl::OkStatus();
    const std::lock_guard<std::mutex> admin(admin_);
    if (closed_) return closed_error();
    // Opening again writes what the log holds to new files. Without room for it the store would
    // lose its reads too.
    std::uint64_t log_bytes = std::uint64_t{4} << 20;
    std::error_code error;
    for (const auto& entry :
         fs::directory_iterator(core_->folder + "/" + database_name(database_number_), error)) {
      if (entry.path().extension() == ".log") log_bytes += entry.file_size(error);
    }
    TQ_RETURN_IF_ERROR(probe_space(core_->folder, log_bytes));
    const Own own(*core_);
    // A restore that failed may have left the name of its database.
    const auto active = read_active(core_->folder);
    if (!active.ok()) return active.status();
    if (*active != database_number_) {
      TQ_RETURN_IF_ERROR(write_active(core_->folder, database_number_));
    }
    core_->database.reset();
    auto database = Database::open(config(database_number_));
    if (!database.ok()) {
      Database::Config read_only = config(database_number_);
      read_only.read_only = true;
      auto readable = Database::open(read_only);
      if (readable.ok()) {
        core_->database = *std::move(readable);
      } else {
        core_->absent = readable.status();
      }
      return database.status();
    }
    core_->database = *std::move(database);
    auto contents = load(*core_->database, contents_.collections);
    if (!contents.ok()) return contents.status();
    {
      const std::lock_guard<std::mutex> lock(map_);
      for (const auto& [name, collection] : contents_.collections) {
        const auto kept = contents->collections.find(name);
        if (kept == contents->collections.end() || kept->second != collection) {
          collection->retire(not_found(name));
        }
      }
      contents_ = *std::move(contents);
    }
    core_->recoveries.fetch_add(1);
    core_->resume_writes();
    return absl::OkStatus();
  });
}

void StoreImpl::work() {
  unsigned tick = 0;
  unsigned recover_at = 1;
  unsigned recover_step = 1;
  std::unique_lock<std::mutex> lock(worker_mutex_);
  while (!stopping_) {
    worker_wakes_.wait_for(lock, kTick);
    if (stopping_) return;
    lock.unlock();
    ++tick;
    absl::Status status;
    if (!writable().ok()) {
      if (tick >= recover_at) {
        status = try_recover();
        recover_step = status.ok() ? 1 : std::min(2 * recover_step, kMostRecoverTicks);
        recover_at = tick + recover_step;
      }
    } else {
      Collections all;
      {
        const std::lock_guard<std::mutex> map_lock(map_);
        all = contents_.collections;
      }
      for (const auto& [name, collection] : all) {
        const absl::Status done = collection->maintain(tick % kIdleTicks == 0);
        if (!done.ok() && error_reason(done) != "COLLECTION_NOT_FOUND") status = done;
      }
    }
    lock.lock();
    background_ = status;
  }
}

}  // namespace storage
}  // namespace turboquant
