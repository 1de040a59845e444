// A lock for many readers and one writer under which neither waits forever. The default one of
// glibc lets new readers pass a waiting writer, and ten threads that search would shut it out.
#pragma once

#include <mutex>
#include <shared_mutex>

namespace turboquant::python {

class FairLock {
 public:
  // The gate is held while waiting, so who comes later queues behind the one who waits.
  void lock() {
    const std::lock_guard<std::mutex> turn(gate_);
    mutex_.lock();
  }
  void unlock() { mutex_.unlock(); }
  void lock_shared() {
    const std::lock_guard<std::mutex> turn(gate_);
    mutex_.lock_shared();
  }
  void unlock_shared() { mutex_.unlock_shared(); }

 private:
  std::mutex gate_;
  std::shared_mutex mutex_;
};

}  // namespace turboquant::python
