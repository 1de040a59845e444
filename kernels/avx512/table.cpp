// AVX-512 with VNNI.
#include "kernels/avx512/vnni_tile.h"

namespace turboquant::kernels::avx512 {

const KernelTable kTable = vector_table<FloatLanes>("avx512", true, 8, decode, trellis_decode,
                                                    trellis_dot_rows, dot_rows, dot_tile);

}  // namespace turboquant::kernels::avx512
