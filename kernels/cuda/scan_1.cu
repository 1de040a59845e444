#include "kernels/cuda/scan.cuh"

namespace turboquant::cuda {

const ScanKernel* scan_kernels_1() { return scan_kernels<1>(); }

}  // namespace turboquant::cuda
