// turboquant-server as an object: a store, its workers, and gRPC in front.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <cstddef>
#include <memory>
#include <ostream>
#include <string>

#include "service/grpc_front.h"
#include "service/limits.h"
#include "service/log.h"
#include "service/micro_batcher.h"
#include "turboquant/store.h"

namespace turboquant::service {

struct ServerOptions {
  std::string data_dir;
  std::string backup_dir;  ///< empty: in data_dir
  FrontOptions front;
  std::string token_file;       ///< empty: no tokens, every caller is admin
  std::string metrics_address;  ///< "host:port"; empty: no metrics are served
  /// Take addresses other than loopback without TLS and tokens.
  bool insecure = false;
  Limits limits;
  BatchLimits batch;
  std::uint64_t cache_bytes = std::uint64_t{256} << 20;
  std::size_t compute_threads = 0;  ///< 0: one per core
  std::size_t write_threads = 16;
  std::size_t max_queued = 1024;  ///< per kind of workers; beyond: RESOURCE_EXHAUSTED
  absl::Duration drain = absl::Seconds(30);
  LogLevel log_level = LogLevel::kInfo;
};

/// True for 127.0.0.0/8, ::1, localhost and Unix sockets.
bool is_loopback(const std::string& address);

/// What cannot be served, with a sentence that says what to change.
absl::Status check(const ServerOptions& options);

class Server {
 public:
  /// Opens the store and listens. log outlives the server.
  static absl::StatusOr<std::unique_ptr<Server>> start(const ServerOptions& options,
                                                       std::ostream& log);
  virtual ~Server() = default;

  virtual int port() const = 0;
  /// What /metrics answers.
  virtual std::string metrics() const = 0;
  /// Reads the token file again.
  virtual absl::Status reload() = 0;
  /// Stops taking calls, lets those under way end (ServerOptions::drain), flushes and closes.
  virtual absl::Status stop() = 0;
};

}  // namespace turboquant::service
