// The one interface between the mathematics and the instruction sets: a struct of function
// pointers and a name. A backend fills one table; dispatch.cpp chooses among them.
//
// Contract shared by all functions: noexcept, no allocation, no alignment requirement unless
// stated, inputs finite and in range (debug assertions at most). Every backend computes the same
// bits: integer results exactly, float results by the operation order written here, without
// fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/code_layout.h"

namespace turboquant::kernels {

/// Maps codes to integer levels, and magnitudes to codes.
struct CodeTable {
  int bits;                ///< 1 to 4
  std::int32_t offset;     ///< largest |level|: level + offset fits in an unsigned byte
  std::int8_t levels[16];  ///< level of each code, ascending; entries past 2^bits repeat
  float thresholds[8];     ///< 2^(bits-1) - 1 ascending magnitudes; the rest is +infinity
};

/// Levels of a trellis code: twice as many as its bits can name at a time.
inline constexpr std::size_t kMaxTrellisLevels = 32;

/// A trellis code. docs/code_format.md, "Trellis codes".
struct alignas(64) TrellisTable {
  int bits;                               ///< 1 to 4 for each coordinate
  std::int32_t offset;                    ///< largest |level|
  float factor;                           ///< a coordinate times this is in the units of `targets`
  std::int8_t levels[kMaxTrellisLevels];  ///< 2^(bits+1), ascending; levels[n-1-r] = -levels[r]
  std::int16_t targets[kMaxTrellisLevels];  ///< levels in the units of the encoder
  /// Levels where backends look them up, see trellis_planes.h; without use past 2^(bits+1).
  std::int8_t lookup[kMaxTrellisLevels];
};

/// One query as int8, padded with zeros to a multiple of kBlock.
struct QueryView {
  const std::int8_t* values;
  std::int32_t sum;  ///< sum of values
};

/// A candidate that passed a cut-off: row within the tile, query within the tile, exact product.
struct Hit {
  std::uint32_t row;
  std::uint32_t query;
  std::int32_t dot;
};

struct KernelTable {
  const char* name;

  /// True when `dot_tile` wants rows decoded to level + offset (unsigned) rather than level.
  bool unsigned_rows;

  /// A row of `dot_rows` takes about as long as so many rows of `dot_tile` for one query of it.
  float row_cost;

  // ---- rotation ----

  /// Sum of x[i]^2 in double: lane i % 8 accumulates, lanes are added pairwise (0+4, 1+5, 2+6,
  /// 3+7, then 0+2, 1+3, then 0+1). NaN or infinity in x gives a result that is not finite.
  double (*norm_squared)(const float* x, std::size_t d);

  /// out[i] = float(double(x[i]) * factor). out may be x.
  void (*scale)(const float* x, std::size_t d, double factor, float* out);

  /// y[i] *= factors[i].
  void (*multiply)(float* y, const float* factors, std::size_t n);

  /// Unnormalized fast Walsh-Hadamard transform in place; n a power of two, 1 to 65,536.
  /// Stages of span 1, 2, 4, ...: (a, b) becomes (a + b, a - b).
  void (*fwht)(float* y, std::size_t n);

  // ---- encode ----

  /// codes[i] in [0, 2^bits): with m = #{thresholds <= |y[i]|}, 2^(bits-1) + m when y[i] >= 0 and
  /// 2^(bits-1) - 1 - m otherwise. Returns sum of y[i] * level(codes[i]) in float: lane i % 16
  /// accumulates, lanes are added pairwise (0+8, 1+9, ...; 0+4, ...; 0+2, 1+3; 0+1).
  float (*quantize)(const float* y, std::size_t d, const CodeTable& table, std::uint8_t* codes);

  /// Packs d codes of `bits` bits into packed_bytes(d, bits) bytes.
  void (*pack)(const std::uint8_t* codes, std::size_t d, int bits, std::uint8_t* packed);

  /// Largest |u[i]|; 0 when d is 0.
  float (*max_abs)(const float* u, std::size_t d);

  /// values[i] = round_to_even(u[i] * factor) for i < d, zeros up to the next multiple of kBlock.
  /// |u[i] * factor| must be below 127.5. Returns the sum of values.
  std::int32_t (*quantize_query)(const float* u, std::size_t d, float factor, std::int8_t* values);

  // ---- attention ----

  /// IEEE half precision, ties to even; |x| above 65504 becomes 65504.
  void (*to_half)(const float* x, std::size_t n, std::uint16_t* out);

  /// Finite halves to float, exact.
  void (*to_float)(const std::uint16_t* x, std::size_t n, float* out);

  /// Sum of a[i] * b[i]: lane i % 16 accumulates, lanes are added as in quantize.
  float (*dot)(const float* a, const float* b, std::size_t n);

  /// y[i] += x[i] * factor.
  void (*add_scaled)(const float* x, float factor, std::size_t n, float* y);

  /// out[i] = e^(x[i] - shift), x[i] <= shift, within 4e-7 of it; 0 where x[i] - shift <= -87, as
  /// for -infinity. Returns their sum: lane i % 16 accumulates, lanes are added as in quantize.
  /// out may be x.
  float (*exp_sum)(const float* x, std::size_t n, float shift, float* out);

  /// Dots of a tile as scores [kLane][stride]: scores[l * stride + t] += float(dots[t * kLane + l])
  /// * (factors[t] * steps[l]) for t < n.
  void (*add_tile_scores)(const std::int32_t* dots, std::size_t n, const float* factors,
                          const float* steps, float* scores, std::size_t stride);

  /// sums[i * kLane + l] += float(dots[i * kLane + l]) * steps[l] for i < n.
  void (*add_tile_sums)(const std::int32_t* dots, std::size_t n, const float* steps, float* sums);

  /// x[i] -= float(values[i]) * step. Returns the sum of |x[i]|: lane i % 16 accumulates, lanes are
  /// added as in quantize.
  float (*take_off)(const std::int8_t* values, float step, std::size_t n, float* x);

  // ---- decode ----

  /// out[i] = table[code i] for i < d; out has round_up(d, kBlock) bytes, those past d are
  /// unspecified. Reads exactly packed_bytes(d, bits) bytes.
  void (*decode)(const std::uint8_t* packed, std::size_t d, int bits, const std::int8_t table[16],
                 std::int8_t* out);

  // ---- trellis codes ----

  /// The path of least squared error through the trellis, by Viterbi's algorithm in 16 bits:
  /// x = round_to_even(clamp(y[i] * factor, -32767, 32767)), level r of coordinate i costs
  /// (e^2 + 2^14) >> 15 where e = x - targets[r] clamped to 16 bits, and label c the least of
  /// levels 4 * rest + c, that of the smallest rest among equals; steps without a coordinate cost
  /// nothing. State m' comes from m = m' >> 1 or m + 128: its sum is the smaller one of the sums of
  /// those before and the label of m' or m' + 256, the first of equals, less the least sum of the
  /// step before, at most 32,767. The path ends in the smallest state of least sum and may start
  /// anywhere. Writes trellis_bytes(d, bits) bytes. work: trellis_work_bytes(d, bits), aligned to
  /// 64. |y[i]| finite.
  void (*trellis_encode)(const float* y, std::size_t d, const TrellisTable& table,
                         std::uint8_t* work, std::uint8_t* row);

  /// out[i] = level of coordinate i plus `add`, modulo 256, for i < d; out has round_up(d, kBlock)
  /// bytes, those past d are unspecified. Reads exactly trellis_bytes(d, bits) bytes.
  void (*trellis_decode)(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                         std::int32_t add, std::int8_t* out);

  /// dot_rows of a trellis code.
  void (*trellis_dot_rows)(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                           std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                           std::int32_t* dots);

  // ---- products ----

  /// dots[j] = sum over i of level(code i of row j) * query[i], exact. Row j starts at
  /// codes + stride * (rows ? rows[j] : j). Reads packed_bytes(d, bits) bytes of each row.
  void (*dot_rows)(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                   std::size_t n, std::size_t d, const CodeTable& table, QueryView query,
                   std::int32_t* dots);

  /// Decoded rows against groups of kLane queries.
  /// rows: [n_rows][d_padded] operand bytes (see unsigned_rows), n_rows a multiple of kLane,
  /// 64-byte aligned. queries: [groups][d_padded / 4][kLane][4] int8, 64-byte aligned.
  /// bias: [groups][kLane], what the product starts from (-offset * sum when unsigned_rows,
  /// else 0). dots: [groups][n_rows][kLane], 64-byte aligned. d_padded a multiple of kBlock.
  void (*dot_tile)(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
                   const CodeTable& table, const std::int8_t* queries, std::size_t groups,
                   const std::int32_t* bias, std::int32_t* dots);

  // ---- selection ----
  // A pair passes unless float(dot) * row_scale - row_term * query_term <= cutoff, so NaN passes.
  // row_term null means 0. Hits are written in order of row, then query. Return their number.

  /// One group: dots [n_rows][kLane], cutoff and query_term [kLane]. hits has room for
  /// n_rows * kLane.
  std::size_t (*select_tile)(const std::int32_t* dots, std::size_t n_rows, const float* row_scale,
                             const float* row_term, const float* query_term, const float* cutoff,
                             Hit* hits);

  /// One query: dots [n]. hits has room for n; Hit::query is 0.
  std::size_t (*select_rows)(const std::int32_t* dots, std::size_t n, const float* row_scale,
                             const float* row_term, float query_term, float cutoff, Hit* hits);

  // ---- sign planes ----

  /// One block of 64 rows: sums[r] = start + the sum over g < n_bytes of tables[2 g][low four bits
  /// of byte g of row r] + tables[2 g + 1][its high four bits]. plane: [n_bytes][64], where row r
  /// has position sign_position(r). tables: [2 n_bytes][16], entries 0 to kMostSign. What lies
  /// `ahead` bytes further is fetched into the caches; nothing need be there.
  void (*sign_sums)(const std::uint8_t* plane, std::size_t n_bytes, const std::uint8_t* tables,
                    std::int32_t start, std::size_t ahead, std::int32_t* sums);
};

/// Four entries of a table add up in a byte.
inline constexpr int kMostSign = 63;

/// Rows r, r + 16, r + 32 and r + 48 are neighbours, so that sums widened from bytes to 32 bits
/// come out in the order of rows.
constexpr std::size_t sign_position(std::size_t row) { return row % 16 * 4 + row / 16; }

/// The backend in use: the best that this processor supports, or the one that the environment
/// variable TURBOQUANT_FORCE_ISA names (scalar, avx2, avx512,
/// avx512vbmi, amx, neon). A name that is unknown
/// or unsupported here is an error: std::runtime_error from the first call.
const KernelTable& active();

/// Backend by name; null when it was not built or this processor lacks it.
const KernelTable* find(const char* name);

/// Names of the backends that run here, best first, null-terminated.
const char* const* available();

}  // namespace turboquant::kernels
