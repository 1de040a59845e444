// Parts of a piece of work on OpenMP threads, with exceptions brought back.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>

namespace turboquant {

/// least = the smaller of least and value.
inline void lower(std::atomic<std::size_t>& least, std::size_t value) {
  std::size_t seen = least.load(std::memory_order_relaxed);
  while (value < seen && !least.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

/// How many threads a caller may start: one where it runs in parallel already.
inline std::size_t free_threads() {
  return static_cast<std::size_t>(omp_in_parallel() != 0 ? 1 : omp_get_max_threads());
}

/// part(p) for p below parts, each on its own thread where there are enough; rethrows one of the
/// exceptions.
template <typename Part>
void run_parts(std::size_t parts, const Part& part) {
  std::exception_ptr failure;
  std::mutex failing;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(parts)) if (parts > 1)
  for (std::size_t p = 0; p < parts; ++p) {
    try {
      part(p);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace turboquant
