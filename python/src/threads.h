// The number of OpenMP threads that calls from Python use. OpenMP keeps its own per calling thread;
// Python's users expect one for the module.
#pragma once

namespace turboquant::python {

void set_num_threads(int n);
int get_num_threads();

/// Sets OpenMP's number for the calling thread; every call that computes starts with it.
void use_threads();

}  // namespace turboquant::python
