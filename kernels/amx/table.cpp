// AMX: 16 rows x 16 queries x 64 coordinates an instruction; all else is AVX-512.
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/avx512/shared.h"

namespace turboquant::kernels::amx {
namespace {

// Operand of ldtilecfg, Intel SDM volume 1, chapter 18.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// Tiles 0 to 3 accumulate (rows a or b) x (groups a or b), 4 and 5 hold rows, 6 and 7 queries.
// The two flags drop the second rows or the second group.
template <bool TwoRows, bool TwoGroups>
void product(const std::int8_t* rows, std::size_t d_padded, const std::int8_t* queries,
             std::int32_t* dots, std::size_t group_stride) {
  const std::int8_t* rows_b = rows + kLane * d_padded;
  const std::int8_t* queries_b = queries + kLane * d_padded;
  _tile_zero(0);
  if constexpr (TwoGroups) _tile_zero(1);
  if constexpr (TwoRows) _tile_zero(2);
  if constexpr (TwoRows && TwoGroups) _tile_zero(3);
  for (std::size_t i = 0; i < d_padded; i += kBlock) {
    _tile_loadd(4, rows + i, d_padded);
    _tile_loadd(6, queries + i * kLane, 64);
    _tile_dpbssd(0, 4, 6);
    if constexpr (TwoGroups) {
      _tile_loadd(7, queries_b + i * kLane, 64);
      _tile_dpbssd(1, 4, 7);
    }
    if constexpr (TwoRows) {
      _tile_loadd(5, rows_b + i, d_padded);
      _tile_dpbssd(2, 5, 6);
      if constexpr (TwoGroups) _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, dots, 64);
  if constexpr (TwoGroups) _tile_stored(1, dots + group_stride, 64);
  if constexpr (TwoRows) _tile_stored(2, dots + kLane * kLane, 64);
  if constexpr (TwoRows && TwoGroups) _tile_stored(3, dots + group_stride + kLane * kLane, 64);
}

template <bool TwoGroups>
void products(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
              const std::int8_t* queries, std::int32_t* dots) {
  const std::size_t group_stride = n_rows * kLane;
  std::size_t r = 0;
  for (; r + 2 * kLane <= n_rows; r += 2 * kLane) {
    product<true, TwoGroups>(rows + r * d_padded, d_padded, queries, dots + r * kLane,
                             group_stride);
  }
  if (r < n_rows) {
    product<false, TwoGroups>(rows + r * d_padded, d_padded, queries, dots + r * kLane,
                              group_stride);
  }
}

void dot_tile(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
              const CodeTable& /*table*/, const std::int8_t* queries, std::size_t groups,
              const std::int32_t* /*bias*/, std::int32_t* dots) {
  const TileConfig config;
  _tile_loadconfig(&config);
  std::size_t g = 0;
  for (; g + 2 <= groups; g += 2) {
    products<true>(rows, n_rows, d_padded, queries + g * kLane * d_padded,
                   dots + g * n_rows * kLane);
  }
  if (g < groups) {
    products<false>(rows, n_rows, d_padded, queries + g * kLane * d_padded,
                    dots + g * n_rows * kLane);
  }
  _tile_release();
}

}  // namespace

bool enable() {
  constexpr int kGetSupported = 0x1021, kRequestPermission = 0x1023;  // arch_prctl(2)
  constexpr int kTileData = 18;
  unsigned long features = 0;
  unsigned eax = 7, ebx, ecx = 0, edx;
  __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  const bool has_tiles = (edx >> 24 & 1) != 0 && (edx >> 25 & 1) != 0 &&  // AMX-TILE, AMX-INT8
                         (ecx >> 1 & 1) != 0;  // AVX512-VBMI, which this folder is compiled with
  return has_tiles && syscall(SYS_arch_prctl, kGetSupported, &features) == 0 &&
         (features >> kTileData & 1) != 0 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

const KernelTable kTable = {"amx",  false,    norm_squared, scale,       multiply,
                            fwht,   quantize, pack,         max_abs,     quantize_query,
                            decode, dot_rows, dot_tile,     select_tile, select_rows};

}  // namespace turboquant::kernels::amx
