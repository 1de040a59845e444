// Files of search results: ids and scores, [queries][k].
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "tools/io/vector_writer.h"

namespace turboquant::tools {

/// Writes one or both. They appear when commit() has been called on both.
class ResultFiles {
 public:
  /// An empty path means no such file. Throws io::UsageError when a format cannot hold the values.
  ResultFiles(const std::string& ids_path, const std::string& scores_path, std::uint64_t queries,
              std::size_t k);
  /// ids[n][k], scores[n][k].
  void append(const std::int64_t* ids, const float* scores, std::size_t n);
  void commit();

 private:
  std::unique_ptr<io::VectorWriter> ids_;
  std::unique_ptr<io::VectorWriter> scores_;
};

}  // namespace turboquant::tools
