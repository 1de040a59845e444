#include "tests/service/raw_client.h"

#include <absl/time/clock.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <memory>
#include <mutex>

#include "service/errors.h"
#include "turboquant/record.h"

namespace turboquant::service_test {
namespace {

std::shared_ptr<grpc::Channel> channel_to(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::string value_of(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata,
                     const char* name) {
  const auto found = metadata.find(name);
  return found == metadata.end() ? std::string()
                                 : std::string(found->second.data(), found->second.size());
}

}  // namespace

RawAnswer raw_call(const std::string& address, const std::string& path, const std::string& request,
                   google::protobuf::Message* response, const RawOptions& options) {
  grpc::GenericStub stub(channel_to(address));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
  if (!options.token.empty()) context.AddMetadata("authorization", "Bearer " + options.token);
  if (!options.request_id.empty()) context.AddMetadata("x-request-id", options.request_id);
  const grpc::Slice slice(request);
  const grpc::ByteBuffer sent(&slice, 1);
  grpc::ByteBuffer received;
  std::mutex mutex;
  std::condition_variable wake;
  bool done = false;
  grpc::Status status;
  stub.UnaryCall(&context, path, {}, &sent, &received, [&](const grpc::Status& result) {
    const std::lock_guard lock(mutex);
    status = result;
    done = true;
    wake.notify_all();
  });
  std::unique_lock lock(mutex);
  wake.wait(lock, [&] { return done; });
  if (status.ok() && response != nullptr) {
    grpc::Slice all;
    if (!received.DumpToSingleSlice(&all).ok() ||
        !response->ParseFromArray(all.begin(), static_cast<int>(all.size()))) {
      return {-1, "", "the answer cannot be parsed", "", ""};
    }
  }
  RawAnswer answer;
  answer.code = status.error_code();
  answer.message = status.error_message();
  answer.reason = error_reason(
      service::from_wire({status.error_code(), status.error_message(), status.error_details()}));
  answer.request_id = value_of(context.GetServerInitialMetadata(), "x-request-id");
  answer.pushback_ms = value_of(context.GetServerTrailingMetadata(), "grpc-retry-pushback-ms");
  return answer;
}

RawAnswer raw_call(const std::string& address, const std::string& path,
                   const google::protobuf::Message& request, google::protobuf::Message* response,
                   const RawOptions& options) {
  return raw_call(address, path, request.SerializeAsString(), response, options);
}

std::string health(const std::string& address, const std::string& service) {
  grpc::GenericStub stub(channel_to(address));
  google::protobuf::UnknownFieldSet request;
  request.AddLengthDelimited(1, service);
  std::string bytes;
  request.SerializeToString(&bytes);
  grpc::ClientContext context;
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer sent(&slice, 1);
  grpc::CompletionQueue queue;
  grpc::ByteBuffer received;
  grpc::Status status;
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", sent, &queue);
  call->StartCall();
  call->Finish(&received, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) return service::code_name(status.error_code());
  grpc::Slice all;
  google::protobuf::UnknownFieldSet answer;
  if (!received.DumpToSingleSlice(&all).ok() ||
      !answer.ParseFromArray(all.begin(), static_cast<int>(all.size()))) {
    return "unreadable";
  }
  return answer.field_count() == 1 && answer.field(0).varint() == 1 ? "SERVING" : "NOT_SERVING";
}

struct StalledCall::Parts {
  explicit Parts(const std::string& address) : stub(channel_to(address)) {}

  grpc::GenericStub stub;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call;
};

StalledCall::StalledCall(const std::string& address, const std::string& path)
    : parts_(std::make_unique<Parts>(address)) {
  parts_->call = parts_->stub.PrepareCall(&parts_->context, path, &parts_->queue);
  parts_->call->StartCall(nullptr);
  void* tag = nullptr;
  bool ok = false;
  parts_->queue.Next(&tag, &ok);
}

StalledCall::~StalledCall() {
  parts_->context.TryCancel();
  grpc::Status status;
  parts_->call->Finish(&status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  parts_->queue.Next(&tag, &ok);
  parts_->queue.Shutdown();
  while (parts_->queue.Next(&tag, &ok)) {
  }
}

}  // namespace turboquant::service_test
