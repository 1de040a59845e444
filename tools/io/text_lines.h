// The lines of a text file by number, read from the disk when asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tools/io/byte_source.h"

namespace turboquant::io {

/// Keeps 8 bytes a line in memory. Lines end with \n or \r\n, the last one also with the file.
class TextLines {
 public:
  /// Throws IoError when the file cannot be read.
  explicit TextLines(const std::string& path) : TextLines(open_file(path)) {}
  explicit TextLines(std::unique_ptr<ByteSource> source);

  std::size_t size() const { return starts_.size() - 1; }
  /// i must be below size().
  std::string line(std::size_t i) const;

 private:
  std::unique_ptr<ByteSource> source_;
  std::vector<std::uint64_t> starts_;  // and the end of the file
};

}  // namespace turboquant::io
