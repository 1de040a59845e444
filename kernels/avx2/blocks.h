// Blocks of 64 codes on AVX2: their expansion to bytes and their products. Internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels/avx2/tails.h"
#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline __m256i broadcast_table(const std::int8_t table[16], int offset) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_broadcastsi128_si256(_mm_add_epi8(t, _mm_set1_epi8(static_cast<char>(offset))));
}

// Codes of coordinates 32 * Half to 32 * Half + 31 of a block.
template <int Bits, int Half>
inline __m256i expand(const std::uint8_t* block) {
  if constexpr (Bits == 4) {
    const __m256i v = load256(block);
    return _mm256_and_si256(Half == 0 ? v : _mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
  } else if constexpr (Bits == 2) {
    const __m256i v =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
    const __m256i shift =
        Half == 0 ? _mm256_setr_epi64x(0, 0, 2, 2) : _mm256_setr_epi64x(4, 4, 6, 6);
    return _mm256_and_si256(_mm256_srlv_epi64(v, shift), _mm256_set1_epi8(3));
  } else {
    std::int64_t word;
    std::memcpy(&word, block + (Bits == 3 ? plane_bytes(2) : 0), 8);
    const __m256i v = _mm256_set1_epi64x(word);
    if constexpr (Bits == 1) {
      const __m256i shift =
          Half == 0 ? _mm256_setr_epi64x(0, 1, 2, 3) : _mm256_setr_epi64x(4, 5, 6, 7);
      return _mm256_and_si256(_mm256_srlv_epi64(v, shift), _mm256_set1_epi8(1));
    } else {
      // The top bit of three is wanted at bit 2 of each byte.
      const __m256i top =
          Half == 0 ? _mm256_srlv_epi64(_mm256_slli_epi64(v, 2), _mm256_setr_epi64x(0, 1, 2, 3))
                    : _mm256_srlv_epi64(v, _mm256_setr_epi64x(2, 3, 4, 5));
      return _mm256_or_si256(_mm256_and_si256(top, _mm256_set1_epi8(4)), expand<2, Half>(block));
    }
  }
}

// Products of 64 unsigned levels with the query, added to four-coordinate sums in int32. Two
// pair sums fit in int16 up to 3 bits.
template <int Bits>
inline __m256i dot_block(__m256i sum, __m256i low, __m256i high, __m256i query_low,
                         __m256i query_high) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i a = _mm256_maddubs_epi16(low, query_low);
  const __m256i b = _mm256_maddubs_epi16(high, query_high);
  if constexpr (Bits <= 3) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
  } else {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, ones));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(b, ones));
  }
}

}  // namespace
}  // namespace turboquant::kernels
