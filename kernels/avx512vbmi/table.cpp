// AVX-512 with VNNI and VBMI, whose byte permutations shorten the look-ups.
#include "kernels/avx512/vnni_tile.h"

namespace turboquant::kernels::avx512vbmi {

const KernelTable kTable = {"avx512vbmi",
                            true,
                            norm_squared,
                            scale,
                            multiply,
                            fwht,
                            quantize,
                            pack,
                            max_abs,
                            quantize_query,
                            to_half,
                            to_float,
                            dot,
                            add_scaled,
                            exp_sum,
                            decode,
                            dot_rows,
                            dot_tile,
                            select_tile_with<FloatLanes>,
                            select_rows_with<FloatLanes>};

}  // namespace turboquant::kernels::avx512vbmi
