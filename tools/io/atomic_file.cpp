#include "tools/io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "tools/io/errors.h"

namespace turboquant::io {
namespace {

constexpr std::size_t kBufferBytes = 1U << 20;

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// A link to a file stays one; the file that it names is replaced.
std::string behind_links(const std::string& path) {
  char* const full = ::realpath(path.c_str(), nullptr);
  if (full == nullptr) return path;
  std::string target = full;
  std::free(full);
  return target;
}

// So that the rename itself survives a power cut. Some file systems cannot sync a folder; the file
// is whole either way.
void sync_folder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    throw IoError(path + ": not a regular file, so it cannot be replaced");
  }
  const std::size_t slash = path.find_last_of('/');
  const std::size_t name = slash == std::string::npos ? 0 : slash + 1;
  if (name == path.size()) throw IoError(path + ": names no file");
  temporary_ =
      path.substr(0, name) + "." + path.substr(name) + "." + std::to_string(::getpid()) + ".tmp";
  guard_ = std::make_unique<TemporaryGuard>(temporary_);
  ::unlink(temporary_.c_str());  // left by a killed process that had our number
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) throw IoError(system_message(path_, "cannot create", errno));
  buffer_.reserve(kBufferBytes);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* bytes, std::size_t n) {
  const char* from = static_cast<const char*>(bytes);
  while (n > 0) {
    const std::size_t part = std::min(n, kBufferBytes - buffer_.size());
    buffer_.insert(buffer_.end(), from, from + part);
    from += part;
    n -= part;
    if (buffer_.size() == kBufferBytes) flush();
  }
}

void AtomicFile::flush() {
  const char* from = buffer_.data();
  std::size_t n = buffer_.size();
  while (n > 0) {
    const ssize_t put = ::write(fd_, from, n);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw IoError(system_message(path_, "cannot write", errno));
    from += put;
    n -= static_cast<std::size_t>(put);
  }
  buffer_.clear();
}

void AtomicFile::commit() {
  flush();
  if (::fsync(fd_) != 0) throw IoError(system_message(path_, "cannot sync", errno));
  if (::rename(temporary_.c_str(), behind_links(path_).c_str()) != 0) {
    throw IoError(system_message(path_, "cannot rename to it", errno));
  }
  ::close(fd_);
  fd_ = -1;
  guard_.reset();
  sync_folder(folder_of(temporary_));
}

void write_file(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace turboquant::io
