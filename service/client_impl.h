// What the parts of the client share.
#pragma once

#include <absl/status/status.h>
#include <absl/time/time.h>
#include <google/protobuf/message.h>
#include <turboquant/v1/search_service.pb.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "service/transport.h"
#include "turboquant/client.h"

namespace turboquant::service {

using CallDone = std::function<void(const absl::Status&)>;

struct ClientImpl {
  explicit ClientImpl(const ClientOptions& chosen);

  /// Repeats as ClientOptions say. response: lives until the end.
  absl::Status call(const std::string& path, const google::protobuf::Message& request,
                    google::protobuf::Message* response, const ReadControl& control = {});
  /// The client outlives the call.
  void call_async(const std::string& path, const google::protobuf::Message& request,
                  google::protobuf::Message* response, absl::Time deadline, CallDone done);

  /// A new name for a write.
  std::string operation_id();

  const ClientOptions options;
  const std::unique_ptr<Transport> transport;

 private:
  const std::string prefix_;
  std::atomic<std::uint64_t> next_operation_{0};
};

/// Whether it can succeed another time.
bool worth_repeating(const Outcome& outcome);
/// attempt: 1 after the first failure.
absl::Duration pause_before(int attempt, absl::Duration pushback);

void to_proto(const RecordBatch& batch, v1::RecordBatch* out);

}  // namespace turboquant::service
