// Trellis codes on NEON. Internal linkage.
#pragma once

#include <arm_neon.h>

#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/trellis_windows.h"

namespace turboquant::kernels {
namespace {

// States of 16 coordinates; touches 16 bytes.
template <int Bits>
inline uint8x16_t states16(const std::uint8_t* bytes) {
  const uint8x16_t v = vld1q_u8(bytes);
  const auto& w = kWindows<Bits>;
  const auto words = [&](int odd) {
    const uint8x16_t pairs = vqtbl1q_u8(v, vreinterpretq_u8_s8(vld1q_s8(w.bytes[odd])));
    return vshlq_u16(vreinterpretq_u16_u8(pairs), vld1q_s16(w.shifts[odd]));
  };
  return vreinterpretq_u8_u16(vsriq_n_u16(words(1), words(0), 8));
}

struct Levels256 {
  explicit Levels256(const std::int8_t* levels) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) parts[i].val[j] = vld1q_s8(levels + 64 * i + 16 * j);
    }
  }
  // Past a part's 64 entries vqtbl4q gives 0 and vqtbx4q leaves what is there.
  int8x16_t operator()(uint8x16_t states) const {
    int8x16_t levels = vqtbl4q_s8(parts[0], states);
    levels = vqtbx4q_s8(levels, parts[1], vsubq_u8(states, vdupq_n_u8(64)));
    levels = vqtbx4q_s8(levels, parts[2], vsubq_u8(states, vdupq_n_u8(128)));
    return vqtbx4q_s8(levels, parts[3], vsubq_u8(states, vdupq_n_u8(192)));
  }
  int8x16x4_t parts[4];
};

template <int Bits>
void trellis_decode_bits(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                         std::int32_t add, std::int8_t* out) {
  const Levels256 levels(table.levels);
  const int8x16_t plus = vdupq_n_s8(static_cast<std::int8_t>(add));
  for_each_block<Bits>(row, d, [&](const std::uint8_t* from, std::size_t i) {
    for (std::size_t k = 0; k < 4; ++k) {
      vst1q_s8(out + i + 16 * k, vaddq_s8(levels(states16<Bits>(from + 2 * Bits * k)), plus));
    }
  });
}

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  by_bits(table.bits,
          [&](auto bits) { trellis_decode_bits<decltype(bits)::kValue>(row, d, table, add, out); });
}

template <int Bits>
inline std::int32_t trellis_dot(const std::uint8_t* row, std::size_t d, const Levels256& levels,
                                const std::int8_t* query) {
  int32x4_t sum = vdupq_n_s32(0);
  for_each_block<Bits>(row, d, [&](const std::uint8_t* from, std::size_t i) {
    for (std::size_t k = 0; k < 4; ++k) {
      sum =
          vdotq_s32(sum, levels(states16<Bits>(from + 2 * Bits * k)), vld1q_s8(query + i + 16 * k));
    }
  });
  return vaddvq_s32(sum);
}

void trellis_dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                      std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                      std::int32_t* dots) {
  const Levels256 levels(table.levels);
  by_bits(table.bits, [&](auto bits) {
    dot_by<1, 0>(codes, stride, rows, n, dots, [&](const std::uint8_t* const row[1]) {
      return trellis_dot<decltype(bits)::kValue>(row[0], d, levels, query.values);
    });
  });
}

// Of FloatLanes: what KernelTable::trellis_encode needs.
struct TrellisLanes {
  // vqrdmulhq saturates where e = -32768, to one less than the contract says.
  template <typename Words>
  static Words squared_difference(Words x, Words target) {
    const int16x8_t e =
        vqsubq_s16(reinterpret_cast<int16x8_t>(x), reinterpret_cast<int16x8_t>(target));
    const int16x8_t square = vqrdmulhq_s16(e, e);
    const uint16x8_t most = vceqq_s16(square, vdupq_n_s16(32767));
    return reinterpret_cast<Words>(vsubq_u16(vreinterpretq_u16_s16(square), most));
  }
  template <typename Words>
  static std::uint16_t smallest(Words v) {
    return vminvq_u16(reinterpret_cast<uint16x8_t>(v));
  }
  // Register r of the sums: each group 2^Bits times.
  template <int Bits>
  static WordsOf<16>::Type repeat(const std::uint16_t* best, std::size_t r) {
    uint16x8_t words;
    if constexpr (Bits == 1) {
      const uint16x4_t four = vld1_u16(best + 4 * r);
      words = vcombine_u16(vzip1_u16(four, four), vzip2_u16(four, four));
    } else if constexpr (Bits == 2) {
      words = vcombine_u16(vdup_n_u16(best[2 * r]), vdup_n_u16(best[2 * r + 1]));
    } else {
      words = vdupq_n_u16(best[(r * 8) >> Bits]);
    }
    return reinterpret_cast<WordsOf<16>::Type>(words);
  }
};

}  // namespace
}  // namespace turboquant::kernels
