// Random access to the bytes of a file, or of memory in tests and fuzz targets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace turboquant::io {

class ByteSource {
 public:
  virtual ~ByteSource() = default;

  /// For messages.
  virtual const std::string& name() const = 0;
  /// Bytes, fixed when the source was opened.
  virtual std::uint64_t size() const = 0;
  /// out[n] = the bytes from offset on. Throws DataError when the source ends before, IoError when
  /// the system refuses; `what` says in the message what was being read.
  virtual void read_at(std::uint64_t offset, std::size_t n, void* out,
                       const std::string& what) const = 0;
};

/// Throws IoError when the file cannot be opened or is not a regular file.
std::unique_ptr<ByteSource> open_file(const std::string& path);

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::vector<std::uint8_t> bytes, std::string name = "memory")
      : bytes_(std::move(bytes)), name_(std::move(name)) {}
  const std::string& name() const override { return name_; }
  std::uint64_t size() const override { return bytes_.size(); }
  void read_at(std::uint64_t offset, std::size_t n, void* out,
               const std::string& what) const override;

 private:
  std::vector<std::uint8_t> bytes_;
  std::string name_;
};

}  // namespace turboquant::io
