// Finds damage in RocksDB's tables that RocksDB would end the process for.
#pragma once

#include <absl/status/status.h>

#include <string>

namespace turboquant::storage {

/// RocksDB looks at a table's properties before it compares their checksum. A flipped top bit of
/// their number of restarts says that a hash index follows, and where RocksDB is built with
/// assertions, as Debian's is, the empty one that it finds aborts the process.
/// DATA_LOSS when a table of the folder has that bit set. Whatever else is damaged is RocksDB's to
/// find.
absl::Status check_tables(const std::string& database_folder);

}  // namespace turboquant::storage
