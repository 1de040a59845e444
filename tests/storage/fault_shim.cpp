#include "tests/storage/fault_shim.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace turboquant::test {
namespace {

std::atomic<std::int64_t> g_space{-1};
std::atomic<bool> g_sync_fails{false};
std::atomic<std::int64_t> g_syncs{-1};
std::atomic<std::uint64_t> g_injected{0};

// Files of a test store (TempFolder's names), not the test's own output.
bool concerns(int file) {
  char link[64];
  char path[4096];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t n = ::readlink(link, path, sizeof path - 1);
  if (n <= 0) return false;
  path[n] = '\0';
  return std::strstr(path, "/tq_store_") != nullptr;
}

// True when so many bytes do not fit any more. One step decides, so that a write which fails in
// another thread does not fill the disk again that set_faults has just emptied.
bool disk_is_full(int file, std::size_t bytes) {
  const auto wanted = static_cast<std::int64_t>(bytes);
  std::int64_t space = g_space.load();
  if (space < 0 || !concerns(file)) return false;
  bool fits = false;
  do {
    if (space < 0) return false;
    fits = wanted <= space;
  } while (!g_space.compare_exchange_weak(space, fits ? space - wanted : 0));
  if (fits) return false;
  g_injected.fetch_add(1);
  errno = ENOSPC;
  return true;
}

bool sync_fails(int file) {
  if ((!g_sync_fails.load() && g_syncs.load() < 0) || !concerns(file)) return false;
  if (!g_sync_fails.load() && g_syncs.fetch_sub(1) != 0) return false;
  g_injected.fetch_add(1);
  errno = EIO;
  return true;
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

void set_faults(const Faults& faults) {
  g_space = faults.space;
  g_sync_fails = faults.sync_fails;
  g_syncs = faults.syncs;
}

std::uint64_t faults_injected() { return g_injected; }

}  // namespace turboquant::test

using turboquant::test::disk_is_full;
using turboquant::test::next;
using turboquant::test::sync_fails;

extern "C" {

ssize_t write(int file, const void* data, size_t size) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  return disk_is_full(file, size) ? -1 : real(file, data, size);
}

ssize_t pwrite(int file, const void* data, size_t size, off_t at) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  return disk_is_full(file, size) ? -1 : real(file, data, size, at);
}

ssize_t pwrite64(int file, const void* data, size_t size, off64_t at) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64");
  return disk_is_full(file, size) ? -1 : real(file, data, size, at);
}

int fsync(int file) {
  static const auto real = next<int (*)(int)>("fsync");
  return sync_fails(file) ? -1 : real(file);
}

int fdatasync(int file) {
  static const auto real = next<int (*)(int)>("fdatasync");
  return sync_fails(file) ? -1 : real(file);
}

}  // extern "C"
