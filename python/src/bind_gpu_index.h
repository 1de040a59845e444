// The index on a CUDA device, in builds with CUDA.
#pragma once

#include <nanobind/nanobind.h>

namespace turboquant::python {

void bind_gpu_index(nanobind::module_& m);

}  // namespace turboquant::python
