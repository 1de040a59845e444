#pragma once

#include <nanobind/nanobind.h>

namespace turboquant::python {

void bind_quantizer(nanobind::module_& m);

}  // namespace turboquant::python
