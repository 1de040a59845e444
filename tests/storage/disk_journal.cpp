#include "tests/storage/disk_journal.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

namespace turboquant::test {
namespace {

enum class Kind { kWrite, kTruncate, kSync, kLink, kUnlink, kFolder, kSyncFolder };

struct Event {
  Kind kind;
  std::uint64_t file = 0;  // kWrite, kTruncate, kSync, kLink: which file, by order of creation
  std::uint64_t at = 0;    // kWrite: where; kTruncate: the new size
  std::string data;        // kWrite
  std::string path;        // kLink, kUnlink, kFolder, kSyncFolder: relative to the folder
};

struct Journal {
  std::mutex mutex;
  bool on = false;
  std::string folder;
  std::vector<Event> events;
  std::map<ino_t, std::uint64_t> files;
  std::uint64_t next_file = 0;
};

Journal& journal() {
  static auto* journal = new Journal;  // outlives every caller
  return *journal;
}

// The path below the recorded folder, or false.
bool relative(const std::string& path, std::string& below) {
  const std::string& folder = journal().folder;
  if (path == folder) {
    below.clear();
    return true;
  }
  if (path.rfind(folder + "/", 0) != 0) return false;
  below = std::filesystem::path(path.substr(folder.size() + 1)).lexically_normal().string();
  return true;
}

std::string path_of(int file) {
  char link[64];
  char path[4096];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t n = ::readlink(link, path, sizeof path);
  return n > 0 ? std::string(path, static_cast<std::size_t>(n)) : std::string();
}

// The recorded file behind a descriptor. Call with the mutex.
bool find_file(int file, std::uint64_t& number) {
  struct stat state {};
  if (::fstat(file, &state) != 0) return false;
  const auto at = journal().files.find(state.st_ino);
  if (at == journal().files.end()) return false;
  number = at->second;
  return true;
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

// After a call that may have made or emptied a file.
void note_open(int file, int flags) {
  if (file < 0 || (flags & (O_CREAT | O_TRUNC)) == 0) return;
  const std::lock_guard<std::mutex> lock(journal().mutex);
  std::string below;
  struct stat state {};
  if (!journal().on || !relative(path_of(file), below) || ::fstat(file, &state) != 0) return;
  const auto [at, is_new] = journal().files.try_emplace(state.st_ino, journal().next_file);
  if (is_new) {
    ++journal().next_file;
    journal().events.push_back({Kind::kLink, at->second, 0, {}, below});
  } else if ((flags & O_TRUNC) != 0) {
    journal().events.push_back({Kind::kTruncate, at->second, 0, {}, {}});
  }
}

void note_write(int file, const void* data, ssize_t size, std::uint64_t at) {
  if (size <= 0) return;
  const std::lock_guard<std::mutex> lock(journal().mutex);
  std::uint64_t number = 0;
  if (!journal().on || !find_file(file, number)) return;
  journal().events.push_back(
      {Kind::kWrite,
       number,
       at,
       std::string(static_cast<const char*>(data), static_cast<std::size_t>(size)),
       {}});
}

void note_sync(int file) {
  const std::lock_guard<std::mutex> lock(journal().mutex);
  if (!journal().on) return;
  std::uint64_t number = 0;
  std::string below;
  if (find_file(file, number)) {
    journal().events.push_back({Kind::kSync, number, 0, {}, {}});
  } else if (relative(path_of(file), below)) {
    journal().events.push_back({Kind::kSyncFolder, 0, 0, {}, below});
  }
}

struct Content {
  std::string bytes;
  void write(std::uint64_t at, std::string_view data) {
    if (bytes.size() < at + data.size()) bytes.resize(at + data.size());
    bytes.replace(at, data.size(), data);
  }
};

std::string parent(const std::string& path) {
  return std::filesystem::path(path).parent_path().string();
}

}  // namespace

void start_journal(const std::string& folder) {
  const std::lock_guard<std::mutex> lock(journal().mutex);
  journal().folder = folder;
  journal().events.clear();
  journal().files.clear();
  journal().next_file = 0;
  journal().on = true;
}

void stop_journal() {
  const std::lock_guard<std::mutex> lock(journal().mutex);
  journal().on = false;
}

std::size_t journal_size() {
  const std::lock_guard<std::mutex> lock(journal().mutex);
  return journal().events.size();
}

void make_image(std::size_t events, Unsynced unsynced, std::mt19937_64& random,
                const std::string& target) {
  constexpr std::size_t kSector = 512;
  const std::vector<Event>& all = journal().events;
  // When what each event changed was synced; past the end: never.
  std::vector<std::size_t> last_sync(journal().next_file, 0);
  std::map<std::string, std::size_t> last_folder_sync;
  std::size_t last_durable_name = 0;
  for (std::size_t i = 0; i < events; ++i) {
    if (all[i].kind == Kind::kSync) last_sync[all[i].file] = i + 1;
    if (all[i].kind == Kind::kSyncFolder) last_folder_sync[all[i].path] = i + 1;
  }
  const auto is_name = [](const Event& event) {
    return event.kind == Kind::kLink || event.kind == Kind::kUnlink || event.kind == Kind::kFolder;
  };
  for (std::size_t i = 0; i < events; ++i) {
    // A journal is written in order: a durable change of names makes the earlier ones durable.
    if (is_name(all[i]) && i < last_folder_sync[parent(all[i].path)]) last_durable_name = i + 1;
  }
  std::size_t names_until = last_durable_name;
  if (unsynced == Unsynced::kKept) names_until = events;
  if (unsynced == Unsynced::kTorn) {
    names_until += random() % (events - last_durable_name + 1);
  }

  std::vector<Content> contents(journal().next_file);
  std::map<std::string, std::uint64_t> names;
  for (std::size_t i = 0; i < events; ++i) {
    const Event& event = all[i];
    const bool durable = i < last_sync[event.file] || unsynced == Unsynced::kKept;
    switch (event.kind) {
      case Kind::kWrite:
        for (std::size_t from = 0; from < event.data.size();) {
          const std::size_t n =
              std::min(event.data.size() - from, kSector - (event.at + from) % kSector);
          if (durable || (unsynced == Unsynced::kTorn && random() % 2 == 0)) {
            contents[event.file].write(event.at + from,
                                       std::string_view(event.data).substr(from, n));
          }
          from += n;
        }
        break;
      case Kind::kTruncate:
        if (durable || (unsynced == Unsynced::kTorn && random() % 2 == 0)) {
          contents[event.file].bytes.resize(event.at);
        }
        break;
      case Kind::kLink:
        if (i < names_until) names[event.path] = event.file;
        break;
      case Kind::kUnlink:
        if (i < names_until) names.erase(event.path);
        break;
      case Kind::kFolder:
        if (i < names_until) std::filesystem::create_directories(target + "/" + event.path);
        break;
      case Kind::kSync:
      case Kind::kSyncFolder:
        break;
    }
  }
  for (const auto& [path, file] : names) {
    std::filesystem::create_directories(target + "/" + parent(path));
    std::ofstream(target + "/" + path, std::ios::binary) << contents[file].bytes;
  }
}

}  // namespace turboquant::test

using namespace turboquant::test;

extern "C" {

int open(const char* path, int flags, ...) {
  static const auto real = next<int (*)(const char*, int, ...)>("open");
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(list, mode_t) : 0;
  va_end(list);
  const int file = real(path, flags, mode);
  note_open(file, flags);
  return file;
}

int open64(const char* path, int flags, ...) {
  static const auto real = next<int (*)(const char*, int, ...)>("open64");
  va_list list;
  va_start(list, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(list, mode_t) : 0;
  va_end(list);
  const int file = real(path, flags, mode);
  note_open(file, flags);
  return file;
}

ssize_t write(int file, const void* data, size_t size) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  const off_t before = ::lseek(file, 0, SEEK_CUR);
  const ssize_t n = real(file, data, size);
  if (before >= 0) note_write(file, data, n, static_cast<std::uint64_t>(before));
  return n;
}

ssize_t pwrite(int file, const void* data, size_t size, off_t at) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  const ssize_t n = real(file, data, size, at);
  note_write(file, data, n, static_cast<std::uint64_t>(at));
  return n;
}

ssize_t pwrite64(int file, const void* data, size_t size, off64_t at) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64");
  const ssize_t n = real(file, data, size, at);
  note_write(file, data, n, static_cast<std::uint64_t>(at));
  return n;
}

int ftruncate(int file, off_t size) {
  static const auto real = next<int (*)(int, off_t)>("ftruncate");
  const int result = real(file, size);
  const std::lock_guard<std::mutex> lock(journal().mutex);
  std::uint64_t number = 0;
  if (result == 0 && journal().on && find_file(file, number)) {
    journal().events.push_back({Kind::kTruncate, number, static_cast<std::uint64_t>(size), {}, {}});
  }
  return result;
}

int ftruncate64(int file, off64_t size) { return ftruncate(file, size); }

int fsync(int file) {
  static const auto real = next<int (*)(int)>("fsync");
  const int result = real(file);
  if (result == 0) note_sync(file);
  return result;
}

int fdatasync(int file) {
  static const auto real = next<int (*)(int)>("fdatasync");
  const int result = real(file);
  if (result == 0) note_sync(file);
  return result;
}

int rename(const char* from, const char* to) {
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  const std::lock_guard<std::mutex> lock(journal().mutex);
  struct stat state {};
  const bool there = ::stat(from, &state) == 0;
  const int result = real(from, to);
  std::string below_from;
  std::string below_to;
  const auto at = journal().files.find(state.st_ino);
  if (result == 0 && journal().on && there && at != journal().files.end() &&
      relative(from, below_from) && relative(to, below_to)) {
    // Both halves of a rename are one change: the new name first, so that a cut between them is the
    // state that also a crash may show.
    journal().events.push_back({Kind::kLink, at->second, 0, {}, below_to});
    journal().events.push_back({Kind::kUnlink, 0, 0, {}, below_from});
  }
  return result;
}

int unlink(const char* path) {
  static const auto real = next<int (*)(const char*)>("unlink");
  const std::lock_guard<std::mutex> lock(journal().mutex);
  struct stat state {};
  const bool there = ::stat(path, &state) == 0;
  const int result = real(path);
  std::string below;
  if (result == 0 && there && journal().on && relative(path, below)) {
    journal().events.push_back({Kind::kUnlink, 0, 0, {}, below});
    journal().files.erase(state.st_ino);  // the number may be given to another file
  }
  return result;
}

int mkdir(const char* path, mode_t mode) {
  static const auto real = next<int (*)(const char*, mode_t)>("mkdir");
  const int result = real(path, mode);
  const std::lock_guard<std::mutex> lock(journal().mutex);
  std::string below;
  if (result == 0 && journal().on && relative(path, below)) {
    journal().events.push_back({Kind::kFolder, 0, 0, {}, below});
  }
  return result;
}

}  // extern "C"
