#include "storage/sorted_files.h"

#include <absl/strings/str_cat.h>
#include <rocksdb/options.h>

#include <filesystem>
#include <vector>

#include "storage/coding.h"

namespace turboquant::storage {

namespace fs = std::filesystem;

std::string SortedFiles::path(std::size_t family) const {
  return absl::StrCat(folder_, "/", family, ".sst");
}

absl::StatusOr<std::unique_ptr<SortedFiles>> SortedFiles::make(const Database& database,
                                                               const std::string& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (!error) fs::create_directories(folder, error);
  if (error) return from_errno(error.value(), absl::StrCat("making folder ", folder));
  std::unique_ptr<SortedFiles> files(new SortedFiles(folder));
  for (std::size_t i = 0; i < kFamilyCount; ++i) {
    rocksdb::ColumnFamilyHandle* const handle = database.family(static_cast<Family>(i));
    files->writers_[i] = std::make_unique<rocksdb::SstFileWriter>(
        rocksdb::EnvOptions(), database.db().GetOptions(handle), handle);
    const rocksdb::Status opened = files->writers_[i]->Open(files->path(i));
    if (!opened.ok()) return from_rocksdb(opened, absl::StrCat("making files in ", folder));
  }
  return files;
}

SortedFiles::~SortedFiles() {
  for (auto& writer : writers_) writer.reset();
  std::error_code error;
  fs::remove_all(folder_, error);
}

absl::Status SortedFiles::put(Family family, const std::string& key, std::string value) {
  seal(key, value);
  used_[family] = true;
  return from_rocksdb(writers_[family]->Put(key, value), absl::StrCat("writing to ", folder_));
}

absl::Status SortedFiles::ingest(Database& database) {
  std::vector<rocksdb::IngestExternalFileArg> arguments;
  for (std::size_t i = 0; i < kFamilyCount; ++i) {
    if (!used_[i]) continue;
    const rocksdb::Status finished = writers_[i]->Finish();
    if (!finished.ok()) return from_rocksdb(finished, absl::StrCat("writing to ", folder_));
    rocksdb::IngestExternalFileArg argument;
    argument.column_family = database.family(static_cast<Family>(i));
    argument.external_files = {path(i)};
    argument.options.move_files = true;  // by links
    argument.options.verify_checksums_before_ingest = true;
    arguments.push_back(std::move(argument));
  }
  if (arguments.empty()) return absl::OkStatus();
  return from_rocksdb(database.db().IngestExternalFiles(arguments), "taking over loaded files");
}

}  // namespace turboquant::storage
