// AVX-512 with VNNI and VBMI, whose byte permutations shorten the look-ups.
#include "kernels/avx512/vnni_tile.h"

namespace turboquant::kernels::avx512vbmi {

const KernelTable kTable = vector_table<FloatLanes>("avx512vbmi", true, 8, decode, trellis_decode,
                                                    trellis_dot_rows, dot_rows, dot_tile);

}  // namespace turboquant::kernels::avx512vbmi
