#include "storage/errors.h"

#include <absl/strings/cord.h>
#include <absl/strings/str_cat.h>

#include <cerrno>
#include <cstring>
#include <system_error>

namespace turboquant {
namespace {

constexpr char kReasonUrl[] = "turboquant/reason";

}  // namespace

std::string error_reason(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

namespace storage {

absl::Status make_error(absl::StatusCode code, std::string_view reason, std::string_view sentence) {
  absl::Status status(code, absl::string_view(sentence.data(), sentence.size()));
  status.SetPayload(kReasonUrl, absl::Cord(absl::string_view(reason.data(), reason.size())));
  return status;
}

absl::Status damaged(std::string_view what) {
  return make_error(absl::StatusCode::kDataLoss, "DAMAGED",
                    absl::StrCat(absl::string_view(what.data(), what.size()),
                                 "; restore a snapshot that verifies"));
}

absl::Status from_rocksdb(const rocksdb::Status& status, std::string_view doing) {
  if (status.ok()) return absl::OkStatus();
  const std::string sentence =
      absl::StrCat(absl::string_view(doing.data(), doing.size()), ": ", status.ToString());
  if (status.IsNoSpace()) {
    return make_error(absl::StatusCode::kResourceExhausted, "DISK_FULL",
                      absl::StrCat(sentence, "; free space on the store's disk"));
  }
  if (status.IsCorruption()) return damaged(sentence);
  if (status.IsIOError() || status.IsIncomplete() || status.IsShutdownInProgress() ||
      status.IsBusy() || status.IsTryAgain()) {
    return make_error(absl::StatusCode::kUnavailable, "IO_ERROR", sentence);
  }
  return make_error(absl::StatusCode::kInternal, "INTERNAL", sentence);
}

absl::Status from_errno(int error, std::string_view doing) {
  const std::string sentence = absl::StrCat(absl::string_view(doing.data(), doing.size()), ": ",
                                            std::generic_category().message(error));
  if (error == ENOSPC || error == EDQUOT) {
    return make_error(absl::StatusCode::kResourceExhausted, "DISK_FULL", sentence);
  }
  return make_error(absl::StatusCode::kUnavailable, "IO_ERROR", sentence);
}

bool stops_writes(const absl::Status& status) {
  const std::string reason = error_reason(status);
  return reason == "DISK_FULL" || reason == "IO_ERROR" || reason == "DAMAGED" ||
         reason == "INTERNAL";
}

}  // namespace storage
}  // namespace turboquant
