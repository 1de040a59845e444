#include "kernels/cuda/scan.cuh"

namespace turboquant::cuda {

const ScanKernel* scan_kernels_2t() { return scan_kernels<trellis_code(2)>(); }

}  // namespace turboquant::cuda
