#include "tools/commands/push.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>

#include "tools/commands/checkpoint.h"
#include "tools/io/atomic_file.h"
#include "tools/io/errors.h"
#include "tools/io/interrupt.h"
#include "turboquant/collection_loader.h"

namespace turboquant::tools {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr const char* kFormat = "turboquant-index push 1";
constexpr std::chrono::seconds kManifestInterval{1};

Durability durability_of(const std::string& name) {
  if (name == "memory") return Durability::kMemory;
  return name == "wal" ? Durability::kWal : Durability::kFsync;
}

// Where batches go, in order.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual CollectionOptions open() = 0;
  virtual void send(const RecordBatch& batch, const std::string& operation_id,
                    std::uint64_t rows) = 0;
  /// Waits for all of them.
  virtual void finish() = 0;
  virtual std::size_t window() const { return 1; }

  /// Input rows whose batches were acknowledged, without a gap.
  std::uint64_t done() {
    const std::lock_guard lock(mutex_);
    return done_;
  }
  /// Rows that count for the progress shown, when these are not the same.
  virtual std::uint64_t sent() const { return 0; }
  /// Throws what went wrong with a batch.
  void check() {
    const std::lock_guard lock(mutex_);
    if (!failed_.ok()) throw_status(failed_);
  }
  WriteResult total() {
    const std::lock_guard lock(mutex_);
    return total_;
  }
  void skip(std::uint64_t rows) { done_ += rows; }

 protected:
  void acknowledged(const absl::StatusOr<WriteResult>& result, std::uint64_t rows) {
    const std::lock_guard lock(mutex_);
    if (!failed_.ok()) return;
    if (!result.ok()) {
      failed_ = result.status();
      return;
    }
    done_ += rows;
    total_.inserted += result->inserted;
    total_.updated += result->updated;
  }

 private:
  std::mutex mutex_;
  std::uint64_t done_ = 0;
  WriteResult total_;
  absl::Status failed_;
};

class ServerSink final : public Sink {
 public:
  explicit ServerSink(const PushOptions& options)
      : options_(options), client_(connect(options.server)) {}

  CollectionOptions open() override {
    auto info = client_->collection(options_.collection);
    if (absl::IsNotFound(info.status()) && options_.create && !options_.dry_run) {
      info = client_->create_collection(options_.collection, collection_options(*options_.create));
    }
    if (absl::IsNotFound(info.status()) && options_.create) {
      return collection_options(*options_.create);
    }
    return value_or_throw(std::move(info)).options;
  }

  void send(const RecordBatch& batch, const std::string& operation_id,
            std::uint64_t rows) override {
    if (stream_ == nullptr) start();
    {
      const std::lock_guard lock(rows_mutex_);
      rows_[next_++] = rows;
    }
    ok_or_throw(stream_->send(batch, operation_id).status());
  }

  void finish() override {
    if (stream_ != nullptr) ok_or_throw(stream_->finish());
  }
  std::size_t window() const override { return stream_ == nullptr ? 0 : stream_->window(); }

 private:
  void start() {
    BulkOptions bulk;
    bulk.insert = options_.insert;
    bulk.durability = durability_of(options_.durability);
    bulk.acknowledged = [this](const BulkStream::Acknowledgement& one) {
      std::uint64_t rows = 0;
      {
        const std::lock_guard lock(rows_mutex_);
        rows = rows_.at(one.sequence);
        rows_.erase(one.sequence);
      }
      acknowledged(one.result, rows);
    };
    stream_ = client_->bulk_add(options_.collection, bulk);
  }

  const PushOptions& options_;
  std::unique_ptr<Client> client_;
  std::mutex rows_mutex_;
  std::map<std::uint64_t, std::uint64_t> rows_;  // input rows of the batches under way
  std::uint64_t next_ = 0;
  std::unique_ptr<BulkStream> stream_;
};

// Without a server. A collection that is not there yet is loaded at once in the end, by sorted
// files; until then nothing counts as done.
class StoreSink final : public Sink {
 public:
  explicit StoreSink(const PushOptions& options) : options_(options) {}

  CollectionOptions open() override {
    store_ = value_or_throw(Store::open(options_.data_dir));
    auto found = store_->collection(options_.collection);
    if (absl::IsNotFound(found.status()) && options_.create) {
      CollectionOptions made = collection_options(*options_.create);
      if (options_.dry_run) return made;
      loader_ = value_or_throw(CollectionLoader::begin(*store_, options_.collection, made));
      return made;
    }
    collection_ = value_or_throw(std::move(found));
    return collection_->options();
  }

  void send(const RecordBatch& batch, const std::string& operation_id,
            std::uint64_t rows) override {
    if (loader_ != nullptr) {
      ok_or_throw(loader_->add(batch));
      loaded_rows_ += rows;
      return;
    }
    const WriteOptions write{durability_of(options_.durability), operation_id};
    const auto result =
        options_.insert ? collection_->insert(batch, write) : collection_->upsert(batch, write);
    acknowledged(result, rows);
  }

  std::uint64_t sent() const override { return loaded_rows_; }

  void finish() override {
    if (loader_ != nullptr) {
      WriteResult result;
      result.inserted = value_or_throw(loader_->finish());
      acknowledged(result, loaded_rows_);
      loader_.reset();
    }
    ok_or_throw(store_->close());
  }

 private:
  const PushOptions& options_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<CollectionLoader> loader_;  // goes before the store
  std::uint64_t loaded_rows_ = 0;
  std::shared_ptr<Collection> collection_;
};

// What was done, for --resume.
class Manifest {
 public:
  Manifest(std::string path, json push) : path_(std::move(path)), push_(std::move(push)) {}

  /// Rows that were acknowledged; 0 for a new push.
  std::uint64_t load(bool resume) {
    const bool there = ::access(path_.c_str(), F_OK) == 0;
    if (there && !resume) {
      throw io::UsageError(path_ +
                           ": an unfinished push; --resume goes on with it, removing the "
                           "file starts over");
    }
    if (!there) {
      std::random_device device;
      id_ = std::to_string(device()) + std::to_string(device());
      return 0;
    }
    std::ifstream file(path_);
    const json manifest = json::parse(file, nullptr, false);
    if (!manifest.is_object() || manifest.value("format", "") != kFormat) {
      throw io::DataError(path_ + ": not a manifest of this version");
    }
    const json other = manifest.value("push", json::object());
    for (const auto& [key, value] : push_.items()) {
      if (other.value(key, json()) == value) continue;
      throw io::UsageError(path_ + ": belongs to another push: its " + key + " is " +
                           other.value(key, json()).dump() + ", here it is " + value.dump());
    }
    id_ = manifest.value("id", "");
    return manifest.value("rows_done", std::uint64_t{0});
  }

  void save(std::uint64_t rows_done) {
    const json manifest = {
        {"format", kFormat}, {"id", id_}, {"push", push_}, {"rows_done", rows_done}};
    io::write_file(path_, manifest.dump(2) + "\n");
    saved_ = Clock::now();
  }
  bool due() const { return Clock::now() - saved_ >= kManifestInterval; }
  void remove() const { ::unlink(path_.c_str()); }

  /// The same for the same rows of the same push.
  std::string operation_id(std::uint64_t first) const {
    return "push-" + id_ + "-" + std::to_string(first);
  }

 private:
  const std::string path_;
  const json push_;
  std::string id_;
  Clock::time_point saved_;
};

// Bad rows, a line of JSON each.
class Quarantine {
 public:
  /// Keeps the lines of rows before `first`, since the others come again.
  Quarantine(std::string path, std::uint64_t first) : path_(std::move(path)) {
    std::string kept;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      const json entry = json::parse(line, nullptr, false);
      if (entry.is_object() && entry.value("row", first) < first) kept += line + "\n";
    }
    io::write_file(path_, kept);
    out_.open(path_, std::ios::app);
  }

  void add(const BadRow& bad) {
    out_ << json{{"row", bad.row}, {"reason", bad.reason}}.dump() << std::endl;
    if (!out_) throw io::IoError(path_ + ": cannot write");
  }

 private:
  const std::string path_;
  std::ofstream out_;
};

json identity(const PushOptions& options) {
  json push = {{"collection", options.collection},
               {"target", options.data_dir.empty() ? options.server.address : options.data_dir},
               {"batch_rows", options.batch_rows},
               {"insert", options.insert},
               {"text_field", options.input.text_field},
               {"id_field", options.input.id_field},
               {"vectors", file_identity(options.input.vectors)}};
  for (const auto& [name, path] :
       {std::pair{"ids", options.input.ids}, std::pair{"names", options.input.names},
        std::pair{"text", options.input.text}, std::pair{"metadata", options.input.metadata}}) {
    push[name] = path.empty() ? json() : file_identity(path);
  }
  return push;
}

class Push {
 public:
  Push(const PushOptions& options, Progress& progress)
      : options_(options),
        progress_(progress),
        source_(options.input),
        manifest_path_(options.manifest.empty()
                           ? options.input.vectors + "." + options.collection + ".push.json"
                           : options.manifest),
        manifest_(manifest_path_, identity(options)) {
    if (options.data_dir.empty()) {
      sink_ = std::make_unique<ServerSink>(options_);
    } else {
      sink_ = std::make_unique<StoreSink>(options_);
    }
  }

  PushReport run() {
    collection_ = sink_->open();
    if (collection_.dimension != source_.dimension()) {
      throw io::DataError(options_.input.vectors + ": its dimension is " +
                          std::to_string(source_.dimension()) + ", that of the collection is " +
                          std::to_string(collection_.dimension));
    }
    report_.rows = source_.rows();
    if (!options_.dry_run) {
      report_.resumed_at = manifest_.load(options_.resume);
      manifest_.save(report_.resumed_at);
    }
    if (options_.on_bad_row == OnBadRow::kQuarantine && !options_.dry_run) {
      report_.quarantine_file = manifest_path_ + ".rejected.jsonl";
      quarantine_ = std::make_unique<Quarantine>(report_.quarantine_file, report_.resumed_at);
    }
    if (report_.resumed_at > 0) {
      progress_.note("going on after row " + std::to_string(report_.resumed_at));
      sink_->skip(report_.resumed_at);
    }
    const auto begin = Clock::now();
    progress_.begin(options_.dry_run ? "check" : "push", source_.rows(), report_.resumed_at);
    try {
      send_all();
      if (!options_.dry_run) {
        sink_->finish();
        sink_->check();
      }
    } catch (...) {
      if (!options_.dry_run) manifest_.save(sink_->done());
      throw;
    }
    progress_.update(source_.rows());
    progress_.end();
    report_.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    report_.inserted = sink_->total().inserted;
    report_.updated = sink_->total().updated;
    report_.window = options_.dry_run ? 0 : sink_->window();
    if (!options_.dry_run) manifest_.remove();
    return report_;
  }

 private:
  void send_all() {
    std::uint64_t skipped = 0;  // rows of batches that turned out empty
    for (std::uint64_t first = report_.resumed_at; first < source_.rows();) {
      io::check_interrupt();
      const auto n = static_cast<std::size_t>(
          std::min<std::uint64_t>(options_.batch_rows, source_.rows() - first));
      const PushBatch read = source_.read(first, n, collection_);
      for (const BadRow& bad : read.bad) judge(bad);
      if (options_.dry_run) {
        progress_.update(first + n);
      } else if (read.ids.empty()) {
        skipped += n;
      } else {
        sink_->send({read.ids, read.vectors, read.metadata}, manifest_.operation_id(first),
                    n + skipped);
        skipped = 0;
        sink_->check();
        const std::uint64_t done = sink_->done();
        progress_.update(std::max(done, sink_->sent()));
        if (manifest_.due()) manifest_.save(done);
      }
      first += n;
    }
  }

  void judge(const BadRow& bad) {
    ++report_.bad;
    if (options_.on_bad_row == OnBadRow::kFail) {
      throw io::DataError(options_.input.vectors + ": row " + std::to_string(bad.row) + ": " +
                          bad.reason);
    }
    if (quarantine_ != nullptr) quarantine_->add(bad);
  }

  const PushOptions& options_;
  Progress& progress_;
  PushSource source_;
  const std::string manifest_path_;
  Manifest manifest_;
  std::unique_ptr<Sink> sink_;
  std::unique_ptr<Quarantine> quarantine_;
  CollectionOptions collection_;
  PushReport report_;
};

}  // namespace

PushReport push(const PushOptions& options, Progress& progress) {
  if (options.batch_rows < 1) throw io::UsageError("--batch-rows must be at least 1");
  if (options.resume && options.durability == "memory") {
    throw io::UsageError("--resume needs --durability wal or fsync: it trusts acknowledgements");
  }
  return Push(options, progress).run();
}

}  // namespace turboquant::tools
