#include "service/errors.h"

#include <absl/strings/cord.h>
#include <absl/strings/string_view.h>
#include <google/protobuf/unknown_field_set.h>

#include "turboquant/record.h"

namespace turboquant::service {
namespace {

// What error_reason() reads; tests/service compares.
constexpr char kReasonUrl[] = "turboquant/reason";
constexpr char kErrorInfoType[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kDomain[] = "turboquant";
constexpr std::size_t kMaxMessage = 2000;  // headers have limits

// Fields of google.rpc.Status, google.protobuf.Any and google.rpc.ErrorInfo, whose C++ classes
// Debian does not have.
constexpr int kStatusCode = 1, kStatusMessage = 2, kStatusDetails = 3;
constexpr int kAnyType = 1, kAnyValue = 2;
constexpr int kInfoReason = 1, kInfoDomain = 2;

using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

std::string text(const UnknownFieldSet& set, int number) {
  for (int i = 0; i < set.field_count(); ++i) {
    const UnknownField& field = set.field(i);
    if (field.number() == number && field.type() == UnknownField::TYPE_LENGTH_DELIMITED) {
      return field.length_delimited();
    }
  }
  return {};
}

std::string bytes_of(const UnknownFieldSet& set) {
  std::string bytes;
  set.SerializeToString(&bytes);
  return bytes;
}

}  // namespace

absl::Status make_error(absl::StatusCode code, std::string_view reason, std::string_view sentence) {
  absl::Status status(code, absl::string_view(sentence.data(), sentence.size()));
  status.SetPayload(kReasonUrl, absl::Cord(absl::string_view(reason.data(), reason.size())));
  return status;
}

absl::Status invalid(std::string_view reason, std::string_view sentence) {
  return make_error(absl::StatusCode::kInvalidArgument, reason, sentence);
}

WireStatus to_wire(const absl::Status& status) {
  WireStatus wire;
  if (status.ok()) return wire;
  wire.code = static_cast<int>(status.code());
  wire.message = std::string(status.message()).substr(0, kMaxMessage);
  std::string reason = error_reason(status);
  if (reason.empty()) reason = "INTERNAL";
  UnknownFieldSet info;
  info.AddLengthDelimited(kInfoReason, reason);
  info.AddLengthDelimited(kInfoDomain, kDomain);
  UnknownFieldSet any;
  any.AddLengthDelimited(kAnyType, kErrorInfoType);
  any.AddLengthDelimited(kAnyValue, bytes_of(info));
  UnknownFieldSet details;
  details.AddVarint(kStatusCode, static_cast<std::uint64_t>(wire.code));
  details.AddLengthDelimited(kStatusMessage, wire.message);
  details.AddLengthDelimited(kStatusDetails, bytes_of(any));
  wire.details = bytes_of(details);
  return wire;
}

absl::Status from_wire(const WireStatus& wire) {
  if (wire.code == 0) return absl::OkStatus();
  const absl::Status plain(static_cast<absl::StatusCode>(wire.code), wire.message);
  UnknownFieldSet details;
  if (!details.ParseFromString(wire.details)) return plain;
  for (int i = 0; i < details.field_count(); ++i) {
    const UnknownField& field = details.field(i);
    if (field.number() != kStatusDetails || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) {
      continue;
    }
    UnknownFieldSet any;
    UnknownFieldSet info;
    if (any.ParseFromString(field.length_delimited()) && text(any, kAnyType) == kErrorInfoType &&
        info.ParseFromString(text(any, kAnyValue)) && text(info, kInfoDomain) == kDomain) {
      return make_error(plain.code(), text(info, kInfoReason), wire.message);
    }
  }
  return plain;
}

std::string code_name(int code) {
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

}  // namespace turboquant::service
