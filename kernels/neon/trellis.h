// Trellis codes on NEON. Internal linkage.
#pragma once

#include <arm_neon.h>

#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/trellis_encode.h"
#include "kernels/trellis_planes.h"

namespace turboquant::kernels {
namespace {

// What Registers needs.
struct PlaneLanes {
  static constexpr bool kLoadsBefore = true;
  static constexpr std::size_t kBack = 16;
  template <int Bytes>
  static Quads before(Quads now, Quads back) {
    return reinterpret_cast<Quads>(vextq_u8(reinterpret_cast<uint8x16_t>(back),
                                            reinterpret_cast<uint8x16_t>(now), 16 - Bytes));
  }
  static Quads back_of_first(Quads /*now*/, std::uint64_t before) { return Quads{before, before}; }
  // The first n bytes, at most a register; zeros behind.
  struct Part {
    explicit Part(std::size_t bytes) : n(bytes) {}
    Quads load(const std::uint8_t* from) const {
      std::uint8_t copy[16] = {};
      std::memcpy(copy, from, n);
      return kernels::load<Quads>(copy);
    }
    std::size_t n;
  };
};

// Levels of a register of indices, field by field: 16 coordinates each.
template <int Bits>
class Lookup {
 public:
  Lookup(const TrellisTable& table, std::int32_t add)
      : first_(vaddq_s8(vld1q_s8(table.lookup), vdupq_n_s8(static_cast<std::int8_t>(add)))),
        second_(vaddq_s8(vld1q_s8(table.lookup + 16), vdupq_n_s8(static_cast<std::int8_t>(add)))) {
    if constexpr (Bits == 1) {
      // The table for the upper two bits of an index.
      const uint8x16_t upper = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
      second_ = vqtbl1q_s8(first_, upper);
    }
  }

  /// f(field, levels), each field once.
  template <typename Function>
  [[gnu::always_inline]] void operator()(const Indices& indices, const Function& f) const {
    const auto even = reinterpret_cast<uint8x16_t>(indices.even);
    const auto odd = reinterpret_cast<uint8x16_t>(indices.odd);
    if constexpr (Bits == 1) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const uint8x16_t v = i == 0 ? even : odd;
        f(i, vqtbl1q_s8(first_, low(v)));
        f(i + 2, vqtbl1q_s8(second_, low(v)));
        f(i + 4, vqtbl1q_s8(first_, high(v)));
        f(i + 6, vqtbl1q_s8(second_, high(v)));
      }
    } else if constexpr (Bits == 2) {
      f(0, vqtbl1q_s8(first_, low(even)));
      f(1, vqtbl1q_s8(first_, low(odd)));
      f(2, vqtbl1q_s8(first_, high(even)));
      f(3, vqtbl1q_s8(first_, high(odd)));
    } else if constexpr (Bits == 3) {
      const auto pair = [&](int field, Quads v) {
        f(field, vqtbl1q_s8(first_, low(reinterpret_cast<uint8x16_t>(v))));
        f(field + 4, vqtbl1q_s8(first_, high(reinterpret_cast<uint8x16_t>(v))));
      };
      pair(0, indices.even);
      pair(1, indices.odd);
      pair(2, indices.even_upper);
      pair(3, indices.odd_upper);
    } else {
      // The low parity goes to bit 4 of an index of five bits.
      const int8x16x2_t both = {{first_, second_}};
      f(0, vqtbl2q_s8(both, vorrq_u8(low(even), vandq_u8(vshlq_n_u8(odd, 1), vdupq_n_u8(16)))));
      f(1, vqtbl2q_s8(both, vsriq_n_u8(vandq_u8(vshrq_n_u8(odd, 3), vdupq_n_u8(16)), even, 4)));
    }
  }

 private:
  static uint8x16_t low(uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }
  static uint8x16_t high(uint8x16_t v) { return vshrq_n_u8(v, 4); }

  int8x16_t first_, second_;
};

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const Lookup<kBits> lookup(table, add);
    decode_planes<PlaneLanes, kBits>(
        row, d, out, [&](const Indices& of, std::int8_t* to, std::size_t pitch) {
          lookup(of, [&](int field, int8x16_t levels) {
            vst1q_s8(to + static_cast<std::size_t>(field) * pitch, levels);
          });
        });
  });
}

template <int Bits, typename OfShape>
[[gnu::always_inline]] inline int32x4_t trellis_sums(OfShape shape, const std::uint8_t* row,
                                                     const Registers<PlaneLanes, Bits>& registers,
                                                     const Lookup<Bits>& lookup,
                                                     const PlaneQuery<Bits>& query) {
  int32x4_t sums[2] = {};  // in turn, so that additions do not wait for one another
  registers.for_each(
      shape, row, [&](const Indices& of, std::size_t at) __attribute__((always_inline)) {
        lookup(of, [&](int field, int8x16_t levels) {
          int32x4_t& sum = sums[field % 2];
          sum = vdotq_s32(sum, levels, vld1q_s8(query.of(field, at)));
        });
      });
  return vaddq_s32(sums[0], sums[1]);
}

void trellis_dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                      std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                      std::int32_t* dots) {
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const Lookup<kBits> lookup(table, 0);
    const PlaneQuery<kBits> planes(query.values, d);
    const Registers<PlaneLanes, kBits> registers(d);
    registers.by_shape([&](auto shape) {
      dot_by<1, 0>(codes, stride, rows, n, dots, [&](const std::uint8_t* const row[1]) {
        return vaddvq_s32(trellis_sums<kBits>(shape, row[0], registers, lookup, planes));
      });
    });
  });
}

// Of FloatLanes: what KernelTable::trellis_encode needs.
struct TrellisLanes {
  // vqrdmulhq saturates where e = -32768, to one less than the contract says.
  static Words squared_difference(Words x, Words target) {
    const int16x8_t e =
        vqsubq_s16(reinterpret_cast<int16x8_t>(x), reinterpret_cast<int16x8_t>(target));
    const int16x8_t square = vqrdmulhq_s16(e, e);
    const uint16x8_t most = vceqq_s16(square, vdupq_n_s16(32767));
    return reinterpret_cast<Words>(vsubq_u16(vreinterpretq_u16_s16(square), most));
  }
  static std::uint16_t smallest(Words v) { return vminvq_u16(reinterpret_cast<uint16x8_t>(v)); }
  static Words lesser(Words a, Words b) {
    return reinterpret_cast<Words>(
        vminq_u16(reinterpret_cast<uint16x8_t>(a), reinterpret_cast<uint16x8_t>(b)));
  }
  static Words broadcast_quad(std::uint64_t quad) {
    return reinterpret_cast<Words>(vdupq_n_u64(quad));
  }
  static Words shuffle_quads(Words quads, const std::uint8_t* indices) {
    return reinterpret_cast<Words>(
        vqtbl1q_u8(reinterpret_cast<uint8x16_t>(quads), vld1q_u8(indices)));
  }
  // Eight even states, then eight odd ones, a byte each.
  static constexpr std::size_t kChoiceBytes = 256;
  static void store_choices(Words even, Words even_first, Words odd, Words odd_first,
                            std::uint8_t* choices, std::size_t r) {
    const auto first = [](Words best, Words of_first) {
      return vmovn_u16(
          vceqq_u16(reinterpret_cast<uint16x8_t>(best), reinterpret_cast<uint16x8_t>(of_first)));
    };
    vst1q_u8(choices + 16 * r,
             vmvnq_u8(vcombine_u8(first(even, even_first), first(odd, odd_first))));
  }
  static std::size_t choice(const std::uint8_t* choices, std::size_t state) {
    return choices[state / 16 * 16 + state % 2 * 8 + state / 2 % 8] & 1;
  }
  static void store_by_turns(Words even, Words odd, std::uint16_t* to) {
    vst2q_u16(to, {{reinterpret_cast<uint16x8_t>(even), reinterpret_cast<uint16x8_t>(odd)}});
  }
};

}  // namespace
}  // namespace turboquant::kernels
