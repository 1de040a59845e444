// Errors of the service: an absl::Status with a code, a stable reason and a sentence, as the
// store's (turboquant/record.h), and the one translation between it and what gRPC sends.
//
// Reasons of the service itself:
// INVALID_ARGUMENT: MALFORMED_REQUEST, BAD_REQUEST, BAD_VECTOR, BAD_ID, BAD_METADATA, BAD_FILTER,
// TOO_MANY_ROWS, TOO_MANY_RESULTS; UNAUTHENTICATED: BAD_TOKEN; PERMISSION_DENIED: ROLE, SCOPE;
// RESOURCE_EXHAUSTED: SERVER_BUSY, RATE_LIMITED, TOO_MANY_COLLECTIONS, ANSWER_TOO_LARGE,
// MESSAGE_TOO_LARGE; DEADLINE_EXCEEDED: DEADLINE; CANCELLED: CANCELLED; UNAVAILABLE: SHUTTING_DOWN.
#pragma once

#include <absl/status/status.h>

#include <string>
#include <string_view>

namespace turboquant::service {

absl::Status make_error(absl::StatusCode code, std::string_view reason, std::string_view sentence);
absl::Status invalid(std::string_view reason, std::string_view sentence);

/// A status as gRPC carries it.
struct WireStatus {
  int code = 0;  ///< canonical; the numbers of absl and gRPC are the same
  std::string message;
  /// A serialized google.rpc.Status with one google.rpc.ErrorInfo (domain "turboquant"); empty when
  /// OK.
  std::string details;
};

WireStatus to_wire(const absl::Status& status);
/// The reverse. Details that cannot be read are ignored.
absl::Status from_wire(const WireStatus& wire);

/// "INVALID_ARGUMENT" and so on.
std::string code_name(int code);

}  // namespace turboquant::service
