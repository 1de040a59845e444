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

// Longer rows are multiplied a panel at a time, so that the panels of 64 rows and 64 queries stay
// in the first-level cache; the sums wait in `dots` between panels.
constexpr std::size_t kPanel = 384;
constexpr std::size_t kPanelGroups = 4;

// Part of a product: coordinates [begin, end) of rows and queries that are d_padded long.
struct Panel {
  std::size_t d_padded;
  std::size_t begin;
  std::size_t end;
};

// Tiles 0 to 3 accumulate (rows a or b) x (groups a or b), 4 and 5 hold rows, 6 and 7 queries.
// The two flags drop the second rows or the second group.
template <bool TwoRows, bool TwoGroups>
void product(const std::int8_t* rows, const std::int8_t* queries, const Panel& panel,
             std::int32_t* dots, std::size_t group_stride) {
  const std::int8_t* rows_b = rows + kLane * panel.d_padded;
  const std::int8_t* queries_b = queries + kLane * panel.d_padded;
  std::int32_t* dots_b = dots + kLane * kLane;
  if (panel.begin == 0) {
    _tile_zero(0);
    if constexpr (TwoGroups) _tile_zero(1);
    if constexpr (TwoRows) _tile_zero(2);
    if constexpr (TwoRows && TwoGroups) _tile_zero(3);
  } else {
    _tile_loadd(0, dots, 64);
    if constexpr (TwoGroups) _tile_loadd(1, dots + group_stride, 64);
    if constexpr (TwoRows) _tile_loadd(2, dots_b, 64);
    if constexpr (TwoRows && TwoGroups) _tile_loadd(3, dots_b + group_stride, 64);
  }
  for (std::size_t i = panel.begin; i < panel.end; i += kBlock) {
    _tile_loadd(4, rows + i, panel.d_padded);
    _tile_loadd(6, queries + i * kLane, 64);
    _tile_dpbssd(0, 4, 6);
    if constexpr (TwoGroups) {
      _tile_loadd(7, queries_b + i * kLane, 64);
      _tile_dpbssd(1, 4, 7);
    }
    if constexpr (TwoRows) {
      _tile_loadd(5, rows_b + i, panel.d_padded);
      _tile_dpbssd(2, 5, 6);
      if constexpr (TwoGroups) _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, dots, 64);
  if constexpr (TwoGroups) _tile_stored(1, dots + group_stride, 64);
  if constexpr (TwoRows) _tile_stored(2, dots_b, 64);
  if constexpr (TwoRows && TwoGroups) _tile_stored(3, dots_b + group_stride, 64);
}

// All groups against one or two tiles of rows.
template <bool TwoRows>
void products(const std::int8_t* rows, const std::int8_t* queries, std::size_t groups,
              const Panel& panel, std::int32_t* dots, std::size_t group_stride) {
  std::size_t g = 0;
  for (; g + 2 <= groups; g += 2) {
    product<TwoRows, true>(rows, queries + g * kLane * panel.d_padded, panel,
                           dots + g * group_stride, group_stride);
  }
  if (g < groups) {
    product<TwoRows, false>(rows, queries + g * kLane * panel.d_padded, panel,
                            dots + g * group_stride, group_stride);
  }
}

void dot_tile(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
              const CodeTable& /*table*/, const std::int8_t* queries, std::size_t groups,
              const std::int32_t* /*bias*/, std::int32_t* dots) {
  const TileConfig config;
  _tile_loadconfig(&config);
  const std::size_t group_stride = n_rows * kLane;
  for (std::size_t g = 0; g < groups; g += kPanelGroups) {
    const std::size_t count = groups - g < kPanelGroups ? groups - g : kPanelGroups;
    const std::int8_t* q = queries + g * kLane * d_padded;
    std::int32_t* out = dots + g * group_stride;
    for (std::size_t i = 0; i < d_padded; i += kPanel) {
      const Panel panel = {d_padded, i, d_padded - i < kPanel ? d_padded : i + kPanel};
      std::size_t r = 0;
      for (; r + 2 * kLane <= n_rows; r += 2 * kLane) {
        products<true>(rows + r * d_padded, q, count, panel, out + r * kLane, group_stride);
      }
      if (r < n_rows) {
        products<false>(rows + r * d_padded, q, count, panel, out + r * kLane, group_stride);
      }
    }
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

const KernelTable kTable = vector_table<FloatLanes>("amx", false, 32, decode, trellis_decode,
                                                    trellis_dot_rows, dot_rows, dot_tile);

}  // namespace turboquant::kernels::amx
