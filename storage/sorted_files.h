// Files of sorted keys, one for each family of the database, which takes them over whole.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <rocksdb/sst_file_writer.h>

#include <array>
#include <memory>
#include <string>

#include "storage/database.h"

namespace turboquant::storage {

/// In the store's folder; a start removes it.
inline constexpr char kLoadingFolder[] = "loading";

class SortedFiles {
 public:
  /// `folder` is emptied, and removed in the end.
  static absl::StatusOr<std::unique_ptr<SortedFiles>> make(const Database& database,
                                                           const std::string& folder);
  ~SortedFiles();
  SortedFiles(const SortedFiles&) = delete;
  SortedFiles& operator=(const SortedFiles&) = delete;

  /// Keys of a family come in ascending order. The value is sealed here.
  absl::Status put(Family family, const std::string& key, std::string value);

  /// Hands everything over at once, on disk when it returns. No key may be in the database.
  absl::Status ingest(Database& database);

 private:
  explicit SortedFiles(std::string folder) : folder_(std::move(folder)) {}
  std::string path(std::size_t family) const;

  const std::string folder_;
  std::array<std::unique_ptr<rocksdb::SstFileWriter>, kFamilyCount> writers_;
  std::array<bool, kFamilyCount> used_{};
};

}  // namespace turboquant::storage
