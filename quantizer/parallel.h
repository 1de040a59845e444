// Parts of a piece of work on OpenMP threads, with exceptions brought back.
#pragma once

#include <cstddef>
#include <exception>

namespace turboquant {

/// part(p) for p below parts, each on its own thread where there are enough; rethrows one of the
/// exceptions.
template <typename Part>
void run_parts(std::size_t parts, const Part& part) {
  std::exception_ptr failure;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(parts)) if (parts > 1)
  for (std::size_t p = 0; p < parts; ++p) {
    try {
      part(p);
    } catch (...) {
#pragma omp critical(turboquant_part_failure)
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace turboquant
