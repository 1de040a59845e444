// Statuses of the store: a code, a stable reason (turboquant/record.h lists them), a sentence.
#pragma once

#include <absl/status/status.h>
#include <rocksdb/status.h>

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "turboquant/record.h"

namespace turboquant::storage {

absl::Status make_error(absl::StatusCode code, std::string_view reason, std::string_view sentence);

inline absl::Status invalid(std::string_view reason, std::string_view sentence) {
  return make_error(absl::StatusCode::kInvalidArgument, reason, sentence);
}

/// Bytes on disk that are not what was written.
absl::Status damaged(std::string_view what);

/// RocksDB's status; `doing` says what was tried ("writing", "reading metadata").
absl::Status from_rocksdb(const rocksdb::Status& status, std::string_view doing);

/// A failed system call on a file.
absl::Status from_errno(int error, std::string_view doing);

/// True for errors after which the database must be opened again before it takes writes.
bool stops_writes(const absl::Status& status);

/// Runs f, which returns a Status or StatusOr; what it throws becomes a status.
template <class F>
auto guard(F&& f) -> std::invoke_result_t<F> {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return make_error(absl::StatusCode::kResourceExhausted, "MEMORY_LIMIT", "out of memory");
  } catch (const std::exception& error) {
    return make_error(absl::StatusCode::kInternal, "INTERNAL", error.what());
  }
}

}  // namespace turboquant::storage

/// Returns from the calling function when the status is not OK.
#define TQ_RETURN_IF_ERROR(expression)                                            \
  do {                                                                            \
    if (absl::Status tq_status = (expression); !tq_status.ok()) return tq_status; \
  } while (false)
