// Finds damage in RocksDB's MANIFEST that RocksDB takes for a torn end.
#pragma once

#include <absl/status/status.h>

#include <string>
#include <string_view>

namespace turboquant::storage {

/// RocksDB reads its logs up to the first record that reaches past the end of the file, which is
/// what a power loss leaves of a record that nobody relies on, or that has a type of another use of
/// the file. A damaged length or type looks the same, and what follows would be dropped without a
/// word. They differ in the checksum: what is left of a torn record matches none, the bytes behind
/// a damaged header match the record's own.
bool has_damaged_header(std::string_view log);

/// DATA_LOSS when the MANIFEST that CURRENT names has a damaged record header.
absl::Status check_manifest(const std::string& database_folder);

}  // namespace turboquant::storage
