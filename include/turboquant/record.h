// What a collection stores beside codes: ids and typed metadata, and the errors of the store.
#pragma once

#include <absl/status/status.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace turboquant {

/// The caller's name of a record: a number, or a non-empty string of at most kMaxIdBytes bytes. The
/// number 7 and the string "7" are different ids. Ids are ordered: numbers first, by value, then
/// strings, by bytes.
using RecordId = std::variant<std::uint64_t, std::string>;

/// Doubles must be finite. Strings may hold any bytes.
using MetadataValue =
    std::variant<bool, std::int64_t, double, std::string, std::vector<std::string>>;

/// Field name to value. Names are not empty and have at most kMaxFieldNameBytes bytes.
using Metadata = std::map<std::string, MetadataValue>;

/// The alternatives of MetadataValue, in its order. Stored in files: never renumber.
enum class FieldType : std::uint8_t {
  kBool = 0,
  kInt64 = 1,
  kDouble = 2,
  kString = 3,
  kStringList = 4,
};

inline constexpr std::size_t kMaxIdBytes = 512;
inline constexpr std::size_t kMaxFieldNameBytes = 128;
/// Metadata of one record, encoded.
inline constexpr std::size_t kMaxMetadataBytes = std::size_t{1} << 20;
/// One value (one element of a list) of an indexed string field.
inline constexpr std::size_t kMaxIndexedBytes = 1024;
inline constexpr std::size_t kMaxListElements = 4096;

/// Every error of the store carries a reason beside its code and sentence: a stable word in
/// capitals for programs, e.g. "COLLECTION_NOT_FOUND". Empty when the status is OK or not the
/// store's.
///
/// | code | reasons |
/// |---|---|
/// | INVALID_ARGUMENT | BAD_NAME, BAD_OPTION, BAD_FACTORY, BAD_VECTOR, BAD_ID, DUPLICATE_ID,
/// BAD_METADATA, BAD_FILTER, BAD_CURSOR, OPERATION_MISMATCH | | NOT_FOUND | COLLECTION_NOT_FOUND,
/// ALIAS_NOT_FOUND, SNAPSHOT_NOT_FOUND, STORE_NOT_FOUND | | ALREADY_EXISTS | COLLECTION_EXISTS,
/// ID_EXISTS | | FAILED_PRECONDITION | NO_ORIGINALS, FIELD_NOT_INDEXED, UNKNOWN_FORMAT,
/// WRONG_FINGERPRINT, STORE_IN_USE, TARGET_NOT_EMPTY | | RESOURCE_EXHAUSTED | DISK_FULL,
/// MEMORY_LIMIT, TOO_MANY_HITS | | DATA_LOSS | DAMAGED | | UNAVAILABLE | WRITES_STOPPED, IO_ERROR,
/// CLOSED | | DEADLINE_EXCEEDED, CANCELLED | DEADLINE, CANCELLED |
std::string error_reason(const absl::Status& status);

}  // namespace turboquant
