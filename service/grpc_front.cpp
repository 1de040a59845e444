#include "service/grpc_front.h"

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/impl/codegen/server_callback_handlers.h>
#include <grpcpp/impl/codegen/service_type.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <optional>
#include <utility>

#include "service/errors.h"

namespace turboquant::service {
namespace {

// Requests up to here are parsed in gRPC's thread when their handler is quick.
constexpr std::size_t kSmallRequest = std::size_t{64} << 10;
constexpr absl::Duration kBusyPushback = absl::Milliseconds(20);
constexpr unsigned kCertificateReloadSeconds = 60;
// gRPC's own limit lies this much above ours, so that most requests that are too large get an
// answer with a reason.
constexpr std::uint64_t kReceiveSlack = std::uint64_t{16} << 20;

struct Shared {
  FrontOptions options;
  GrpcFront::Parts parts;
  std::atomic<std::uint64_t> next_request{1};

  WorkerPool& pool(Workers workers) const {
    if (workers == Workers::kWrites) return *parts.pools.writes;
    return workers == Workers::kAdmin ? *parts.pools.admin : *parts.pools.compute;
  }
};

std::string header(const grpc::CallbackServerContext& context, const char* name) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(name);
  if (found == metadata.end()) return {};
  return std::string(found->second.data(), found->second.size());
}

bool printable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

double seconds_between(absl::Time from, absl::Time to) { return absl::ToDoubleSeconds(to - from); }

// One call of a method, from its headers to its end. On the wire a call with one request and a
// stream look alike; both are read as streams, so that the headers can be judged before the body.
class Rpc final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Rpc(Shared& shared, std::size_t method, grpc::CallbackServerContext* context)
      : shared_(shared),
        index_(method),
        method_(shared.parts.methods[method]),
        context_(context),
        started_(absl::Now()) {
    shared_.parts.metrics->call_started(index_);
    if (absl::Status status = admit(); !status.ok()) {
      finish(status);
    } else {
      StartRead(&request_);
    }
  }

  void OnReadDone(bool ok) override {
    if (ok) return dispatch();
    if (method_.stream) return finish(absl::OkStatus());  // the client has sent all
    finish(cancelled_ ? make_error(absl::StatusCode::kCancelled, "CANCELLED", "cancelled")
                      : invalid("MALFORMED_REQUEST", "the call has no request, or one too large"));
  }

  void OnWriteDone(bool ok) override {
    if (!method_.stream) return;  // the status went with the answer
    call_.reset();
    if (!ok) return finish(make_error(absl::StatusCode::kCancelled, "CANCELLED", "cancelled"));
    StartRead(&request_);
  }

  void OnCancel() override { cancelled_ = true; }

  void OnDone() override {
    const absl::Time now = absl::Now();
    shared_.parts.metrics->count_call(index_, code_, seconds_between(started_, now),
                                      absl::ToDoubleSeconds(queued_), rows_);
    write_log(now);
    delete this;
  }

 private:
  // Judges the headers.
  absl::Status admit() {
    request_id_ = header(*context_, "x-request-id");
    if (request_id_.empty() || request_id_.size() > 128 || !printable(request_id_)) {
      request_id_ = absl::StrCat(absl::Hex(absl::ToUnixMicros(started_)), "-",
                                 shared_.next_request.fetch_add(1, std::memory_order_relaxed));
    }
    context_->AddInitialMetadata("x-request-id", request_id_);
    auto caller = shared_.parts.auth->authenticate(header(*context_, "authorization"));
    if (!caller.ok()) return caller.status();
    caller_ = *std::move(caller);
    if (caller_->role < method_.role) {
      return make_error(absl::StatusCode::kPermissionDenied, "ROLE",
                        absl::StrCat("the token's role does not cover ", method_.path));
    }
    return within_rate();
  }

  absl::Status within_rate() {
    if (caller_->rate == nullptr) return absl::OkStatus();
    const absl::Duration wait = caller_->rate->take(absl::Now());
    if (wait == absl::ZeroDuration()) return absl::OkStatus();
    pushback_ = wait;
    return make_error(absl::StatusCode::kResourceExhausted, "RATE_LIMITED",
                      "the token's requests a second are used up");
  }

  // Gives the request that was read to the workers.
  void dispatch() {
    turns_.load(std::memory_order_acquire);
    call_ = std::make_unique<Call>();
    call_->caller = caller_;
    call_->cancelled = &cancelled_;
    call_->deadline = absl::FromChrono(context_->deadline());
    dispatched_ = absl::Now();
    if (request_.Length() > shared_.options.max_message_bytes) {
      return answer(
          make_error(absl::StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE",
                     absl::StrCat("the request has ", request_.Length(), " bytes, more than ",
                                  shared_.options.max_message_bytes)));
    }
    if (call_->deadline <= dispatched_) {
      return answer(make_error(absl::StatusCode::kDeadlineExceeded, "DEADLINE",
                               "the deadline passed before the work began"));
    }
    message_ = nullptr;
    if (method_.quick != nullptr && request_.Length() <= kSmallRequest && handle_quickly()) return;
    if (!shared_.pool(method_.workers).submit([this] { handle(); })) {
      pushback_ = kBusyPushback;
      answer(make_error(absl::StatusCode::kResourceExhausted, "SERVER_BUSY",
                        "too many requests are waiting; try again a little later"));
    }
  }

  // False when a worker has to do it. Once the answer is on its way this object may be gone.
  bool handle_quickly() {
    bool done = true;
    guarded([this, &done] {
      if (parse()) done = method_.quick(*call_, *message_, answering());
    });
    return done;
  }

  void handle() {
    queued_ += absl::Now() - dispatched_;
    if (cancelled_) {
      return answer(make_error(absl::StatusCode::kCancelled, "CANCELLED", "cancelled"));
    }
    guarded([this] {
      if (message_ != nullptr || parse()) method_.handle(*call_, *message_, answering());
    });
  }

  // False when the answer is that it cannot be parsed.
  bool parse() {
    message_ = method_.request->New(&call_->arena);
    grpc::ProtoBufferReader reader(&request_);
    const bool good = message_->ParseFromZeroCopyStream(&reader);
    request_.Clear();
    if (!good) {
      answer(invalid("MALFORMED_REQUEST",
                     "the request is not a message of its type, or nested too deeply"));
    }
    return good;
  }

  Done answering() {
    return [this](absl::StatusOr<const Message*> result) { answer(std::move(result)); };
  }

  template <class Work>
  void guarded(const Work& work) {
    try {
      work();
    } catch (const std::bad_alloc&) {
      answer(make_error(absl::StatusCode::kResourceExhausted, "MEMORY_LIMIT", "out of memory"));
    } catch (const std::exception& error) {
      answer(make_error(absl::StatusCode::kInternal, "INTERNAL", error.what()));
    }
  }

  void answer(absl::StatusOr<const Message*> result) {
    rows_ += call_->rows;
    if (!result.ok()) return finish(result.status());
    const std::size_t bytes = (*result)->ByteSizeLong();
    if (bytes > shared_.options.max_message_bytes) {
      return finish(make_error(
          absl::StatusCode::kResourceExhausted, "ANSWER_TOO_LARGE",
          absl::StrCat("the answer has ", bytes, " bytes, more than ",
                       shared_.options.max_message_bytes, "; ask for fewer records or parts")));
    }
    grpc::Slice slice(bytes);
    (*result)->SerializeWithCachedSizesToArray(const_cast<std::uint8_t*>(slice.begin()));
    response_ = grpc::ByteBuffer(&slice, 1);
    if (method_.stream) {
      turns_.fetch_add(1, std::memory_order_release);
      StartWrite(&response_);
    } else {
      StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    }
  }

  void finish(const absl::Status& status) {
    if (pushback_ > absl::ZeroDuration()) {
      context_->AddTrailingMetadata(
          "grpc-retry-pushback-ms",
          absl::StrCat(std::max<std::int64_t>(1, absl::ToInt64Milliseconds(pushback_))));
    }
    const WireStatus wire = to_wire(status);
    code_ = wire.code;
    if (!status.ok()) {
      reason_ = error_reason(status);
      sentence_ = wire.message;
    }
    Finish(grpc::Status(static_cast<grpc::StatusCode>(wire.code), wire.message, wire.details));
  }

  void write_log(absl::Time now) const {
    Log& log = *shared_.parts.log;
    const absl::Duration taken = now - started_;
    const bool slow = !method_.stream && taken >= shared_.options.slow_query;
    const bool failed = code_ == static_cast<int>(absl::StatusCode::kInternal) ||
                        code_ == static_cast<int>(absl::StatusCode::kDataLoss) ||
                        code_ == static_cast<int>(absl::StatusCode::kUnknown);
    const LogLevel level = failed ? LogLevel::kError : slow ? LogLevel::kWarning : LogLevel::kDebug;
    if (!log.enabled(level)) return;
    log.write(level, slow ? "slow request" : "request",
              {{"request_id", request_id_},
               {"method", method_.path},
               {"peer", context_->peer()},
               {"caller", caller_ == nullptr ? std::string() : caller_->name},
               {"collection", call_ == nullptr ? std::string() : call_->collection},
               {"rows", rows_},
               {"k", call_ == nullptr ? std::uint64_t{0} : call_->k},
               {"filtered", call_ != nullptr && call_->filtered},
               {"code", code_name(code_)},
               {"reason", reason_},
               {"message", sentence_},
               {"queued_ms", absl::ToDoubleMilliseconds(queued_)},
               {"ms", absl::ToDoubleMilliseconds(taken)}});
  }

  Shared& shared_;
  const std::size_t index_;
  const Method& method_;
  grpc::CallbackServerContext* const context_;
  const absl::Time started_;
  absl::Time dispatched_;
  absl::Duration queued_ = absl::ZeroDuration();
  absl::Duration pushback_ = absl::ZeroDuration();
  std::atomic<bool> cancelled_{false};
  // Of a stream. gRPC has one message after the other handled; this tells the thread sanitizer,
  // which does not see gRPC's own locks.
  std::atomic<unsigned> turns_{0};
  std::shared_ptr<const Caller> caller_;
  std::string request_id_;
  std::unique_ptr<Call> call_;
  Message* message_ = nullptr;  // of call_
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
  int code_ = 0;
  std::string reason_;
  std::string sentence_;
  std::uint64_t rows_ = 0;
};

// The methods of one service. Registered by name, as generated code does, so that reflection lists
// the service.
class ServiceMethods final : public grpc::Service {
 public:
  ServiceMethods(Shared& shared, const std::string& service) {
    int added = 0;
    for (std::size_t i = 0; i < shared.parts.methods.size(); ++i) {
      const Method& method = shared.parts.methods[i];
      if (method.path.compare(1, service.size(), service) != 0) continue;
      AddMethod(new grpc::internal::RpcServiceMethod(
          method.path.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING, nullptr));
      MarkMethodRawCallback(
          added++, new grpc::internal::CallbackBidiHandler<grpc::ByteBuffer, grpc::ByteBuffer>(
                       [&shared, i](grpc::CallbackServerContext* context) {
                         return new Rpc(shared, i, context);
                       }));
    }
  }
};

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> credentials(const TlsFiles& tls) {
  if (tls.certificate.empty()) return grpc::InsecureServerCredentials();
  for (const std::string& path : {tls.certificate, tls.key, tls.client_ca}) {
    std::FILE* const file = path.empty() ? nullptr : std::fopen(path.c_str(), "rb");
    if (file == nullptr && !path.empty()) {
      return absl::NotFoundError(absl::StrCat("cannot read ", path));
    }
    if (file != nullptr) std::fclose(file);
  }
  // Reads the files again once a minute, so that certificates can be renewed.
  auto provider = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      tls.key, tls.certificate, tls.client_ca, kCertificateReloadSeconds);
  grpc::experimental::TlsServerCredentialsOptions options(provider);
  options.watch_identity_key_cert_pairs();
  if (!tls.client_ca.empty()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  auto made = grpc::experimental::TlsServerCredentials(options);
  if (made == nullptr) return absl::InvalidArgumentError("the TLS files cannot be used");
  return made;
}

}  // namespace

struct GrpcFront::Impl {
  Shared shared;
  std::vector<std::unique_ptr<ServiceMethods>> services;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

GrpcFront::GrpcFront(const FrontOptions& options, Parts parts) : impl_(std::make_unique<Impl>()) {
  impl_->shared.options = options;
  impl_->shared.parts = std::move(parts);
}

GrpcFront::~GrpcFront() {
  if (impl_->server != nullptr) shutdown(absl::Now());
}

absl::Status GrpcFront::start() {
  const FrontOptions& options = impl_->shared.options;
  auto creds = credentials(options.tls);
  if (!creds.ok()) return creds.status();
  grpc::EnableDefaultHealthCheckService(true);
  static std::once_flag reflection_once;
  if (options.reflection) {
    std::call_once(reflection_once, grpc::reflection::InitProtoReflectionServerBuilderPlugin);
  }
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.address, *creds, &impl_->port);
  for (const char* name : {kSearchHealth, kAdminHealth}) {
    impl_->services.push_back(std::make_unique<ServiceMethods>(impl_->shared, name));
    builder.RegisterService(impl_->services.back().get());
  }
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes + kReceiveSlack));
  builder.SetMaxSendMessageSize(-1);  // answers are measured before they are sent
  builder.SetResourceQuota(grpc::ResourceQuota("transport").Resize(options.transport_memory_bytes));
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  // Headers: 8 KiB, gRPC's own limit. tests/service/raw_http2_test.py shows that going beyond it
  // with odd headers before (CVE-2023-1428) does not end the process.
  impl_->server = builder.BuildAndStart();
  if (impl_->server == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.address));
  }
  for (const char* name : {kSearchHealth, kAdminHealth}) set_healthy(name, true);
  return absl::OkStatus();
}

int GrpcFront::port() const { return impl_->port; }

void GrpcFront::set_healthy(const std::string& name, bool healthy) {
  if (auto* health = impl_->server->GetHealthCheckService()) {
    health->SetServingStatus(name, healthy);
  }
}

void GrpcFront::shutdown(absl::Time deadline) {
  if (impl_->server == nullptr) return;
  if (auto* health = impl_->server->GetHealthCheckService()) health->SetServingStatus(false);
  impl_->server->Shutdown(absl::ToChronoTime(deadline));
  impl_->server->Wait();
  impl_->server.reset();
}

}  // namespace turboquant::service
