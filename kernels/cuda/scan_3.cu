#include "kernels/cuda/scan.cuh"

namespace turboquant::cuda {

const ScanKernel* scan_kernels_3() { return scan_kernels<3>(); }

}  // namespace turboquant::cuda
