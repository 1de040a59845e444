// NEON with the dot product extension (Armv8.2): 16 coordinates a register, s8 x s8 products
// through sdot.
#include <arm_neon.h>

#define TQ_VECTOR_BYTES 16
#include "kernels/backends.h"
#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/vector_table.h"
// Uses what the headers above define.
#include "kernels/neon/trellis.h"

namespace turboquant::kernels::neon {
namespace {

// Codes of coordinates 16 * Quarter to 16 * Quarter + 15 of a block.
template <int Bits, int Quarter>
inline uint8x16_t expand(const std::uint8_t* block) {
  if constexpr (Bits == 4) {
    const uint8x16_t v = vld1q_u8(block + 16 * (Quarter % 2));
    return Quarter < 2 ? vandq_u8(v, vdupq_n_u8(15)) : vshrq_n_u8(v, 4);
  } else if constexpr (Bits == 2) {
    const uint8x16_t v = vld1q_u8(block);
    return vandq_u8(vshlq_u8(v, vdupq_n_s8(-2 * Quarter)), vdupq_n_u8(3));
  } else {
    // A plane of one bit: the low eight coordinates are at bit 2 * Quarter, the high at the next.
    const uint8x8_t bytes = vld1_u8(block + (Bits == 3 ? plane_bytes(2) : 0));
    const uint8x16_t v = vcombine_u8(bytes, bytes);
    constexpr int target = Bits == 3 ? 2 : 0;  // the bit of a code where the plane goes
    const int8x16_t shift =
        vcombine_s8(vdup_n_s8(target - 2 * Quarter), vdup_n_s8(target - 2 * Quarter - 1));
    const uint8x16_t plane = vandq_u8(vshlq_u8(v, shift), vdupq_n_u8(1 << target));
    if constexpr (Bits == 1) {
      return plane;
    } else {
      return vorrq_u8(plane, expand<2, Quarter>(block));
    }
  }
}

// Levels of the 64 coordinates of a block.
template <int Bits>
inline int8x16x4_t block_levels(const std::uint8_t* block, int8x16_t table) {
  return {{vqtbl1q_s8(table, expand<Bits, 0>(block)), vqtbl1q_s8(table, expand<Bits, 1>(block)),
           vqtbl1q_s8(table, expand<Bits, 2>(block)), vqtbl1q_s8(table, expand<Bits, 3>(block))}};
}

// Levels of the last n codes, n < 64; past n those of code 0.
template <int Bits>
inline int8x16x4_t tail_levels(const std::uint8_t* packed, std::size_t n, int8x16_t table) {
  std::uint8_t codes[kBlock];
  unpack_tail(packed, n, Bits, codes);
  int8x16x4_t levels;
  for (int i = 0; i < 4; ++i) levels.val[i] = vqtbl1q_s8(table, vld1q_u8(codes + 16 * i));
  return levels;
}

template <int Bits>
void decode_bits(const std::uint8_t* packed, std::size_t d, int8x16_t table, std::int8_t* out) {
  std::size_t i = 0;
  for (; i + kBlock <= d; i += kBlock, packed += block_bytes(Bits)) {
    store(out + i, block_levels<Bits>(packed, table));
  }
  if (i < d) store(out + i, tail_levels<Bits>(packed, d - i, table));
}

void decode(const std::uint8_t* packed, std::size_t d, int bits, const std::int8_t table[16],
            std::int8_t* out) {
  const int8x16_t t = vld1q_s8(table);
  by_bits(bits, [&](auto b) { decode_bits<decltype(b)::kValue>(packed, d, t, out); });
}

inline int32x4_t dot_block(int32x4_t sum, const int8x16x4_t& levels, const int8x16x4_t& query) {
  for (int i = 0; i < 4; ++i) sum = vdotq_s32(sum, levels.val[i], query.val[i]);
  return sum;
}

// Four rows at a time, so that each load of the query serves four products. The query is zero
// past d, so what a tail holds there does not count.
template <int Bits>
inline int32x4_t dot_four(const std::uint8_t* const row[4], std::size_t d, int8x16_t table,
                          const std::int8_t* query) {
  int32x4_t sums[4] = {};
  std::size_t i = 0;
  for (std::size_t at = 0; i + kBlock <= d; i += kBlock, at += block_bytes(Bits)) {
    const auto q = load<int8x16x4_t>(query + i);
    for (int r = 0; r < 4; ++r) {
      sums[r] = dot_block(sums[r], block_levels<Bits>(row[r] + at, table), q);
    }
  }
  if (i < d) {
    const auto q = load<int8x16x4_t>(query + i);
    for (int r = 0; r < 4; ++r) {
      const std::uint8_t* tail = row[r] + packed_bytes(i, Bits);
      sums[r] = dot_block(sums[r], tail_levels<Bits>(tail, d - i, table), q);
    }
  }
  return vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
}

template <int Bits>
inline std::int32_t dot_one(const std::uint8_t* row, std::size_t d, int8x16_t table,
                            const std::int8_t* query) {
  int32x4_t sum = {};
  std::size_t i = 0;
  for (; i + kBlock <= d; i += kBlock, row += block_bytes(Bits)) {
    sum = dot_block(sum, block_levels<Bits>(row, table), load<int8x16x4_t>(query + i));
  }
  if (i < d) {
    sum = dot_block(sum, tail_levels<Bits>(row, d - i, table), load<int8x16x4_t>(query + i));
  }
  return vaddvq_s32(sum);
}

void dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
              std::size_t n, std::size_t d, const CodeTable& table, QueryView query,
              std::int32_t* dots) {
  const int8x16_t levels = vld1q_s8(table.levels);
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    dot_by<4, 0>(
        codes, stride, rows, n, dots,
        [&](const std::uint8_t* const row[4]) {
          return dot_four<kBits>(row, d, levels, query.values);
        },
        [&](const std::uint8_t* row) { return dot_one<kBits>(row, d, levels, query.values); });
  });
}

// Four coordinates, number Step of the four in a register of each row: 4 rows x 16 queries.
template <int Step>
inline void product_step(int32x4_t acc[4][4], const int8x16_t levels[4],
                         const std::int8_t* queries) {
  for (int q = 0; q < 4; ++q) {
    const int8x16_t four_queries = vld1q_s8(queries + 4 * kLane * Step + 16 * q);
    for (int r = 0; r < 4; ++r) {
      acc[r][q] = vdotq_laneq_s32(acc[r][q], four_queries, levels[r], Step);
    }
  }
}

void dot_tile(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
              const CodeTable& /*table*/, const std::int8_t* queries, std::size_t groups,
              const std::int32_t* bias, std::int32_t* dots) {
  for (std::size_t g = 0; g < groups; ++g) {
    const std::int8_t* group = queries + g * kLane * d_padded;
    for (std::size_t r = 0; r < n_rows; r += 4) {
      int32x4_t acc[4][4];
      for (auto& of_row : acc) {
        for (std::size_t q = 0; q < 4; ++q) of_row[q] = vld1q_s32(bias + g * kLane + 4 * q);
      }
      for (std::size_t i = 0; i < d_padded; i += 16) {
        int8x16_t levels[4];
        for (std::size_t k = 0; k < 4; ++k) levels[k] = vld1q_s8(rows + (r + k) * d_padded + i);
        product_step<0>(acc, levels, group + i * kLane);
        product_step<1>(acc, levels, group + i * kLane);
        product_step<2>(acc, levels, group + i * kLane);
        product_step<3>(acc, levels, group + i * kLane);
      }
      std::memcpy(dots + (g * n_rows + r) * kLane, acc, sizeof acc);
    }
  }
}

struct FloatLanes : TrellisLanes {
  using Float = float32x4_t;
  static constexpr std::size_t kWidth = 4;
  static Float load(const float* p) { return vld1q_f32(p); }
  static Float broadcast(float x) { return vdupq_n_f32(x); }
  static Float multiply(Float a, Float b) { return vmulq_f32(a, b); }
  static unsigned passing(const std::int32_t* dots, Float scale, Float term, Float cutoff) {
    const Float value = vsubq_f32(vmulq_f32(vcvtq_f32_s32(vld1q_s32(dots)), scale), term);
    const uint32x4_t passes = vmvnq_u32(vcleq_f32(value, cutoff));
    return vaddvq_u32(vandq_u32(passes, uint32x4_t{1, 2, 4, 8}));
  }
  static uint8x16_t table(const std::uint8_t* entries) { return vld1q_u8(entries); }
  static Bytes8 low(uint8x16_t table, Bytes8 bytes) {
    return reinterpret_cast<Bytes8>(
        vqtbl1q_u8(table, vandq_u8(reinterpret_cast<uint8x16_t>(bytes), vdupq_n_u8(15))));
  }
  static Bytes8 high(uint8x16_t table, Bytes8 bytes) {
    return reinterpret_cast<Bytes8>(
        vqtbl1q_u8(table, vshrq_n_u8(reinterpret_cast<uint8x16_t>(bytes), 4)));
  }
};

}  // namespace

const KernelTable kTable = vector_table<FloatLanes>("neon", false, 2, decode, trellis_decode,
                                                    trellis_dot_rows, dot_rows, dot_tile);

}  // namespace turboquant::kernels::neon
