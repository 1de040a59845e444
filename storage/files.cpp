#include "storage/files.h"

#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string_view>
#include <vector>

#include "storage/coding.h"
#include "storage/errors.h"

namespace turboquant::storage {
namespace {

constexpr std::string_view kSyncedMagic = "TQSYNC1\n";
constexpr std::size_t kSyncedBytes = 32;

// A file descriptor that closes itself.
class File {
 public:
  File(const std::string& path, int flags) : file_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~File() {
    if (file_ >= 0) ::close(file_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return file_; }
  bool ok() const { return file_ >= 0; }
  int release() { return std::exchange(file_, -1); }

 private:
  int file_;
};

bool write_all(int file, std::string_view data, off_t at) {
  while (!data.empty()) {
    const ssize_t n = ::pwrite(file, data.data(), data.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    data.remove_prefix(static_cast<std::size_t>(n));
    at += n;
  }
  return true;
}

// The first bytes of a file; fewer when it is shorter, none when it is not there.
std::string read_start(const std::string& path, std::size_t most) {
  const File file(path, O_RDONLY);
  std::string data(most, '\0');
  const ssize_t n = file.ok() ? ::pread(file.get(), data.data(), most, 0) : 0;
  data.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return data;
}

std::string active_line(std::uint64_t number) {
  const std::string name = database_name(number);
  char crc[16];
  std::snprintf(crc, sizeof crc, " %08x\n", crc32c(name));
  return name + crc;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FolderLock>> FolderLock::take(const std::string& folder) {
  File file(folder + "/LOCK", O_RDWR | O_CREAT);
  if (!file.ok()) return from_errno(errno, absl::StrCat("opening ", folder, "/LOCK"));
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return from_errno(errno, absl::StrCat("locking ", folder, "/LOCK"));
    return make_error(absl::StatusCode::kFailedPrecondition, "STORE_IN_USE",
                      absl::StrCat(folder, " is open in another process or twice in this one"));
  }
  return std::unique_ptr<FolderLock>(new FolderLock(file.release()));
}

FolderLock::~FolderLock() { ::close(file_); }

std::string database_name(std::uint64_t number) {
  char name[32];
  std::snprintf(name, sizeof name, "db-%08llu", static_cast<unsigned long long>(number));
  return name;
}

absl::StatusOr<std::optional<std::uint64_t>> read_active(const std::string& folder) {
  const std::string path = folder + "/ACTIVE";
  if (::access(path.c_str(), F_OK) != 0) {
    if (errno == ENOENT) return std::optional<std::uint64_t>();
    return from_errno(errno, absl::StrCat("reading ", path));
  }
  const std::string line = read_start(path, 64);
  unsigned long long number = 0;
  if (std::sscanf(line.c_str(), "db-%20llu", &number) != 1 || line != active_line(number)) {
    return damaged(absl::StrCat(path, " is damaged"));
  }
  return std::optional<std::uint64_t>(number);
}

absl::Status write_active(const std::string& folder, std::uint64_t number) {
  const std::string path = folder + "/ACTIVE";
  const std::string fresh = path + ".new";
  {
    const File file(fresh, O_WRONLY | O_CREAT | O_TRUNC);
    if (!file.ok() || !write_all(file.get(), active_line(number), 0) || ::fsync(file.get()) != 0) {
      return from_errno(errno, absl::StrCat("writing ", fresh));
    }
  }
  if (std::rename(fresh.c_str(), path.c_str()) != 0) {
    return from_errno(errno, absl::StrCat("replacing ", path));
  }
  return sync_folder(folder);
}

std::uint64_t read_synced(const std::string& folder, std::uint64_t database) {
  const std::string data = read_start(folder + "/SYNCED", kSyncedBytes);
  ByteReader reader(data);
  const bool known = reader.take_bytes(kSyncedMagic.size()) == kSyncedMagic;
  const auto number = reader.take<std::uint64_t>();
  const auto sequence = reader.take<std::uint64_t>();
  const auto reserved = reader.take<std::uint32_t>();
  const auto crc = reader.take<std::uint32_t>();
  if (!reader.at_end() || !known || reserved != 0 || number != database) return 0;
  return crc == crc32c(std::string_view(data).substr(0, kSyncedBytes - 4)) ? sequence : 0;
}

absl::StatusOr<std::unique_ptr<SyncedFile>> SyncedFile::open(const std::string& folder,
                                                             std::uint64_t database) {
  File file(folder + "/SYNCED", O_WRONLY | O_CREAT);
  if (!file.ok()) return from_errno(errno, absl::StrCat("opening ", folder, "/SYNCED"));
  return std::unique_ptr<SyncedFile>(new SyncedFile(file.release(), database));
}

SyncedFile::~SyncedFile() { ::close(file_); }

absl::Status SyncedFile::write(std::uint64_t sequence) {
  std::string data(kSyncedMagic);
  put(data, database_);
  put(data, sequence);
  put(data, std::uint32_t{0});
  put(data, crc32c(data));
  if (!write_all(file_, data, 0)) return from_errno(errno, "writing SYNCED");
  return absl::OkStatus();
}

absl::Status sync_folder(const std::string& folder) {
  const File file(folder, O_RDONLY | O_DIRECTORY);
  if (!file.ok() || ::fsync(file.get()) != 0) {
    return from_errno(errno, absl::StrCat("syncing ", folder));
  }
  return absl::OkStatus();
}

absl::Status probe_space(const std::string& folder, std::uint64_t bytes) {
  const std::string path = folder + "/PROBE";
  const File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  absl::Status status;
  if (!file.ok()) status = from_errno(errno, absl::StrCat("opening ", path));
  const std::vector<char> zeros(std::size_t{1} << 20);
  for (std::uint64_t at = 0; status.ok() && at < bytes; at += zeros.size()) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(zeros.size(), bytes - at));
    if (!write_all(file.get(), {zeros.data(), n}, static_cast<off_t>(at))) {
      status = from_errno(errno, absl::StrCat("writing ", path));
    }
  }
  if (status.ok() && ::fsync(file.get()) != 0) {
    status = from_errno(errno, absl::StrCat("syncing ", path));
  }
  ::unlink(path.c_str());
  return status;
}

}  // namespace turboquant::storage
