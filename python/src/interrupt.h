// Long calls without the GIL that still answer to Ctrl-C.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>

namespace turboquant::python {

/// Runs Python's signal handlers; throws nanobind::python_error when one raised, as Ctrl-C does.
/// Call without the GIL.
inline void check_signals() {
  const nanobind::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
}

/// f(first, count) for consecutive blocks of [0, n), looking for signals between them. Call without
/// the GIL.
template <class F>
void in_blocks(std::size_t n, std::size_t block, F&& f) {
  for (std::size_t first = 0; first < n; first += block) {
    if (first > 0) check_signals();
    f(first, std::min(block, n - first));
  }
}

}  // namespace turboquant::python
