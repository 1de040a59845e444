#include "service/server.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "service/api.h"
#include "service/auth.h"
#include "service/metrics.h"
#include "service/version.h"
#include "service/worker_pool.h"

namespace turboquant::service {
namespace {

constexpr std::size_t kAdminThreads = 4;

class ServerImpl final : public Server {
 public:
  ServerImpl(const ServerOptions& options, std::ostream& log)
      : options_(options), log_(log, options.log_level) {}

  ~ServerImpl() override { (void)stop(); }

  absl::Status start() {
    auto auth = Authenticator::create(options_.token_file);
    if (!auth.ok()) return auth.status();
    auth_ = *std::move(auth);
    if (absl::Status status = open_store(); !status.ok()) return status;
    const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
    const std::size_t threads = options_.compute_threads > 0 ? options_.compute_threads : cores;
    compute_ = std::make_unique<WorkerPool>(threads, options_.max_queued, true);
    writes_ = std::make_unique<WorkerPool>(options_.write_threads, options_.max_queued, true);
    admin_ = std::make_unique<WorkerPool>(kAdminThreads, options_.max_queued, true);
    batcher_ = std::make_unique<MicroBatcher>(*compute_, options_.batch);
    api_ = std::make_unique<Api>(*store_, *batcher_, options_.limits);
    std::vector<Method> methods = api_->methods();
    std::vector<std::string> paths;
    for (const Method& method : methods) paths.push_back(method.path);
    metrics_ = std::make_unique<Metrics>(paths, [this] { return gauges(); });
    if (!options_.metrics_address.empty()) {
      if (absl::Status status = metrics_->serve(options_.metrics_address); !status.ok()) {
        return status;
      }
    }
    FrontOptions front = options_.front;
    front.max_message_bytes = options_.limits.max_message_bytes;
    front_ = std::make_unique<GrpcFront>(
        front, GrpcFront::Parts{std::move(methods), auth_.get(), metrics_.get(), &log_,
                                Pools{compute_.get(), writes_.get(), admin_.get()}});
    if (absl::Status status = front_->start(); !status.ok()) return status;
    front_->set_healthy(kWritesHealth, store_->writable().ok());
    watcher_ = std::thread([this] { watch(); });
    log_.write(LogLevel::kInfo, "serving",
               {{"version", std::string(kVersion)},
                {"address", options_.front.address},
                {"port", std::int64_t{front_->port()}},
                {"tls", !options_.front.tls.certificate.empty()},
                {"tokens", std::uint64_t{auth_->size()}},
                {"collections", std::uint64_t{store_->collections().size()}}});
    return absl::OkStatus();
  }

  int port() const override { return front_->port(); }
  std::string metrics() const override { return metrics_->text(); }

  absl::Status reload() override {
    const std::size_t before = auth_->size();
    absl::Status status = auth_->reload();
    const std::lock_guard lock(reload_mutex_);
    const bool news = reload_status_ != status;  // it is tried every second
    reload_status_ = status;
    if (!status.ok()) {
      if (news) {
        log_.write(LogLevel::kError, "tokens not reloaded",
                   {{"message", std::string(status.message())}});
      }
    } else if (auth_->size() != before) {
      log_.write(LogLevel::kInfo, "tokens reloaded", {{"tokens", std::uint64_t{auth_->size()}}});
    }
    return status;
  }

  absl::Status stop() override {
    if (store_ == nullptr) return absl::OkStatus();
    log_.write(LogLevel::kInfo, "stopping");
    if (watcher_.joinable()) {
      {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
      }
      wake_.notify_all();
      watcher_.join();
    }
    if (front_ != nullptr) front_->shutdown(absl::Now() + options_.drain);
    front_.reset();
    metrics_.reset();  // it reads from what goes next
    batcher_.reset();
    for (auto* pool : {&admin_, &writes_, &compute_}) pool->reset();
    const absl::Status status = store_->close();
    store_.reset();
    log_.write(status.ok() ? LogLevel::kInfo : LogLevel::kError, "stopped",
               {{"message", std::string(status.message())}});
    return status;
  }

 private:
  absl::Status open_store() {
    StoreOptions options;
    options.memory_limit_bytes = options_.limits.memory_limit_bytes;
    options.cache_bytes = options_.cache_bytes;
    options.backup_path = options_.backup_dir;
    const absl::Time begin = absl::Now();
    auto store = Store::open(options_.data_dir, options);
    if (!store.ok()) return store.status();
    store_ = *std::move(store);
    log_.write(LogLevel::kInfo, "store opened",
               {{"path", options_.data_dir},
                {"seconds", absl::ToDoubleSeconds(absl::Now() - begin)},
                {"memory_bytes", store_->stats().memory_bytes}});
    return absl::OkStatus();
  }

  Gauges gauges() const {
    Gauges state;
    state.compute_queue = compute_->queued();
    state.write_queue = writes_->queued();
    state.admin_queue = admin_->queued();
    state.batches = batcher_->batches();
    state.batched_queries = batcher_->queries();
    state.writable = store_->writable().ok();
    state.store = store_->stats();
    state.collections = store_->collections();
    return state;
  }

  // Once a second: whether writes are taken, and whether the token file changed.
  void watch() {
    bool writable = store_->writable().ok();
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, std::chrono::seconds(1), [this] { return stopping_; })) {
      lock.unlock();
      const absl::Status status = store_->writable();
      if (status.ok() != writable) {
        writable = status.ok();
        front_->set_healthy(kWritesHealth, writable);
        log_.write(writable ? LogLevel::kInfo : LogLevel::kError,
                   writable ? "writes are taken again" : "writes are refused",
                   {{"message", std::string(status.message())}});
      }
      (void)reload();
      lock.lock();
    }
  }

  const ServerOptions options_;
  Log log_;
  std::unique_ptr<Authenticator> auth_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<WorkerPool> compute_;
  std::unique_ptr<WorkerPool> writes_;
  std::unique_ptr<WorkerPool> admin_;
  std::unique_ptr<MicroBatcher> batcher_;
  std::unique_ptr<Api> api_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<GrpcFront> front_;
  std::mutex reload_mutex_;
  absl::Status reload_status_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread watcher_;
};

}  // namespace

bool is_loopback(const std::string& address) {
  if (absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:")) {
    return true;
  }
  const std::string host = address.substr(0, address.rfind(':'));
  return host == "localhost" || host == "[::1]" ||
         (absl::StartsWith(host, "127.") &&
          host.find_first_not_of("0123456789.") == std::string::npos);
}

absl::Status check(const ServerOptions& options) {
  if (options.data_dir.empty()) return absl::InvalidArgumentError("--data-dir is needed");
  const TlsFiles& tls = options.front.tls;
  if (tls.certificate.empty() != tls.key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key go together");
  }
  if (!tls.client_ca.empty() && tls.certificate.empty()) {
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
  }
  const bool guarded = !tls.certificate.empty() && !options.token_file.empty();
  if (!is_loopback(options.front.address) && !guarded && !options.insecure) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.front.address,
                     " can be reached from other machines: give --tls-cert, --tls-key "
                     "and --tokens, or spell out --insecure"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Server>> Server::start(const ServerOptions& options,
                                                      std::ostream& log) {
  if (absl::Status status = check(options); !status.ok()) return status;
  auto server = std::make_unique<ServerImpl>(options, log);
  if (absl::Status status = server->start(); !status.ok()) return status;
  return server;
}

}  // namespace turboquant::service
