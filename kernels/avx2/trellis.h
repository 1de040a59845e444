// Trellis codes on AVX2. Internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/trellis_windows.h"

namespace turboquant::kernels {
namespace {

inline __m256i both_halves(const void* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

// States of 32 coordinates; touches 2 Bits + 16 bytes.
template <int Bits>
inline __m256i states32(const std::uint8_t* bytes) {
  const __m256i v = _mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 2 * Bits)), 1);
  const auto& w = kWindows<Bits>;
  const __m256i even = _mm256_mullo_epi16(_mm256_shuffle_epi8(v, both_halves(w.bytes[0])),
                                          both_halves(w.multipliers[0]));
  const __m256i odd = _mm256_mullo_epi16(_mm256_shuffle_epi8(v, both_halves(w.bytes[1])),
                                         both_halves(w.multipliers[1]));
  return _mm256_or_si256(_mm256_srli_epi16(even, 8),
                         _mm256_and_si256(odd, _mm256_set1_epi16(static_cast<short>(0xff00))));
}

// Levels of 32 states, plus `add`: of the upper 128 states, since the lower ones mirror them.
inline __m256i levels32(__m256i states, const std::int8_t* upper, __m256i add) {
  const __m256i negative = _mm256_cmpgt_epi8(states, _mm256_set1_epi8(-1));
  const __m256i mirrored = _mm256_xor_si256(states, negative);
  const __m256i low = _mm256_and_si256(mirrored, _mm256_set1_epi8(15));
  const auto part = [&](int i) { return _mm256_shuffle_epi8(both_halves(upper + 16 * i), low); };
  const __m256i bit4 = _mm256_slli_epi16(mirrored, 3);
  const __m256i bit5 = _mm256_slli_epi16(mirrored, 2);
  const __m256i bit6 = _mm256_slli_epi16(mirrored, 1);
  const __m256i a = _mm256_blendv_epi8(_mm256_blendv_epi8(part(0), part(1), bit4),
                                       _mm256_blendv_epi8(part(2), part(3), bit4), bit5);
  const __m256i b = _mm256_blendv_epi8(_mm256_blendv_epi8(part(4), part(5), bit4),
                                       _mm256_blendv_epi8(part(6), part(7), bit4), bit5);
  const __m256i level = _mm256_blendv_epi8(a, b, bit6);
  return _mm256_add_epi8(_mm256_sub_epi8(_mm256_xor_si256(level, negative), negative), add);
}

template <int Bits>
void trellis_decode_bits(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                         std::int32_t add, std::int8_t* out) {
  const __m256i plus = _mm256_set1_epi8(static_cast<char>(add));
  for_each_block<Bits>(row, d, [&](const std::uint8_t* from, std::size_t i) {
    store(out + i, levels32(states32<Bits>(from), table.levels + 128, plus));
    store(out + i + 32, levels32(states32<Bits>(from + 4 * Bits), table.levels + 128, plus));
  });
}

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  by_bits(table.bits,
          [&](auto bits) { trellis_decode_bits<decltype(bits)::kValue>(row, d, table, add, out); });
}

// Levels are so small that a pair sum of level + offset fits in 16 bits, as for scalar codes. The
// look-ups take so much longer than the products that rows are taken one by one.
template <int Bits>
inline std::int32_t trellis_dot(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                                const std::int8_t* query) {
  const __m256i offset = _mm256_set1_epi8(static_cast<char>(table.offset));
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum = _mm256_setzero_si256();
  for_each_block<Bits>(row, d, [&](const std::uint8_t* from, std::size_t i) {
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      const __m256i levels =
          levels32(states32<Bits>(from + 4 * Bits * half), table.levels + 128, offset);
      const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(query + i + 32 * half));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(levels, q), ones));
    }
  });
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  const __m128i two = _mm_hadd_epi32(four, four);
  return _mm_cvtsi128_si32(_mm_hadd_epi32(two, two));
}

void trellis_dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                      std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                      std::int32_t* dots) {
  const std::int32_t bias = -table.offset * query.sum;
  by_bits(table.bits, [&](auto bits) {
    dot_by<1, kPrefetchBytes>(codes, stride, rows, n, dots, [&](const std::uint8_t* const row[1]) {
      return trellis_dot<decltype(bits)::kValue>(row[0], d, table, query.values) + bias;
    });
  });
}

// Of FloatLanes: what KernelTable::trellis_encode needs.
struct TrellisLanes {
  template <typename Words>
  static Words squared_difference(Words x, Words target) {
    const __m256i e =
        _mm256_subs_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(target));
    return reinterpret_cast<Words>(_mm256_mulhrs_epi16(e, e));
  }
  template <typename Words>
  static std::uint16_t smallest(Words v) {
    const auto all = reinterpret_cast<__m256i>(v);
    const __m128i half =
        _mm_min_epu16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    return static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(half)));
  }
  // Register r of the sums of 256 groups' states: each of the 16 >> Bits groups 2^Bits times.
  template <int Bits>
  static WordsOf<32>::Type repeat(const std::uint16_t* best, std::size_t r) {
    constexpr std::size_t kGroups = std::size_t{16} >> Bits;
    const std::uint16_t* from = best + r * kGroups;
    __m256i words;
    if constexpr (Bits == 1) {
      words = _mm256_shuffle_epi8(
          both_halves(from),
          _mm256_setr_epi8(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7,  //
                           8, 9, 8, 9, 10, 11, 10, 11, 12, 13, 12, 13, 14, 15, 14, 15));
    } else if constexpr (Bits == 2) {
      std::int64_t four;
      std::memcpy(&four, from, 8);
      words =
          _mm256_shuffle_epi8(_mm256_set1_epi64x(four),
                              _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,  //
                                               4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7));
    } else if constexpr (Bits == 3) {
      std::int32_t two;
      std::memcpy(&two, from, 4);
      words =
          _mm256_shuffle_epi8(_mm256_set1_epi32(two),
                              _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1,  //
                                               2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3));
    } else {
      words = _mm256_set1_epi16(static_cast<short>(*from));
    }
    return reinterpret_cast<WordsOf<32>::Type>(words);
  }
};

}  // namespace
}  // namespace turboquant::kernels
