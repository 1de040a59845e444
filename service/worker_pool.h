// Threads with a bounded queue. Scans and writes run here, never in gRPC's threads. A task goes to
// the thread that became idle last: its OpenMP team is still awake and its caches are warm.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace turboquant::service {

class WorkerPool {
 public:
  /// share_cores: tasks that run at the same time divide the processor's cores among their OpenMP
  /// teams, instead of each taking all of them.
  WorkerPool(std::size_t threads, std::size_t max_queued, bool share_cores);
  /// Runs what is queued, then ends.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// False, and task is not run, when max_queued tasks wait already.
  [[nodiscard]] bool submit(std::function<void()> task);
  /// For the rest of work that was let in: takes no place in the queue and is never refused.
  void submit_unbounded(std::function<void()> task);

  std::size_t queued() const;

 private:
  // A thread that waits for a task; lives on its stack.
  struct Idle {
    std::condition_variable wake;
    bool called = false;
  };
  void add(std::function<void()> task);  // with mutex_ held
  void work();

  const std::size_t max_queued_;
  const bool share_cores_;
  mutable std::mutex mutex_;
  std::vector<Idle*> idle_;  // the last one became idle last
  std::deque<std::function<void()>> tasks_;
  std::size_t running_ = 0;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace turboquant::service
