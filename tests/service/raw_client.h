// Sends any message to any method, as no well-behaved client would.
#pragma once

#include <absl/time/time.h>
#include <google/protobuf/message.h>

#include <memory>
#include <string>

namespace turboquant::service_test {

struct RawAnswer {
  int code = 0;
  std::string reason;  ///< of google.rpc.ErrorInfo
  std::string message;
  std::string request_id;
  std::string pushback_ms;
};

struct RawOptions {
  std::string token;
  std::string request_id;
  absl::Duration timeout = absl::Minutes(10);  // see kPatience in server_fixture.h
};

/// response may be null.
RawAnswer raw_call(const std::string& address, const std::string& path, const std::string& request,
                   google::protobuf::Message* response, const RawOptions& options = {});
RawAnswer raw_call(const std::string& address, const std::string& path,
                   const google::protobuf::Message& request, google::protobuf::Message* response,
                   const RawOptions& options = {});

/// Of grpc.health.v1: "SERVING", "NOT_SERVING" or the name of an error.
std::string health(const std::string& address, const std::string& service);

/// An upsert whose body never comes, held open until the object goes.
class StalledCall {
 public:
  StalledCall(const std::string& address, const std::string& path);
  ~StalledCall();
  StalledCall(const StalledCall&) = delete;
  StalledCall& operator=(const StalledCall&) = delete;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace turboquant::service_test
