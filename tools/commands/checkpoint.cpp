#include "tools/commands/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "tools/commands/index_file.h"
#include "tools/io/atomic_file.h"
#include "tools/io/errors.h"

namespace turboquant::tools {
namespace {

constexpr const char* kFormat = "turboquant-index build checkpoint 1";

nlohmann::json read_manifest(const std::string& path) {
  std::ifstream file(path);
  try {
    return nlohmann::json::parse(file);
  } catch (const nlohmann::json::exception& error) {
    throw io::DataError(path + ": not a checkpoint: " + error.what());
  }
}

}  // namespace

nlohmann::json file_identity(const std::string& path) {
  struct stat status {};
  char* const full = ::realpath(path.c_str(), nullptr);
  if (full == nullptr || ::stat(full, &status) != 0) {
    const int error = errno;
    std::free(full);
    throw io::IoError(io::system_message(path, "cannot stat", error));
  }
  nlohmann::json identity = {
      {"path", full},
      {"size", status.st_size},
      {"mtime_ns", std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec}};
  std::free(full);
  return identity;
}

Checkpoint::Checkpoint(const std::string& output, nlohmann::json build)
    : index_path_(output + ".partial"),
      manifest_path_(index_path_ + ".json"),
      build_(std::move(build)) {}

std::unique_ptr<faiss::Index> Checkpoint::load() const {
  if (::access(manifest_path_.c_str(), F_OK) != 0) return nullptr;
  const nlohmann::json manifest = read_manifest(manifest_path_);
  if (!manifest.is_object() || manifest.value("format", "") != kFormat) {
    throw io::DataError(manifest_path_ + ": not a checkpoint of this version");
  }
  const nlohmann::json there = manifest.value("build", nlohmann::json::object());
  for (const auto& [key, value] : build_.items()) {
    const nlohmann::json other = there.value(key, nlohmann::json());
    if (other == value) continue;
    throw io::UsageError(manifest_path_ + ": belongs to another build: its " + key + " is " +
                         other.dump() + ", here it is " + value.dump() +
                         "; remove the checkpoint to start over");
  }
  return load_index(index_path_);
}

void Checkpoint::save(const faiss::Index& index) const {
  save_index(index, index_path_);
  const nlohmann::json manifest = {
      {"format", kFormat}, {"build", build_}, {"rows_done", index.ntotal}};
  io::write_file(manifest_path_, manifest.dump(2) + "\n");
}

void Checkpoint::remove() const {
  // The manifest first: without it the index is not taken for a checkpoint.
  ::unlink(manifest_path_.c_str());
  ::unlink(index_path_.c_str());
}

}  // namespace turboquant::tools
