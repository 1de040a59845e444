#include "kernels/cuda/scan.cuh"

namespace turboquant::cuda {

const ScanKernel* scan_kernels_2() { return scan_kernels<2>(); }

}  // namespace turboquant::cuda
