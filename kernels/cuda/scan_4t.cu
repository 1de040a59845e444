#include "kernels/cuda/scan.cuh"

namespace turboquant::cuda {

const ScanKernel* scan_kernels_4t() { return scan_kernels<trellis_code(4)>(); }

}  // namespace turboquant::cuda
