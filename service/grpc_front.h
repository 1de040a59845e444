// gRPC in front of the methods: receives, authorises before the body is read, hands over to the
// workers, answers. The only file of the server that includes gRPC is grpc_front.cpp.
#pragma once

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "service/auth.h"
#include "service/call.h"
#include "service/limits.h"
#include "service/log.h"
#include "service/metrics.h"
#include "service/worker_pool.h"

namespace turboquant::service {

struct TlsFiles {
  std::string certificate;  ///< PEM chain; empty: no TLS
  std::string key;          ///< PEM
  std::string client_ca;  ///< PEM; clients must show a certificate that it signed. Empty: need not
};

struct FrontOptions {
  std::string address = "127.0.0.1:7443";
  TlsFiles tls;
  bool reflection = true;
  std::uint64_t max_message_bytes = std::uint64_t{64} << 20;
  std::uint64_t transport_memory_bytes = std::uint64_t{1} << 30;  ///< of gRPC's buffers
  int max_concurrent_streams = 1024;                              ///< of a connection
  absl::Duration slow_query = absl::Milliseconds(500);            ///< from here on logged
};

/// Health names: each service, and kWritesHealth, which stops serving when writes are refused.
inline constexpr const char* kSearchHealth = "turboquant.v1.SearchService";
inline constexpr const char* kAdminHealth = "turboquant.v1.AdminService";
inline constexpr const char* kWritesHealth = "turboquant.v1.SearchService/writes";

struct Pools {
  WorkerPool* compute = nullptr;
  WorkerPool* writes = nullptr;
  WorkerPool* admin = nullptr;
};

class GrpcFront {
 public:
  /// All pointers outlive the front.
  struct Parts {
    std::vector<Method> methods;
    const Authenticator* auth = nullptr;
    Metrics* metrics = nullptr;
    Log* log = nullptr;
    Pools pools;
  };

  GrpcFront(const FrontOptions& options, Parts parts);
  ~GrpcFront();
  GrpcFront(const GrpcFront&) = delete;
  GrpcFront& operator=(const GrpcFront&) = delete;

  absl::Status start();
  /// The port it listens on; 0 before start() and for Unix sockets.
  int port() const;
  void set_healthy(const std::string& name, bool healthy);
  /// Takes no more calls, waits for those under way until the deadline, then cancels them and
  /// waits for their ends.
  void shutdown(absl::Time deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace turboquant::service
