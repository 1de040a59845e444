#include "service/worker_pool.h"

#include <omp.h>

#include <algorithm>
#include <utility>

namespace turboquant::service {

WorkerPool::WorkerPool(std::size_t threads, std::size_t max_queued, bool share_cores)
    : max_queued_(max_queued), share_cores_(share_cores) {
  threads_.reserve(threads);
  for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
    for (Idle* const idle : idle_) {
      idle->called = true;
      idle->wake.notify_one();
    }
    idle_.clear();
  }
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::submit(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  if (tasks_.size() >= max_queued_) return false;
  add(std::move(task));
  return true;
}

void WorkerPool::submit_unbounded(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  add(std::move(task));
}

void WorkerPool::add(std::function<void()> task) {
  tasks_.push_back(std::move(task));
  if (idle_.empty()) return;
  Idle& chosen = *idle_.back();
  idle_.pop_back();
  chosen.called = true;
  chosen.wake.notify_one();  // under the lock: afterwards `chosen` may be gone
}

std::size_t WorkerPool::queued() const {
  const std::lock_guard lock(mutex_);
  return tasks_.size();
}

void WorkerPool::work() {
  const int cores = omp_get_max_threads();
  Idle idle;
  std::unique_lock lock(mutex_);
  for (;;) {
    while (tasks_.empty()) {
      if (ending_) return;
      idle.called = false;
      idle_.push_back(&idle);
      idle.wake.wait(lock, [&idle] { return idle.called; });
    }
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    const int running = static_cast<int>(++running_);
    lock.unlock();
    omp_set_num_threads(share_cores_ ? std::max(1, cores / running) : 1);
    task();
    task = nullptr;
    lock.lock();
    --running_;
  }
}

}  // namespace turboquant::service
