#include "service/bulk_stream.h"

#include <absl/time/clock.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "service/convert.h"
#include "service/errors.h"

namespace turboquant::service {
namespace {

constexpr const char* kPath = "/turboquant.v1.SearchService/BulkAdd";

// How many batches to keep under way: one more as long as that raised the rate of rows, one less
// when the rate fell.
class Window {
 public:
  explicit Window(std::size_t most) : most_(std::max<std::size_t>(most, 1)) {}

  std::size_t size() const { return std::min(size_, most_); }

  void acknowledged(std::size_t rows, absl::Time now) {
    if (since_ == absl::InfinitePast()) since_ = now;
    rows_ += rows;
    if (++batches_ < 2 * size_ + 2) return;
    const double seconds = absl::ToDoubleSeconds(now - since_);
    const double rate = seconds > 0 ? static_cast<double>(rows_) / seconds : 0;
    if (rate > 1.03 * best_) {
      best_ = rate;
      size_ = std::min(size_ + 1, most_);
    } else if (rate < 0.7 * best_) {
      best_ = rate;
      size_ = std::max<std::size_t>(size_ - 1, 2);
    }
    rows_ = 0;
    batches_ = 0;
    since_ = now;
  }

 private:
  const std::size_t most_;
  std::size_t size_ = 2;
  std::size_t batches_ = 0;
  std::uint64_t rows_ = 0;
  double best_ = 0;
  absl::Time since_ = absl::InfinitePast();
};

struct Pending {
  std::uint64_t sequence = 0;
  std::size_t rows = 0;
  std::shared_ptr<const std::string> message;
  absl::Time sent;
};

// Shared with the callbacks of its streams, which can come late.
class Core : public std::enable_shared_from_this<Core> {
 public:
  Core(ClientImpl& client, std::string collection, const BulkOptions& options)
      : client_(client),
        collection_(std::move(collection)),
        options_(options),
        window_(options.max_window) {}

  void connect() {
    std::unique_lock lock(mutex_);
    open(lock);
  }

  absl::StatusOr<std::uint64_t> send(const RecordBatch& batch, const std::string& operation_id) {
    v1::BulkAddRequest request;
    request.set_collection(collection_);
    request.set_mode(options_.insert ? v1::BULK_MODE_INSERT : v1::BULK_MODE_UPSERT);
    request.set_sequence(next_);
    to_proto(WriteOptions{options_.durability,
                          operation_id.empty() ? client_.operation_id() : operation_id},
             request.mutable_options());
    to_proto(batch, request.mutable_batch());
    Pending pending{next_, batch.ids.size(),
                    std::make_shared<const std::string>(request.SerializeAsString()), absl::Now()};
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return !failed_.ok() || pending_.size() < window_.size(); });
    if (!failed_.ok()) return failed_;
    pending_.push_back(pending);
    const auto stream = stream_;
    lock.unlock();
    // Between two streams the new one sends it.
    if (stream != nullptr) stream->write(pending.message);
    return next_++;
  }

  absl::Status finish() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return !failed_.ok() || pending_.empty(); });
    finishing_ = true;
    if (stream_ != nullptr) {
      const auto stream = stream_;
      lock.unlock();
      stream->finish();
      lock.lock();
    }
    wake_.wait(lock, [this] { return ended_ || !failed_.ok(); });
    return failed_;
  }

  // The stream object goes: nothing is called any more.
  void abandon() {
    std::unique_lock lock(mutex_);
    finishing_ = true;
    if (failed_.ok() && !ended_) failed_ = absl::CancelledError("abandoned");
    const auto stream = stream_;
    lock.unlock();
    wake_.notify_all();
    if (stream != nullptr) stream->cancel();
    lock.lock();
    wake_.wait(lock, [this] { return !connected_ && !pausing_; });
  }

  std::size_t window() const {
    const std::lock_guard lock(mutex_);
    return window_.size();
  }

 private:
  // Starts a stream and sends again what was not acknowledged. Called with the lock held.
  void open(std::unique_lock<std::mutex>&) {
    connected_ = true;
    StreamCallbacks callbacks;
    callbacks.on_message = [self = shared_from_this()](const std::string& message) {
      self->acknowledge(message);
    };
    callbacks.on_done = [self = shared_from_this()](const Outcome& outcome) {
      self->done(outcome);
    };
    stream_ = client_.transport->stream(kPath, std::move(callbacks));
    for (const Pending& pending : pending_) stream_->write(pending.message);
  }

  void acknowledge(const std::string& message) {
    v1::BulkAddResponse response;
    BulkStream::Acknowledgement acknowledgement;
    {
      const std::lock_guard lock(mutex_);
      if (!response.ParseFromString(message) || pending_.empty() ||
          pending_.front().sequence != response.sequence()) {
        failed_ = absl::InternalError("an acknowledgement is not of the batch that was sent");
        wake_.notify_all();
        return;
      }
      const Pending& first = pending_.front();
      acknowledgement.sequence = first.sequence;
      acknowledgement.rows = first.rows;
      acknowledgement.latency = absl::Now() - first.sent;
      attempts_ = 0;
    }
    if (response.has_error()) {
      acknowledgement.result = make_error(static_cast<absl::StatusCode>(response.error().code()),
                                          response.error().reason(), response.error().message());
    } else {
      acknowledgement.result = from_proto(response.result());
    }
    if (options_.acknowledged) options_.acknowledged(acknowledgement);
    {
      const std::lock_guard lock(mutex_);
      pending_.pop_front();
      window_.acknowledged(acknowledgement.rows, absl::Now());
    }
    wake_.notify_all();
  }

  void done(const Outcome& outcome) {
    std::unique_lock lock(mutex_);
    stream_ = nullptr;
    connected_ = false;
    if (failed_.ok()) {
      if (finishing_ && pending_.empty()) {
        ended_ = true;
      } else if ((outcome.status.ok() || worth_repeating(outcome)) &&
                 ++attempts_ < client_.options.max_attempts) {
        pausing_ = true;
        lock.unlock();
        client_.transport->reconnect();
        client_.transport->after(pause_before(attempts_, outcome.pushback),
                                 [self = shared_from_this()] { self->reopen(); });
        return;
      } else {
        failed_ = outcome.status.ok() ? absl::UnavailableError("the server ended the stream")
                                      : outcome.status;
      }
    }
    lock.unlock();
    wake_.notify_all();
  }

  void reopen() {
    {
      std::unique_lock lock(mutex_);
      pausing_ = false;
      if (failed_.ok()) open(lock);
      if (failed_.ok() && finishing_) stream_->finish();
    }
    wake_.notify_all();
  }

  ClientImpl& client_;
  const std::string collection_;
  const BulkOptions options_;
  std::uint64_t next_ = 0;  // of the thread that sends
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Window window_;
  std::deque<Pending> pending_;
  std::shared_ptr<TransportStream> stream_;
  absl::Status failed_;
  int attempts_ = 0;
  bool connected_ = false;
  bool pausing_ = false;
  bool finishing_ = false;
  bool ended_ = false;
};

class BulkStreamImpl final : public BulkStream {
 public:
  explicit BulkStreamImpl(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  ~BulkStreamImpl() override { core_->abandon(); }

  absl::StatusOr<std::uint64_t> send(const RecordBatch& batch,
                                     const std::string& operation_id) override {
    return core_->send(batch, operation_id);
  }
  absl::Status finish() override { return core_->finish(); }
  std::size_t window() const override { return core_->window(); }

 private:
  std::shared_ptr<Core> core_;
};

}  // namespace

std::unique_ptr<BulkStream> make_bulk_stream(ClientImpl& client, const std::string& collection,
                                             const BulkOptions& options) {
  auto core = std::make_shared<Core>(client, collection, options);
  core->connect();
  return std::make_unique<BulkStreamImpl>(std::move(core));
}

}  // namespace turboquant::service
