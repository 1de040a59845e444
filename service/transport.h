// The client's side of gRPC: calls of methods by name, streams, pauses. No gRPC type is shown.
#pragma once

#include <absl/status/status.h>
#include <absl/time/time.h>
#include <google/protobuf/message.h>

#include <functional>
#include <memory>
#include <string>

#include "turboquant/client.h"

namespace turboquant::service {

/// How a call or stream ended.
struct Outcome {
  absl::Status status;
  /// The server's wish: after how long to try again. Zero: it has none.
  absl::Duration pushback = absl::ZeroDuration();
};

/// A call under way.
class Attempt {
 public:
  virtual ~Attempt() = default;
  virtual void cancel() = 0;
};

/// A stream under way. Its callbacks may come until on_done was called.
class TransportStream {
 public:
  virtual ~TransportStream() = default;
  /// Sends a serialized message after those before. Ignored when the stream has ended.
  virtual void write(std::shared_ptr<const std::string> message) = 0;
  /// Nothing more will be sent.
  virtual void finish() = 0;
  virtual void cancel() = 0;
};

struct StreamCallbacks {
  std::function<void(const std::string& message)> on_message;
  std::function<void(const Outcome&)> on_done;  ///< once, last
};

class Transport {
 public:
  virtual ~Transport() = default;

  /// response: filled before done is called with OK; lives until then.
  virtual std::shared_ptr<Attempt> call(const std::string& path,
                                        std::shared_ptr<const std::string> request,
                                        google::protobuf::Message* response, absl::Time deadline,
                                        std::function<void(const Outcome&)> done) = 0;
  virtual std::shared_ptr<TransportStream> stream(const std::string& path,
                                                  StreamCallbacks callbacks) = 0;
  /// After a failure, before a pause: connections that were lost are made again now, not when
  /// gRPC's own pauses end, in which calls fail without a try.
  virtual void reconnect() = 0;
  virtual void after(absl::Duration pause, std::function<void()> work) = 0;
};

std::unique_ptr<Transport> make_transport(const ClientOptions& options);

}  // namespace turboquant::service
