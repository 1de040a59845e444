#include "kernels/cuda/scan.cuh"

namespace turboquant::cuda {

const ScanKernel* scan_kernels_4() { return scan_kernels<4>(); }

}  // namespace turboquant::cuda
