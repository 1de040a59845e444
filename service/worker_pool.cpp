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
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::submit(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (tasks_.size() >= max_queued_) return false;
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

void WorkerPool::submit_unbounded(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

std::size_t WorkerPool::queued() const {
  const std::lock_guard lock(mutex_);
  return tasks_.size();
}

void WorkerPool::work() {
  const int cores = omp_get_max_threads();
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
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
