// turboquant::Store: durable, updatable, filterable collections of vectors in one folder.
//
//   auto store = turboquant::Store::open("data");                 // StatusOr<unique_ptr<Store>>
//   turboquant::CollectionOptions options;
//   options.dimension = 384;
//   options.factory = "TQ3";
//   auto words = (*store)->create_collection("words", options);   //
//   StatusOr<shared_ptr<Collection>>
//   (*words)->upsert({ids, vectors, metadata});                   // on disk when it returns
//   auto found = (*words)->search(query, turboquant::SearchOptions());    // the best 10
//
// Nothing throws; every failure is an absl::Status whose error_reason() (turboquant/record.h) is a
// stable word. A failed write has changed nothing, except that after UNAVAILABLE, DATA_LOSS or
// RESOURCE_EXHAUSTED/DISK_FULL it may show up once the store has recovered: repeat it with the same
// operation id.
//
// Every method may be called from any thread. Searches see one state of the collection from their
// start to their end and never wait for a writer. A write is visible to searches before it is on
// disk, and acknowledged (its call returns) only once it is as durable as was asked for.
//
// The bytes on disk are described in docs/storage_format.md. The header shows no RocksDB type.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "turboquant/filter.h"
#include "turboquant/record.h"

namespace turboquant {

/// How scores are made. Stored in files: never renumber.
enum class DistanceMetric : std::uint8_t {
  kInnerProduct = 0,  ///< larger is better
  kCosine = 1,        ///< inner product of vectors scaled to length 1; larger is better
  kL2 = 2,            ///< squared Euclidean distance; smaller is better; estimates can be below 0
};

/// Whether the vectors themselves are kept beside their codes. Stored in files: never renumber.
enum class Originals : std::uint8_t { kNone = 0, kFp16 = 1, kFp32 = 2 };

/// When a write is acknowledged. Each level gives at least what its line promises.
enum class Durability : std::uint8_t {
  kMemory = 0,  ///< once visible to searches; a crash may lose it
  kWal = 1,     ///< once in the operating system: survives a killed process, not a power loss
  kFsync = 2,   ///< once on disk: survives a power loss
};

/// A metadata field that filters may ask about. Its values must have this type.
struct FieldSchema {
  std::string name;
  FieldType type = FieldType::kString;
};

/// What a collection is made with; fixed from then on.
struct CollectionOptions {
  std::size_t dimension = 0;  ///< 1 to 65,536
  DistanceMetric metric = DistanceMetric::kInnerProduct;
  /// TQ1 to TQ4, then nothing, `t`, `qjl`, `qjlg` or `mse`: what is stored per vector.
  std::string factory = "TQ4";
  Originals originals = Originals::kNone;
  std::vector<FieldSchema> fields;  ///< at most kMaxFields
  /// Of the rotation. Absent: QuantizerOptions::kDefaultSeed. Shards of one collection share it.
  std::optional<std::uint64_t> seed;
  std::uint32_t shard = 0;  ///< carried for the caller, of no meaning here
  /// Codes on disk at about their entropy (docs/packed_codes.md): 4 to 6% fewer bytes, a slower
  /// start. Programs from before packing refuse the collection.
  bool pack_codes = false;
};
inline constexpr std::size_t kMaxFields = 256;
inline constexpr std::size_t kMaxNameBytes = 128;
inline constexpr std::size_t kMaxOperationIdBytes = 128;
inline constexpr std::size_t kMaxBatchRows = std::size_t{1} << 20;
inline constexpr std::size_t kMaxK = std::size_t{1} << 20;

struct CollectionInfo {
  std::string name;
  CollectionOptions options;
  std::uint64_t records = 0;       ///< that can be found
  std::uint64_t dead_rows = 0;     ///< deleted or replaced, not yet reclaimed
  std::uint64_t code_bytes = 0;    ///< bytes of one code
  std::uint64_t memory_bytes = 0;  ///< held in memory for searches
  /// On disk, of the blocks of 4,096 rows that are full: their codes, packed if options say so, and
  /// ids. Later rows are not counted until they fill a block.
  std::uint64_t block_bytes = 0;
  std::uint64_t version = 0;  ///< goes up by one with every write since the store was opened
};

/// A batch to write. Vectors are borrowed for the call.
struct RecordBatch {
  std::vector<RecordId> ids;  ///< n, all different
  /// [n][dimension], finite; under kCosine not all zero.
  absl::Span<const float> vectors;
  std::vector<Metadata> metadata = {};  ///< empty, or one per id
};

struct WriteOptions {
  Durability durability = Durability::kFsync;
  /// Names this write: if a write of this name succeeded less than StoreOptions::operation_ttl ago,
  /// its answer is returned and nothing is written. The same name with another request is refused
  /// (OPERATION_MISMATCH). Empty: none. At most kMaxOperationIdBytes bytes.
  std::string operation_id = {};
};

struct WriteResult {
  std::uint64_t inserted = 0;  ///< ids that were new
  std::uint64_t updated = 0;   ///< ids whose record was replaced
  std::uint64_t deleted = 0;
  bool replayed = false;  ///< the answer of an earlier write with this operation id
};

/// Lets a caller bound and stop a read. Looked at once per block of 4,096 rows.
struct ReadControl {
  absl::Time deadline = absl::InfiniteFuture();
  const std::atomic<bool>* cancelled = nullptr;  ///< borrowed for the call; true stops it
};

/// What a read returns of a record beside its id.
struct Parts {
  bool metadata = false;
  /// The original where it is kept, else what its code decodes to (of length 1 under kCosine).
  bool vector = false;
};

struct Record {
  RecordId id;
  Metadata metadata;          ///< empty unless asked for
  std::vector<float> vector;  ///< empty unless asked for
};

struct SearchOptions {
  std::size_t k = 10;                 ///< 1 to kMaxK
  std::optional<Filter> filter = {};  ///< k matching records are found whenever k match
  Parts parts = {};                   ///< returned with every hit
  /// Take the best k * oversampling by code, then order them by scores of the originals and return
  /// k. Needs originals; oversampling is at least 1.
  bool rescore = false;
  double oversampling = 4;
  bool exact = false;  ///< score all matching originals instead of codes; needs originals
  ReadControl control = {};
};

struct Hit {
  RecordId id;
  float score = 0;            ///< see DistanceMetric
  Metadata metadata;          ///< empty unless asked for
  std::vector<float> vector;  ///< empty unless asked for
};

/// Hits of one query, best first; equal scores by smaller id. The same bits on every processor, for
/// every number of threads, before and after a restart.
using Hits = std::vector<Hit>;

struct RangeOptions {
  float radius = 0;  ///< scores strictly better than this are hits: above it, under kL2 below it
  std::optional<Filter> filter = {};
  Parts parts = {};
  /// Over all queries; more is refused (TOO_MANY_HITS) rather than cut.
  std::size_t max_hits = std::size_t{1} << 20;
  ReadControl control = {};
};

struct ScrollOptions {
  std::string cursor = {};  ///< empty: from the start; else ScrollPage::cursor of the page before
  std::size_t limit = 100;  ///< 1 to kMaxK records
  std::optional<Filter> filter = {};
  Parts parts = {true, false};
  ReadControl control = {};
};

/// Records in the order of their ids. Records that exist during the whole scroll are seen exactly
/// once, whatever is written meanwhile.
struct ScrollPage {
  std::vector<Record> records;
  std::string cursor;  ///< empty after the last page. Opaque, may hold any bytes
};

/// Outlives neither its Store nor a drop or restore: calls then fail with CLOSED or
/// COLLECTION_NOT_FOUND.
class Collection {
 public:
  virtual ~Collection() = default;

  /// Its own, whatever alias it was found by. Valid as long as this object, as are the options.
  virtual const std::string& name() const = 0;
  virtual const CollectionOptions& options() const = 0;

  /// Counts that are kept up to date by writes: asking costs the same however many rows there are.
  /// All of one state; zero once the collection was dropped or its store closed.
  virtual CollectionInfo info() const = 0;

  /// Adds records; records whose ids exist are replaced whole, metadata included. All or nothing.
  virtual absl::StatusOr<WriteResult> upsert(const RecordBatch& batch,
                                             const WriteOptions& options = {}) = 0;

  /// As upsert, but refuses the batch (ID_EXISTS, naming the first) when an id exists.
  virtual absl::StatusOr<WriteResult> insert(const RecordBatch& batch,
                                             const WriteOptions& options = {}) = 0;

  /// Deletes the records with these ids; ids that do not exist are not counted.
  virtual absl::StatusOr<WriteResult> remove(absl::Span<const RecordId> ids,
                                             const WriteOptions& options = {}) = 0;

  /// Deletes all records that match, as one write.
  virtual absl::StatusOr<WriteResult> remove_if(const Filter& filter,
                                                const WriteOptions& options = {}) = 0;

  /// queries: [nq][dimension], finite; under kCosine none all zero. One Hits per query.
  virtual absl::StatusOr<std::vector<Hits>> search(absl::Span<const float> queries,
                                                   const SearchOptions& options) const = 0;

  /// All records whose score is better than the radius; one Hits per query, ordered as in search.
  virtual absl::StatusOr<std::vector<Hits>> range_search(absl::Span<const float> queries,
                                                         const RangeOptions& options) const = 0;

  /// One entry per id, in order; nothing where the id does not exist.
  virtual absl::StatusOr<std::vector<std::optional<Record>>> get(absl::Span<const RecordId> ids,
                                                                 const Parts& parts) const = 0;

  virtual absl::StatusOr<ScrollPage> scroll(const ScrollOptions& options) const = 0;

  /// Records that match, or all without a filter.
  virtual absl::StatusOr<std::uint64_t> count(const std::optional<Filter>& filter) const = 0;

  /// Reclaims the space of deleted and replaced rows now. The store does this by itself in the
  /// background, in small steps, when half the rows of a block are dead.
  virtual absl::Status compact() = 0;
};

struct StoreOptions {
  bool create_if_missing = true;
  /// Refuses writes (MEMORY_LIMIT) that would take the collections' memory over this. 0: no limit.
  std::uint64_t memory_limit_bytes = 0;
  /// RocksDB's block cache, to which its memtables and filters are charged.
  std::uint64_t cache_bytes = std::uint64_t{256} << 20;
  absl::Duration operation_ttl = absl::Hours(24);
  /// A thread that reclaims dead rows, forgets old operations and recovers from full disks.
  bool background = true;
  /// Where backups go. Empty: the folder `backups` in the store's folder. Better on another disk.
  std::string backup_path = {};
};

enum class SnapshotKind : std::uint8_t {
  kCheckpoint = 0,  ///< a complete copy in the store's folder, by hard links: quick, same disk
  kBackup = 1,      ///< an incremental copy in StoreOptions::backup_path
};

struct SnapshotInfo {
  std::string name;  ///< made by the store, e.g. "backup-00000003"
  SnapshotKind kind = SnapshotKind::kBackup;
  absl::Time created;
  std::uint64_t bytes = 0;  ///< of all its files, shared ones included
};

struct Alias {
  std::string alias;
  std::string collection;
};

/// What the store has done since it was opened, for metrics.
struct StoreStats {
  std::uint64_t memory_bytes = 0;  ///< of all collections
  std::uint64_t fsyncs = 0;        ///< of the log
  double fsync_seconds = 0;        ///< spent in them
  std::uint64_t disk_bytes = 0;    ///< live files of the database
  std::uint64_t recoveries = 0;    ///< closed and opened again after an error
  /// What the background thread last failed with; OK once it succeeds again.
  absl::Status background;
};

class Store {
 public:
  /// Opens the store in `path`, or makes one. Everything is read back into memory and every
  /// checksum of it compared. Refuses another process's store (STORE_IN_USE), a format that it does
  /// not know (UNKNOWN_FORMAT), codes of another rotation or other levels (WRONG_FINGERPRINT), and
  /// damage (DATA_LOSS); each sentence says what to do.
  static absl::StatusOr<std::unique_ptr<Store>> open(const std::string& path,
                                                     const StoreOptions& options = {});

  /// Closes; see close() for errors.
  virtual ~Store() = default;

  /// Waits for calls under way, syncs the log and closes. Later calls fail with CLOSED.
  virtual absl::Status close() = 0;

  /// Names: 1 to kMaxNameBytes of A-Z a-z 0-9 _ - . and not starting with a dot. A collection may
  /// not have the name of an alias, nor the reverse.
  virtual absl::StatusOr<std::shared_ptr<Collection>> create_collection(
      const std::string& name, const CollectionOptions& options) = 0;

  /// By name or alias.
  virtual absl::StatusOr<std::shared_ptr<Collection>> collection(const std::string& name) const = 0;

  /// By name only. Its aliases go with it.
  virtual absl::Status drop_collection(const std::string& name) = 0;

  /// Ordered by name.
  virtual std::vector<CollectionInfo> collections() const = 0;

  /// Makes the alias, or points it at another collection, at once for everybody.
  virtual absl::Status set_alias(const std::string& alias, const std::string& collection) = 0;
  virtual absl::Status drop_alias(const std::string& alias) = 0;
  virtual std::vector<Alias> aliases() const = 0;

  /// Takes one of everything acknowledged so far, while reads and writes go on.
  virtual absl::StatusOr<SnapshotInfo> create_snapshot(SnapshotKind kind) = 0;
  virtual absl::StatusOr<std::vector<SnapshotInfo>> snapshots() const = 0;
  /// Reads all its bytes and compares their checksums.
  virtual absl::Status verify_snapshot(const std::string& name) const = 0;
  virtual absl::Status delete_snapshot(const std::string& name) = 0;
  /// Replaces everything in the store by the snapshot. Collection objects held by callers are dead
  /// afterwards. When it fails the store is as before.
  virtual absl::Status restore_snapshot(const std::string& name) = 0;

  /// Reads every byte of the live store, compares all checksums, and checks that ids, rows, codes,
  /// metadata and originals belong together. Writes to a collection wait while it is checked.
  virtual absl::Status verify() const = 0;

  /// OK, or why writes are refused: a full disk, or an error of the device. Reads go on. The store
  /// tries by itself to recover (StoreOptions::background), and on try_recover().
  virtual absl::Status writable() const = 0;
  virtual absl::Status try_recover() = 0;

  virtual StoreStats stats() const = 0;
};

/// Makes a store in the new or empty folder `target` from a backup, without the store it came from.
absl::Status restore_backup(const std::string& backup_path, const std::string& name,
                            const std::string& target);

}  // namespace turboquant
