#include "storage/core.h"

#include <absl/strings/str_cat.h>

#include "storage/errors.h"

namespace turboquant::storage {

void Gate::enter() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return !owned_ && waiting_owners_ == 0; });
  ++users_;
}

void Gate::leave() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--users_ == 0) changed_.notify_all();
}

void Gate::own() {
  std::unique_lock<std::mutex> lock(mutex_);
  ++waiting_owners_;
  changed_.wait(lock, [this] { return !owned_ && users_ == 0; });
  --waiting_owners_;
  owned_ = true;
}

void Gate::disown() {
  const std::lock_guard<std::mutex> lock(mutex_);
  owned_ = false;
  changed_.notify_all();
}

absl::Status Core::writable() const {
  const std::lock_guard<std::mutex> lock(error_mutex_);
  return error_;
}

absl::Status Core::stop_writes(const absl::Status& status) {
  const std::lock_guard<std::mutex> lock(error_mutex_);
  if (!error_.ok()) return status;
  const std::string reason = error_reason(status);
  const bool disk_full = reason == "DISK_FULL";
  error_ = make_error(
      disk_full ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kUnavailable,
      disk_full ? "DISK_FULL" : "WRITES_STOPPED",
      absl::StrCat("writes are refused until the store has recovered from: ", status.message()));
  return status;
}

void Core::resume_writes() {
  const std::lock_guard<std::mutex> lock(error_mutex_);
  error_ = absl::OkStatus();
}

absl::Status closed_error() {
  return make_error(absl::StatusCode::kUnavailable, "CLOSED", "the store is closed");
}

absl::Status Use::status() const {
  if (core_.database) return absl::OkStatus();
  return core_.absent.ok() ? closed_error() : core_.absent;
}

}  // namespace turboquant::storage
