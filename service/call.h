// One request as its handler sees it, and the table of methods; no gRPC.
#pragma once

#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <google/protobuf/arena.h>
#include <google/protobuf/message.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "service/auth.h"
#include "turboquant/store.h"

namespace turboquant::service {

/// Lives until its answer was taken.
struct Call {
  std::shared_ptr<const Caller> caller;
  absl::Time deadline = absl::InfiniteFuture();
  const std::atomic<bool>* cancelled = nullptr;
  google::protobuf::Arena arena;  ///< of request and answer

  // For logs and metrics, set by the handler.
  std::string collection;
  std::uint64_t rows = 0;  ///< queries, ids or records asked for
  std::uint64_t k = 0;
  bool filtered = false;

  ReadControl control() const { return {deadline, cancelled}; }
};

using Message = google::protobuf::Message;
/// Takes the answer, which is on the call's arena, or why there is none. Called once, from any
/// thread.
using Done = std::function<void(absl::StatusOr<const Message*>)>;

/// Where a request is handled.
enum class Workers : std::uint8_t {
  kCompute,  ///< reads: a thread per core
  kWrites,   ///< writes wait for the disk: more threads
  kAdmin,    ///< snapshots and checks can take minutes: a few threads of their own
};

struct Method {
  std::string path;  ///< "/turboquant.v1.SearchService/Search"
  Role role = Role::kRead;
  Workers workers = Workers::kCompute;
  /// A stream of requests, each answered in turn.
  bool stream = false;
  const Message* request = nullptr;  ///< an empty one
  std::function<void(Call&, const Message&, Done)> handle;
  /// As handle, but never takes long, so that gRPC's own threads may call it: returns false,
  /// without having called the Done, when the request needs a worker. Null: they all do.
  std::function<bool(Call&, const Message&, Done)> quick = nullptr;
};

}  // namespace turboquant::service
