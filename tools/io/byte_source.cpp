#include "tools/io/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tools/io/errors.h"

namespace turboquant::io {
namespace {

[[noreturn]] void throw_short(const std::string& name, const std::string& what) {
  throw DataError(name + ": " + what + ": the file ends before");
}

class FileSource final : public ByteSource {
 public:
  explicit FileSource(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) throw IoError(system_message(path_, "cannot open", errno));
    struct stat status {};
    if (::fstat(fd_, &status) != 0) {
      const int error = errno;
      ::close(fd_);
      throw IoError(system_message(path_, "cannot stat", error));
    }
    if (!S_ISREG(status.st_mode)) {
      ::close(fd_);
      throw IoError(path_ + ": not a regular file");
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
  }
  ~FileSource() override { ::close(fd_); }
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  const std::string& name() const override { return path_; }
  std::uint64_t size() const override { return size_; }

  void read_at(std::uint64_t offset, std::size_t n, void* out,
               const std::string& what) const override {
    if (offset > size_ || n > size_ - offset) throw_short(path_, what);
    auto* to = static_cast<char*>(out);
    while (n > 0) {
      const ssize_t got =
          ::pread(fd_, to, std::min<std::size_t>(n, 1U << 30), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw IoError(system_message(path_, what, errno));
      if (got == 0) throw_short(path_, what + " (it became shorter while being read)");
      to += got;
      offset += static_cast<std::uint64_t>(got);
      n -= static_cast<std::size_t>(got);
    }
  }

 private:
  std::string path_;
  int fd_ = -1;
  std::uint64_t size_ = 0;
};

}  // namespace

std::string system_message(const std::string& path, const std::string& what, int error) {
  return path + ": " + what + ": " + std::strerror(error);
}

std::unique_ptr<ByteSource> open_file(const std::string& path) {
  return std::make_unique<FileSource>(path);
}

void MemorySource::read_at(std::uint64_t offset, std::size_t n, void* out,
                           const std::string& what) const {
  if (offset > bytes_.size() || n > bytes_.size() - offset) throw_short(name_, what);
  if (n > 0) std::memcpy(out, bytes_.data() + offset, n);
}

}  // namespace turboquant::io
