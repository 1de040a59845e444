// Disk errors on demand, for files of test stores. fault_shim.cpp defines write, fsync and the like
// in the test program itself, where the dynamic linker finds them before libc's.
#pragma once

#include <cstdint>

namespace turboquant::test {

struct Faults {
  /// Bytes that may still be written before ENOSPC; negative: no limit.
  std::int64_t space = -1;
  /// Whether fsync and fdatasync fail with EIO.
  bool sync_fails = false;
  /// So many of them succeed, the next one fails, those after it succeed; negative: none fails so.
  std::int64_t syncs = -1;
};

/// From now on, in all threads.
void set_faults(const Faults& faults);

/// Calls that were made to fail.
std::uint64_t faults_injected();

}  // namespace turboquant::test
