// An output file that appears whole or not at all.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "tools/io/interrupt.h"

namespace turboquant::io {

/// Writes to a hidden temporary file in the folder of `path`; commit() syncs it to the disk and
/// renames it. Without commit() the destructor removes it and `path` stays as it was.
/// Every function throws IoError when the system refuses.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::string& path() const { return path_; }
  void write(const void* bytes, std::size_t n);
  void commit();

 private:
  void flush();

  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  std::vector<char> buffer_;
  std::unique_ptr<TemporaryGuard> guard_;
};

/// The same for a text that is at hand.
void write_file(const std::string& path, const std::string& text);

}  // namespace turboquant::io
