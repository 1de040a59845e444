#include "service/transport.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <grpcpp/alarm.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <fstream>
#include <iterator>
#include <mutex>
#include <utility>
#include <vector>

#include "service/errors.h"

namespace turboquant::service {
namespace {

constexpr std::int64_t kReconnectMilliseconds = 20;  // between two

grpc::ByteBuffer to_buffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// False when the buffer cannot be read.
bool to_string(const grpc::ByteBuffer& buffer, std::string& out) {
  grpc::Slice slice;
  if (!buffer.DumpToSingleSlice(&slice).ok()) return false;
  out.assign(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return true;
}

// cancelled: by this side.
Outcome outcome_of(const grpc::Status& status, const grpc::ClientContext& context, bool cancelled) {
  Outcome outcome;
  if (status.ok()) return outcome;
  if (status.error_code() == grpc::StatusCode::CANCELLED && !cancelled &&
      status.error_details().empty()) {
    // No method of the server said so: gRPC drops calls that arrive while a server shuts down.
    outcome.status = absl::UnavailableError("the server dropped the call; it may be stopping");
    return outcome;
  }
  outcome.status = from_wire(
      {static_cast<int>(status.error_code()), status.error_message(), status.error_details()});
  const auto& metadata = context.GetServerTrailingMetadata();
  const auto found = metadata.find("grpc-retry-pushback-ms");
  std::int64_t milliseconds = 0;
  if (found != metadata.end() &&
      absl::SimpleAtoi(absl::string_view(found->second.data(), found->second.size()),
                       &milliseconds)) {
    outcome.pushback = absl::Milliseconds(milliseconds);
  }
  return outcome;
}

class UnaryCall final : public Attempt, public std::enable_shared_from_this<UnaryCall> {
 public:
  void cancel() override {
    cancelled = true;
    context.TryCancel();
  }

  grpc::ClientContext context;
  grpc::ByteBuffer request;
  grpc::ByteBuffer answer;
  std::atomic<bool> cancelled{false};
};

using BidiReactor = grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

class StreamReactor final : public TransportStream, public BidiReactor {
 public:
  explicit StreamReactor(StreamCallbacks callbacks) : callbacks_(std::move(callbacks)) {}

  void start(grpc::GenericStub& stub, const std::string& path,
             std::shared_ptr<StreamReactor> self) {
    self_ = std::move(self);
    stub.PrepareBidiStreamingCall(&context, path, {}, this);
    AddHold();  // writes come from other threads; released in let_go()
    StartRead(&read_);
    StartCall();
  }

  void write(std::shared_ptr<const std::string> message) override {
    const std::lock_guard lock(mutex_);
    if (ended_ || finishing_) return;
    waiting_.push_back(std::move(message));
    if (!writing_) write_next();
  }

  void finish() override {
    bool idle = false;
    {
      const std::lock_guard lock(mutex_);
      if (finishing_ || ended_) return;
      finishing_ = true;
      idle = !writing_;
      if (idle) StartWritesDone();
    }
    if (idle) let_go();
  }

  void cancel() override {
    cancelled_ = true;
    context.TryCancel();
  }

  void OnWriteDone(bool ok) override {
    bool last = false;
    {
      const std::lock_guard lock(mutex_);
      writing_ = false;
      if (ended_ || !ok) return;  // the end of reading says the rest
      if (!waiting_.empty()) {
        write_next();
      } else if (finishing_) {
        StartWritesDone();
        last = true;
      }
    }
    if (last) let_go();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      {
        const std::lock_guard lock(mutex_);
        ended_ = true;
        waiting_.clear();
      }
      return let_go();
    }
    std::string message;
    if (to_string(read_, message)) callbacks_.on_message(message);
    read_.Clear();
    StartRead(&read_);
  }

  void OnDone(const grpc::Status& status) override {
    callbacks_.on_done(outcome_of(status, context, cancelled_));
    callbacks_ = {};
    self_.reset();  // may be the last
  }

  grpc::ClientContext context;

 private:
  void write_next() {
    write_ = to_buffer(*waiting_.front());
    waiting_.pop_front();
    writing_ = true;
    StartWrite(&write_);
  }

  void let_go() {
    if (!let_go_.exchange(true)) RemoveHold();
  }

  StreamCallbacks callbacks_;
  std::shared_ptr<StreamReactor> self_;
  grpc::ByteBuffer read_;
  std::mutex mutex_;
  std::deque<std::shared_ptr<const std::string>> waiting_;
  grpc::ByteBuffer write_;
  bool writing_ = false;
  bool finishing_ = false;
  bool ended_ = false;
  std::atomic<bool> let_go_{false};
  std::atomic<bool> cancelled_{false};
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// gRPC's callbacks run in threads of one completion queue, which goes with the last channel that
// makes such calls. Where that channel is let go of by a callback itself, as by a call whose client
// was destroyed as soon as it had its answer, gRPC (1.51) has one of those threads wait for itself,
// frees the queue, and returns into it. A channel that is never freed keeps the queue; the call
// makes it take part, and fails at once, since a channel without credentials leads nowhere.
void keep_callback_threads() {
  static const bool kept = [] {
    struct Nowhere {
      grpc::GenericStub stub{grpc::CreateChannel("nowhere", nullptr)};
      grpc::ClientContext context;
      grpc::ByteBuffer request = to_buffer("");
      grpc::ByteBuffer answer;
    };
    static auto* const nowhere = new Nowhere;
    nowhere->stub.UnaryCall(&nowhere->context, "/nowhere", {}, &nowhere->request, &nowhere->answer,
                            [](const grpc::Status&) {});
    return true;
  }();
  static_cast<void>(kept);
}

class GrpcTransport final : public Transport {
 public:
  explicit GrpcTransport(const ClientOptions& options) : token_(options.token) {
    keep_callback_threads();
    for (std::size_t i = 0; i < std::max<std::size_t>(1, options.connections); ++i) {
      grpc::ChannelArguments arguments;
      arguments.SetMaxReceiveMessageSize(-1);
      arguments.SetMaxSendMessageSize(-1);
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection for each channel
      arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
      // In truth the time that one attempt to connect may take.
      arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10'000);
      arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
      arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
      if (!options.server_name.empty()) {
        arguments.SetString(GRPC_SSL_TARGET_NAME_OVERRIDE_ARG, options.server_name);
      }
      channels_.push_back(
          grpc::CreateCustomChannel(options.address, credentials(options), arguments));
      stubs_.push_back(std::make_unique<grpc::GenericStub>(channels_.back()));
    }
  }

  std::shared_ptr<Attempt> call(const std::string& path, std::shared_ptr<const std::string> request,
                                google::protobuf::Message* response, absl::Time deadline,
                                std::function<void(const Outcome&)> done) override {
    auto attempt = std::make_shared<UnaryCall>();
    attempt->context.set_deadline(absl::ToChronoTime(deadline));
    authorise(attempt->context);
    attempt->request = to_buffer(*request);
    next_stub().UnaryCall(
        &attempt->context, path, {}, &attempt->request, &attempt->answer,
        [attempt, response, done = std::move(done)](const grpc::Status& status) {
          Outcome outcome = outcome_of(status, attempt->context, attempt->cancelled);
          std::string bytes;
          if (status.ok() &&
              !(to_string(attempt->answer, bytes) && response->ParseFromString(bytes))) {
            outcome.status = absl::InternalError("the answer is not a message of its type");
          }
          done(outcome);
        });
    return attempt;
  }

  std::shared_ptr<TransportStream> stream(const std::string& path,
                                          StreamCallbacks callbacks) override {
    auto reactor = std::make_shared<StreamReactor>(std::move(callbacks));
    authorise(reactor->context);
    reactor->start(next_stub(), path, reactor);
    return reactor;
  }

  void reconnect() override {
    // However many calls failed.
    const std::int64_t now = absl::ToUnixMillis(absl::Now());
    std::int64_t last = reconnected_.load(std::memory_order_relaxed);
    if (now - last < kReconnectMilliseconds && now >= last) return;
    if (!reconnected_.compare_exchange_strong(last, now, std::memory_order_relaxed)) return;
    for (const auto& channel : channels_) {
      grpc::experimental::ChannelResetConnectionBackoff(channel.get());
    }
  }

  void after(absl::Duration pause, std::function<void()> work) override {
    auto alarm = std::make_shared<grpc::Alarm>();
    // The alarm keeps its callback, which keeps the alarm: the callback ends that.
    alarm->Set(absl::ToChronoTime(absl::Now() + pause),
               [alarm, work = std::move(work)](bool) mutable {
                 work();
                 alarm.reset();
               });
  }

 private:
  static std::shared_ptr<grpc::ChannelCredentials> credentials(const ClientOptions& options) {
    if (!options.tls) return grpc::InsecureChannelCredentials();
    grpc::SslCredentialsOptions ssl;
    if (!options.ca_file.empty()) ssl.pem_root_certs = read_file(options.ca_file);
    if (!options.certificate_file.empty()) {
      ssl.pem_cert_chain = read_file(options.certificate_file);
      ssl.pem_private_key = read_file(options.key_file);
    }
    return grpc::SslCredentials(ssl);
  }

  void authorise(grpc::ClientContext& context) const {
    if (!token_.empty()) context.AddMetadata("authorization", absl::StrCat("Bearer ", token_));
  }

  grpc::GenericStub& next_stub() {
    return *stubs_[next_.fetch_add(1, std::memory_order_relaxed) % stubs_.size()];
  }

  const std::string token_;
  std::vector<std::shared_ptr<grpc::Channel>> channels_;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;  // one for each
  std::atomic<std::int64_t> reconnected_{0};
  std::atomic<std::size_t> next_{0};
};

}  // namespace

std::unique_ptr<Transport> make_transport(const ClientOptions& options) {
  return std::make_unique<GrpcTransport>(options);
}

}  // namespace turboquant::service
