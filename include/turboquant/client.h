// A client of turboquant-server.
//
//   turboquant::ClientOptions options;
//   options.address = "127.0.0.1:7443";
//   turboquant::Client client(options);
//   auto made = client.create_collection("words", collection_options);
//   auto written = client.upsert("words", {ids, vectors, metadata});
//   auto found = client.search("words", query, turboquant::SearchOptions());
//
// Types are those of the store (turboquant/store.h), and so are the errors: error_reason() gives
// the server's stable word. Every method may be called from any thread. Nothing throws.
//
// Calls that failed before they reached the server, or because it is busy, restarting or asks for
// a pause, are repeated with growing random pauses until ClientOptions::timeout. A write is given
// an operation id unless it has one, so that a repeated write is made once.
//
// The header shows no gRPC type.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <absl/types/span.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "turboquant/store.h"

namespace turboquant {

struct ClientOptions {
  std::string address = "127.0.0.1:7443";  ///< host:port or unix:PATH
  std::string token;                       ///< empty: none is sent
  bool tls = false;
  std::string ca_file;           ///< PEM; empty: the system's
  std::string certificate_file;  ///< PEM, for servers that want one; with key_file
  std::string key_file;
  std::string server_name;  ///< that its certificate has, when not the address's
  /// Of a call, repetitions included. ReadControl::deadline ends a read earlier.
  absl::Duration timeout = absl::Seconds(60);
  int max_attempts = 6;         ///< 1: nothing is repeated
  std::size_t connections = 1;  ///< calls take turns
};

/// What a server says of itself. Requests beyond its limits are refused.
struct ServerInfo {
  std::string version;
  std::string backend;
  std::uint64_t max_message_bytes = 0;
  std::uint64_t max_rows = 0;
  std::uint64_t max_k = 0;
  std::uint64_t max_results = 0;
};

class Client;

/// Many batches over one stream, each acknowledged, in order. Made by Client::bulk_add(). One
/// thread calls send() and finish(). Batches that were not acknowledged when the connection broke
/// are sent again over a new stream, under the same operation ids.
class BulkStream {
 public:
  virtual ~BulkStream() = default;

  struct Acknowledgement {
    std::uint64_t sequence = 0;  ///< that send() returned
    std::size_t rows = 0;
    absl::StatusOr<WriteResult> result;
    absl::Duration latency;
  };

  /// Waits until fewer than the window are unacknowledged, and sends. The batch is copied. The
  /// number is 0, 1, 2 ... An error is final: the stream is broken beyond repair.
  virtual absl::StatusOr<std::uint64_t> send(const RecordBatch& batch,
                                             const std::string& operation_id = {}) = 0;

  /// Waits for the acknowledgements of all that was sent, and ends the stream.
  virtual absl::Status finish() = 0;

  /// Batches that may be unacknowledged now. Grows while that raises the rate.
  virtual std::size_t window() const = 0;
};

struct BulkOptions {
  bool insert = false;  ///< refuse batches with ids that exist, instead of replacing
  Durability durability = Durability::kFsync;
  std::size_t max_window = 32;  ///< batches
  /// Called in the order of the stream, from one thread at a time, not from the one in send().
  std::function<void(const BulkStream::Acknowledgement&)> acknowledged;
};

class Client {
 public:
  /// Connects when first used.
  explicit Client(const ClientOptions& options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  absl::StatusOr<ServerInfo> info();

  // Records: as the methods of Collection.
  absl::StatusOr<WriteResult> upsert(const std::string& collection, const RecordBatch& batch,
                                     const WriteOptions& options = {});
  absl::StatusOr<WriteResult> insert(const std::string& collection, const RecordBatch& batch,
                                     const WriteOptions& options = {});
  absl::StatusOr<WriteResult> remove(const std::string& collection, absl::Span<const RecordId> ids,
                                     const WriteOptions& options = {});
  absl::StatusOr<WriteResult> remove_if(const std::string& collection, const Filter& filter,
                                        const WriteOptions& options = {});
  absl::StatusOr<std::vector<Hits>> search(const std::string& collection,
                                           absl::Span<const float> queries,
                                           const SearchOptions& options);
  absl::StatusOr<std::vector<Hits>> range_search(const std::string& collection,
                                                 absl::Span<const float> queries,
                                                 const RangeOptions& options);
  /// Those that exist, in the order of the ids.
  absl::StatusOr<std::vector<Record>> get(const std::string& collection,
                                          absl::Span<const RecordId> ids, const Parts& parts);
  absl::StatusOr<ScrollPage> scroll(const std::string& collection, const ScrollOptions& options);
  absl::StatusOr<std::uint64_t> count(const std::string& collection,
                                      const std::optional<Filter>& filter = {});

  /// search() without waiting: done is called once, from a thread of gRPC, and must not block.
  void search_async(const std::string& collection, absl::Span<const float> queries,
                    const SearchOptions& options,
                    std::function<void(absl::StatusOr<std::vector<Hits>>)> done);
  /// upsert() without waiting.
  void upsert_async(const std::string& collection, const RecordBatch& batch,
                    const WriteOptions& options,
                    std::function<void(absl::StatusOr<WriteResult>)> done);

  /// Outlived by the client.
  std::unique_ptr<BulkStream> bulk_add(const std::string& collection, const BulkOptions& options);

  // Collections and snapshots: as the methods of Store.
  absl::StatusOr<CollectionInfo> create_collection(const std::string& name,
                                                   const CollectionOptions& options);
  absl::Status drop_collection(const std::string& name);
  absl::StatusOr<CollectionInfo> collection(const std::string& name);
  absl::StatusOr<std::vector<CollectionInfo>> collections();
  absl::Status compact_collection(const std::string& name);
  absl::Status set_alias(const std::string& alias, const std::string& collection);
  absl::Status drop_alias(const std::string& alias);
  absl::StatusOr<std::vector<Alias>> aliases();
  absl::StatusOr<SnapshotInfo> create_snapshot(SnapshotKind kind);
  absl::StatusOr<std::vector<SnapshotInfo>> snapshots();
  absl::Status verify_snapshot(const std::string& name);
  absl::Status delete_snapshot(const std::string& name);
  absl::Status restore_snapshot(const std::string& name);
  absl::Status verify_store();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace turboquant
