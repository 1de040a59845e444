#include "python/src/threads.h"

#include <omp.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace turboquant::python {
namespace {

std::atomic<int> wanted{0};  // 0: OpenMP's default

}  // namespace

void set_num_threads(int n) {
  if (n < 1 || n > 4096) {
    throw std::invalid_argument("the number of threads must be 1 to 4096, not " +
                                std::to_string(n));
  }
  wanted = n;
}

int get_num_threads() {
  const int n = wanted;
  return n > 0 ? n : omp_get_max_threads();
}

void use_threads() {
  const int n = wanted;
  if (n > 0) omp_set_num_threads(n);
}

}  // namespace turboquant::python
