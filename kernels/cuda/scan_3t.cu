#include "kernels/cuda/scan.cuh"

namespace turboquant::cuda {

const ScanKernel* scan_kernels_3t() { return scan_kernels<trellis_code(3)>(); }

}  // namespace turboquant::cuda
