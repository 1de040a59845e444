// Trellis codes on AVX-512, with byte permutations (VBMI) and without. Internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/trellis_encode.h"
#include "kernels/trellis_planes.h"
#include "kernels/trellis_tail.h"

namespace turboquant::kernels {
namespace {

// What for_each_register needs.
struct PlaneLanes {
#if defined(__AVX512VBMI__)
  static constexpr bool kIgnoresTops = true;
#else
  static constexpr bool kIgnoresTops = false;
#endif
  // Every load of a register at another place crosses a cache line.
  static constexpr bool kLoadsBefore = false;
  static constexpr std::size_t kBack = 8;
  // Shifts of words: there are more units for them than for shuffles, which the look-ups need.
  template <int Bytes>
  static Quads before(Quads now, Quads back) {
    if constexpr (Bytes == 8) {
      return back;
    } else {
#if defined(__AVX512VBMI2__)
      return reinterpret_cast<Quads>(_mm512_shldi_epi64(
          reinterpret_cast<__m512i>(now), reinterpret_cast<__m512i>(back), 8 * Bytes));
#else
      return (now << 8 * Bytes) ^ (back >> (64 - 8 * Bytes));
#endif
    }
  }
  static Quads back_of_first(Quads now, std::uint64_t before) {
    return reinterpret_cast<Quads>(_mm512_alignr_epi64(
        reinterpret_cast<__m512i>(now), _mm512_set1_epi64(static_cast<long long>(before)), 7));
  }
  // The first n bytes, at most a register; zeros behind.
  struct Part {
    explicit Part(std::size_t bytes)
        : n(bytes), mask(bytes < 64 ? (std::uint64_t{1} << bytes) - 1 : ~std::uint64_t{0}) {}
    Quads load(const std::uint8_t* from) const {
      return reinterpret_cast<Quads>(_mm512_maskz_loadu_epi8(mask, from));
    }
    std::size_t n;
    __mmask64 mask;
  };
};

// Levels of a register of indices, field by field: 64 coordinates each.
template <int Bits>
class Lookup {
 public:
  Lookup(const TrellisTable& table, std::int32_t add)
      : first_(broadcast_table(table.lookup, add)),
        second_(broadcast_table(table.lookup + 16, add)) {
    if constexpr (Bits == 1) {
      // Tables for the second field of two bits of an index, and for the third.
      const __m128i second = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
      second_ = _mm512_shuffle_epi8(first_, _mm512_broadcast_i32x4(second));
#if defined(__AVX512VBMI__)
      third_ = _mm512_permutexvar_epi8(
          _mm512_srli_epi16(_mm512_and_si512(load512(kCounting.bytes), _mm512_set1_epi8(48)), 4),
          first_);
#endif
    }
#if defined(__AVX512VBMI__)
    // The low parity on top of an index.
    if constexpr (Bits == 4) {
      first_ = _mm512_mask_mov_epi64(first_, 0xcc, second_);
    }
#endif
  }

  /// f(field, levels), each field once.
  template <typename Function>
  [[gnu::always_inline]] void operator()(const Indices& indices, const Function& f) const {
    const auto even = reinterpret_cast<__m512i>(indices.even);
    const auto odd = reinterpret_cast<__m512i>(indices.odd);
    if constexpr (Bits == 1) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m512i v = i == 0 ? even : odd;
#if defined(__AVX512VBMI__)
        // A look-up reads six bits, three fields.
        f(i, look_up(first_, v));
        f(i + 2, look_up(second_, v));
        f(i + 4, look_up(third_, v));
        f(i + 6, look_up(second_, _mm512_srli_epi16(v, 4)));
#else
        f(i, look_up(first_, low(v)));
        f(i + 2, look_up(second_, low(v)));
        f(i + 4, look_up(first_, high(v)));
        f(i + 6, look_up(second_, high(v)));
#endif
      }
    } else if constexpr (Bits == 2) {
      // Bit 3 of a field is clear, so neither half needs a mask.
      f(0, look_up(first_, even));
      f(1, look_up(first_, odd));
      f(2, look_up(first_, _mm512_srli_epi16(even, 4)));
      f(3, look_up(first_, _mm512_srli_epi16(odd, 4)));
    } else if constexpr (Bits == 3) {
      const auto pair = [&](int field, Quads v) {
        f(field, look_up(first_, low(reinterpret_cast<__m512i>(v))));
        f(field + 4, look_up(first_, high(reinterpret_cast<__m512i>(v))));
      };
      pair(0, indices.even);
      pair(1, indices.odd);
      pair(2, indices.even_upper);
      pair(3, indices.odd_upper);
    } else {
#if defined(__AVX512VBMI__)
      const auto with_parity = [&](__m512i codes, __m512i parity) {
        constexpr int kSelect = 0xca;  // mask ? a : b
        return _mm512_ternarylogic_epi64(_mm512_set1_epi8(15), codes, parity, kSelect);
      };
      f(0, look_up(first_, with_parity(even, _mm512_add_epi8(odd, odd))));
      f(1, look_up(first_, with_parity(_mm512_srli_epi16(even, 4), _mm512_srli_epi16(odd, 3))));
#else
      const auto chosen = [&](__m512i codes, __m512i which) {
        return _mm512_mask_shuffle_epi8(look_up(first_, codes), _mm512_movepi8_mask(which), second_,
                                        codes);
      };
      f(0, chosen(low(even), _mm512_slli_epi16(odd, 4)));
      f(1, chosen(high(even), odd));
#endif
    }
  }

 private:
  static __m512i low(__m512i v) { return clean(v, 15); }
  static __m512i high(__m512i v) { return clean(_mm512_srli_epi16(v, 4), 15); }

  __m512i first_, second_;
#if defined(__AVX512VBMI__)
  static constexpr ByteIndices kCounting{64, 1, 0, 0};
  __m512i third_;
#endif
};

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const Lookup<kBits> lookup(table, add);
    decode_planes<PlaneLanes, kBits>(
        row, d - trellis_tail(d, kBits), out, [&](const Indices& of, std::int8_t* to) {
          lookup(of, [&](int field, __m512i levels) {
            store(to + static_cast<std::size_t>(field) * kBytes, levels);
          });
        });
  });
  decode_tail(row, d, table, add, out);
}

// Of FloatLanes: what KernelTable::trellis_encode needs.
struct TrellisLanes {
  static Words squared_difference(Words x, Words target) {
    const __m512i e =
        _mm512_subs_epi16(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(target));
    return reinterpret_cast<Words>(_mm512_mulhrs_epi16(e, e));
  }
  static std::uint16_t smallest(Words v) {
    const auto all = reinterpret_cast<__m512i>(v);
    const __m256i half =
        _mm256_min_epu16(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128i quarter =
        _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(quarter)));
  }
  static Words lesser(Words a, Words b) {
    return reinterpret_cast<Words>(
        _mm512_min_epu16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
  }
  static Words broadcast_quad(std::uint64_t quad) {
    return reinterpret_cast<Words>(_mm512_set1_epi64(static_cast<long long>(quad)));
  }
  static Words shuffle_quads(Words quads, const std::uint8_t* indices) {
    return reinterpret_cast<Words>(
        _mm512_shuffle_epi8(reinterpret_cast<__m512i>(quads), load512(indices)));
  }
  // 32 even states, then 32 odd ones, a bit each.
  static constexpr std::size_t kChoiceBytes = 32;
  static void store_choices(Words even, Words even_first, Words odd, Words odd_first,
                            std::uint8_t* choices, std::size_t r) {
    const auto second = [](Words best, Words first) {
      return _mm512_cmpneq_epu16_mask(reinterpret_cast<__m512i>(best),
                                      reinterpret_cast<__m512i>(first));
    };
    store(choices + 8 * r, second(even, even_first));
    store(choices + 8 * r + 4, second(odd, odd_first));
  }
  static std::size_t choice(const std::uint8_t* choices, std::size_t state) {
    return choices[state / 64 * 8 + state % 2 * 4 + state / 16 % 4] >> (state / 2 % 8) & 1;
  }
  static void store_by_turns(Words even, Words odd, std::uint16_t* to) {
    const __m512i low =
        _mm512_unpacklo_epi16(reinterpret_cast<__m512i>(even), reinterpret_cast<__m512i>(odd));
    const __m512i high =
        _mm512_unpackhi_epi16(reinterpret_cast<__m512i>(even), reinterpret_cast<__m512i>(odd));
    store(to, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high));
    store(to + 32,
          _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high));
  }
};

}  // namespace
}  // namespace turboquant::kernels
