// Prometheus metrics; docs/operations.md lists them. No Prometheus type is shown here.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "turboquant/store.h"

namespace turboquant::service {

/// What is read when metrics are asked for.
struct Gauges {
  std::uint64_t compute_queue = 0;  ///< tasks that wait
  std::uint64_t write_queue = 0;
  std::uint64_t admin_queue = 0;
  std::uint64_t batches = 0;          ///< searches of several callers' queries
  std::uint64_t batched_queries = 0;  ///< and the queries in them
  bool writable = true;
  StoreStats store;
  std::vector<CollectionInfo> collections;
};

class Metrics {
 public:
  /// methods: the paths that are counted.
  Metrics(const std::vector<std::string>& methods, std::function<Gauges()> gauges);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  /// Serves GET /metrics on "host:port".
  absl::Status serve(const std::string& address);

  /// method: its index. queued: seconds until a thread took it.
  void count_call(std::size_t method, int code, double seconds, double queued, std::uint64_t rows);
  void call_started(std::size_t method);

  /// What /metrics answers.
  std::string text() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace turboquant::service
