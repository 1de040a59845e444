// Trellis codes on AVX2. Internal linkage.
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
  static constexpr std::size_t kBack = 16;
  static constexpr bool kIgnoresTops = false;
  // Loads that cross cache lines cost less than shuffles.
  static constexpr bool kLoadsBefore = true;
  template <int Bytes>
  static Quads before(Quads now, Quads back) {
    return reinterpret_cast<Quads>(_mm256_alignr_epi8(reinterpret_cast<__m256i>(now),
                                                      reinterpret_cast<__m256i>(back), 16 - Bytes));
  }
  static Quads back_of_first(Quads now, std::uint64_t before) {
    return reinterpret_cast<Quads>(
        _mm256_inserti128_si256(_mm256_set1_epi64x(static_cast<long long>(before)),
                                _mm256_castsi256_si128(reinterpret_cast<__m256i>(now)), 1));
  }
  // The first n bytes, at most a register; zeros behind.
  struct Part {
    explicit Part(std::size_t bytes) : n(bytes), move() {
      // The upper half ends with the last byte and is moved down.
      alignas(16) std::int8_t places[48];
      for (int i = 0; i < 48; ++i) places[i] = static_cast<std::int8_t>(i < 16 ? i : -1);
      if (n >= 16) move = kernels::load<__m128i>(places + 32 - n);
    }
    Quads load(const std::uint8_t* from) const {
      if (n < 16) {
        alignas(32) std::uint8_t copy[32] = {};
        std::memcpy(copy, from, n);
        return kernels::load<Quads>(copy);
      }
      const __m128i upper = _mm_shuffle_epi8(kernels::load<__m128i>(from + n - 16), move);
      return reinterpret_cast<Quads>(_mm256_set_m128i(upper, kernels::load<__m128i>(from)));
    }
    // The first 16 at most.
    __m128i load_half(const std::uint8_t* from) const {
      if (n >= 16) return kernels::load<__m128i>(from);
      alignas(16) std::uint8_t copy[16] = {};
      std::memcpy(copy, from, n);
      return kernels::load<__m128i>(copy);
    }
    std::size_t n;
    __m128i move;
  };
  static Quads two_halves(__m128i a, __m128i b) {
    return reinterpret_cast<Quads>(_mm256_set_m128i(b, a));
  }
  static Quads back_of_halves(Quads /*now*/, std::uint64_t a, std::uint64_t b) {
    return Quads{a, a, b, b};
  }
};

// Levels of a register of indices, field by field: 32 coordinates each.
template <int Bits>
class Lookup {
 public:
  Lookup(const TrellisTable& table, std::int32_t add)
      : first_(broadcast_table(table.lookup, add)),
        second_(Bits == 1 ? upper_fields(first_) : broadcast_table(table.lookup + 16, add)) {}

  /// f(field, levels), each field once.
  template <typename Function>
  [[gnu::always_inline]] void operator()(const Indices& indices, const Function& f) const {
    const auto even = reinterpret_cast<__m256i>(indices.even);
    const auto odd = reinterpret_cast<__m256i>(indices.odd);
    if constexpr (Bits == 1) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m256i v = i == 0 ? even : odd;
        f(i, look_up(first_, low(v)));
        f(i + 2, look_up(second_, low(v)));
        f(i + 4, look_up(first_, high(v)));
        f(i + 6, look_up(second_, high(v)));
      }
    } else if constexpr (Bits == 2) {
      // Bit 3 of a field is clear, so neither half needs a mask.
      f(0, look_up(first_, even));
      f(1, look_up(first_, odd));
      f(2, look_up(first_, _mm256_srli_epi16(even, 4)));
      f(3, look_up(first_, _mm256_srli_epi16(odd, 4)));
    } else if constexpr (Bits == 3) {
      const auto pair = [&](int field, Quads v) {
        f(field, look_up(first_, low(reinterpret_cast<__m256i>(v))));
        f(field + 4, look_up(first_, high(reinterpret_cast<__m256i>(v))));
      };
      pair(0, indices.even);
      pair(1, indices.odd);
      pair(2, indices.even_upper);
      pair(3, indices.odd_upper);
    } else {
      const auto chosen = [&](__m256i codes, __m256i which) {
        return _mm256_blendv_epi8(look_up(first_, codes), look_up(second_, codes), which);
      };
      f(0, chosen(low(even), _mm256_slli_epi16(odd, 4)));
      f(1, chosen(high(even), odd));
    }
  }

 private:
  static __m256i look_up(__m256i table, __m256i codes) { return _mm256_shuffle_epi8(table, codes); }
  static __m256i low(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static __m256i high(__m256i v) { return low(_mm256_srli_epi16(v, 4)); }
  // The table for the upper two bits of an index, of one for the lower two.
  static __m256i upper_fields(__m256i table) {
    return _mm256_shuffle_epi8(table, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                          0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)));
  }

  __m256i first_, second_;
};

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const Lookup<kBits> lookup(table, add);
    decode_planes<PlaneLanes, kBits>(
        row, d - trellis_tail(d, kBits), out, [&](const Indices& of, std::int8_t* to) {
          lookup(of, [&](int field, __m256i levels) {
            store(to + static_cast<std::size_t>(field) * kBytes, levels);
          });
        });
  });
  decode_tail(row, d, table, add, out);
}

// Pair sums of level + offset that fit in 16 bits.
constexpr int pair_sums(int bits) { return bits <= 2 ? 8 : bits == 3 ? 2 : 1; }

// Adds the products of a register of indices. load(values): a register of the query.
template <int Bits, typename Load>
[[gnu::always_inline]] inline __m256i add_products(__m256i sum, const Indices& of,
                                                   const Lookup<Bits>& lookup,
                                                   const PlaneQuery<Bits>& query, std::size_t at,
                                                   const Load& load) {
  constexpr int kFields = static_cast<int>(fields_of(Bits));
  constexpr int kSums = pair_sums(Bits) < kFields ? pair_sums(Bits) : kFields;
  const __m256i ones = _mm256_set1_epi16(1);
  int n = 0;
  __m256i pairs = _mm256_setzero_si256();
  lookup(
      of, [&](int field, __m256i levels) __attribute__((always_inline)) {
        const __m256i product = _mm256_maddubs_epi16(levels, load(query.of(field, at)));
        pairs = n % kSums == 0 ? product : _mm256_add_epi16(pairs, product);
        if (++n % kSums == 0) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      });
  return sum;
}

// The sums of the last halves of four rows.
template <int Bits, typename OfShape>
[[gnu::always_inline]] inline __m128i last_halves(OfShape shape, const std::uint8_t* const row[4],
                                                  const Registers<PlaneLanes, Bits>& registers,
                                                  const Lookup<Bits>& lookup,
                                                  const PlaneQuery<Bits>& query) {
  __m256i sums[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    registers.last_halves(
        shape, row[i],
        row[i + 2], [&](const Indices& of, std::size_t at) __attribute__((always_inline)) {
          sums[i] = add_products<Bits>(_mm256_setzero_si256(), of, lookup, query, at,
                                       [](const std::int8_t* values) {
                                         return _mm256_broadcastsi128_si256(load<__m128i>(values));
                                       });
        });
  }
  // Rows 0 and 1 in the lower half, 2 and 3 in the upper one.
  const __m256i two = _mm256_hadd_epi32(sums[0], sums[1]);
  const __m256i one = _mm256_hadd_epi32(two, two);
  return _mm_unpacklo_epi64(_mm256_castsi256_si128(one), _mm256_extracti128_si256(one, 1));
}

template <int Bits>
class RowProducts {
 public:
  RowProducts(const TrellisTable& table, const std::int8_t* query, std::size_t d, std::int32_t bias)
      : lookup_(table, table.offset), query_(query, d), registers_(d), bias_(bias) {}

  template <typename Function>
  void by_shape(const Function& f) const {
    registers_.by_shape(f);
  }
  template <typename OfShape>
  [[gnu::noinline]] void dot_rows(OfShape shape, const std::uint8_t* codes, std::size_t stride,
                                  const std::uint32_t* rows, std::size_t n,
                                  std::int32_t* dots) const {
    const Lookup<Bits> lookup = lookup_;  // in registers of the processor
    const Registers<PlaneLanes, Bits> registers = registers_;
    dot_by<4, kPrefetchBytes>(
        codes, stride, rows, n, dots,
        [&](const std::uint8_t* const row[4])
            __attribute__((always_inline)) { return dot_four(shape, lookup, registers, row); },
        [&](const std::uint8_t* row) { return dot_one(shape, row); });
  }

 private:
  // The rows in turn, so that a load of the query serves all of them.
  template <typename OfShape>
  [[gnu::always_inline]] __m128i dot_four(OfShape shape, const Lookup<Bits>& lookup,
                                          const Registers<PlaneLanes, Bits>& registers,
                                          const std::uint8_t* const row[4]) const {
    __m128i all = _mm_set1_epi32(bias_);
    if constexpr (OfShape::kHalf) {
      all = _mm_add_epi32(all, last_halves<Bits>(shape, row, registers, lookup, query_));
    }
    if constexpr (OfShape::kWhole || !OfShape::kHalf) {
      __m256i sums[4] = {};
      const auto add_to = [&](int r) __attribute__((always_inline)) {
        return [&, r ](const Indices& of, std::size_t at) __attribute__((always_inline)) {
          sums[r] = add_products<Bits>(sums[r], of, lookup, query_, at, load256);
        };
      };
      if constexpr (OfShape::kWhole) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) registers.first(row[r], add_to(r));
        for (std::size_t at = kBytes; at < registers.whole(); at += kBytes) {
#pragma GCC unroll 4
          for (int r = 0; r < 4; ++r) registers.next(row[r], at, add_to(r));
        }
      }
      if constexpr (OfShape::kPart && !OfShape::kHalf) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) registers.part(shape, row[r], add_to(r));
      }
      all = _mm_add_epi32(all, sum_lanes(sums[0], sums[1], sums[2], sums[3]));
    }
    return all;
  }
  template <typename OfShape>
  [[gnu::noinline]] std::int32_t dot_one(OfShape shape, const std::uint8_t* row) const {
    __m256i sum = _mm256_setzero_si256();
    registers_.for_each(
        shape, row, [&](const Indices& of, std::size_t at) __attribute__((always_inline)) {
          sum = add_products<Bits>(sum, of, lookup_, query_, at, load256);
        });
    const __m256i zero = _mm256_setzero_si256();
    return _mm_cvtsi128_si32(sum_lanes(sum, zero, zero, zero)) + bias_;
  }

  Lookup<Bits> lookup_;
  PlaneQuery<Bits> query_;
  Registers<PlaneLanes, Bits> registers_;
  std::int32_t bias_;
};

void trellis_dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                      std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                      std::int32_t* dots) {
  const std::int32_t bias = -table.offset * query_of_planes(query, d, table.bits).sum;
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const RowProducts<kBits> products(table, query.values, d - trellis_tail(d, kBits), bias);
    products.by_shape([&](auto shape) { products.dot_rows(shape, codes, stride, rows, n, dots); });
  });
  add_tail_products(codes, stride, rows, n, d, table, query, dots);
}

// Of FloatLanes: what KernelTable::trellis_encode needs.
struct TrellisLanes {
  static Words squared_difference(Words x, Words target) {
    const __m256i e =
        _mm256_subs_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(target));
    return reinterpret_cast<Words>(_mm256_mulhrs_epi16(e, e));
  }
  static std::uint16_t smallest(Words v) {
    const auto all = reinterpret_cast<__m256i>(v);
    const __m128i half =
        _mm_min_epu16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    return static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(half)));
  }
  static Words lesser(Words a, Words b) {
    return reinterpret_cast<Words>(
        _mm256_min_epu16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
  }
  static Words broadcast_quad(std::uint64_t quad) {
    return reinterpret_cast<Words>(_mm256_set1_epi64x(static_cast<long long>(quad)));
  }
  static Words shuffle_quads(Words quads, const std::uint8_t* indices) {
    return reinterpret_cast<Words>(
        _mm256_shuffle_epi8(reinterpret_cast<__m256i>(quads), load256(indices)));
  }
  // Bit s / 2 % 8 of byte s / 16 * 2 + s % 2 is state s.
  static constexpr std::size_t kChoiceBytes = 32;
  static void store_choices(Words even, Words even_first, Words odd, Words odd_first,
                            std::uint8_t* choices, std::size_t r) {
    const __m256i firsts = _mm256_packs_epi16(reinterpret_cast<__m256i>(even == even_first),
                                              reinterpret_cast<__m256i>(odd == odd_first));
    store(choices + 4 * r, ~_mm256_movemask_epi8(firsts));
  }
  static std::size_t choice(const std::uint8_t* choices, std::size_t state) {
    return choices[state / 16 * 2 + state % 2] >> (state / 2 % 8) & 1;
  }
  static void store_by_turns(Words even, Words odd, std::uint16_t* to) {
    const __m256i low =
        _mm256_unpacklo_epi16(reinterpret_cast<__m256i>(even), reinterpret_cast<__m256i>(odd));
    const __m256i high =
        _mm256_unpackhi_epi16(reinterpret_cast<__m256i>(even), reinterpret_cast<__m256i>(odd));
    store(to, _mm256_permute2x128_si256(low, high, 0x20));
    store(to + 16, _mm256_permute2x128_si256(low, high, 0x31));
  }
};

}  // namespace
}  // namespace turboquant::kernels
