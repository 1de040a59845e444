#include "kernels/cuda/scan.cuh"

namespace turboquant::cuda {

const ScanKernel* scan_kernels_1t() { return scan_kernels<trellis_code(1)>(); }

}  // namespace turboquant::cuda
