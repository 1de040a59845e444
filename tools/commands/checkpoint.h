// What lets a killed build go on: the index so far in X.partial, and in X.partial.json the input
// and the options that it belongs to. Each is replaced whole; the row count of the index is what
// counts, so a kill between the two does no harm.
#pragma once

#include <faiss/Index.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

namespace turboquant::tools {

/// {"path", "size", "mtime_ns"} of a file. Throws io::IoError.
nlohmann::json file_identity(const std::string& path);

class Checkpoint {
 public:
  /// build: everything that the bytes of the finished index depend on.
  Checkpoint(const std::string& output, nlohmann::json build);

  const std::string& index_path() const { return index_path_; }
  const std::string& manifest_path() const { return manifest_path_; }

  /// Null when there is none. Throws io::UsageError naming the first difference when it belongs to
  /// another build, io::DataError when it cannot be read.
  std::unique_ptr<faiss::Index> load() const;

  void save(const faiss::Index& index) const;
  void remove() const;

 private:
  std::string index_path_;
  std::string manifest_path_;
  nlohmann::json build_;
};

}  // namespace turboquant::tools
