// Products of the last d mod 64 codes of many rows, a bit stream, without each code's going through
// memory. With registers of 32 bytes, for AVX2 and for AVX-512 without VBMI. Internal linkage.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/code_layout.h"
#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

// Sums of the lanes of four registers.
inline __m128i sum_lanes(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  const __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
  const __m256i all =
      _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

// Rows for which it pays to lay the query out: that takes as long as five or so.
constexpr std::size_t kManyTails = 16;

template <int Bits>
class TailProducts {
 public:
  /// n: coordinates, 1 to 63. query: their values.
  TailProducts(const std::int8_t* query, std::size_t n) : bytes_(packed_bytes(n, Bits)) {
    for (std::size_t p = 0; p < 32; ++p) {
      const bool empty = Bits == 3 && p % 4 == 3;
      places_[p] = empty ? kEmpty : place_of(byte_at(p), p / 16);
      for (std::size_t half = 0; half < 2; ++half) {
        const std::size_t i = coordinate_at(half, p);
        query_[half][p] = i < n ? query[i] : std::int8_t{0};
      }
    }
  }

  /// tail[4]: the codes of four rows. table: levels, not negative, in both halves.
  [[gnu::noinline]] __m128i dot_four(const std::uint8_t* const tail[4], __m256i table) const {
    __m256i sums[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sums[r] = dot(tail[r], table);
    return sum_lanes(sums[0], sums[1], sums[2], sums[3]);
  }

 private:
  static constexpr std::uint8_t kEmpty = 0x80;

  // A byte of the stream at each place of a register, p, and the coordinates whose codes come to
  // lie there when the register is split in two halves. 3 bits: eight codes in the three low bytes
  // of each double word, then four codes a half.
  static constexpr std::size_t byte_at(std::size_t p) {
    if (Bits == 4) return p;
    if (Bits == 3) return p / 4 * 3 + p % 4;
    return p % (8 * Bits);
  }
  static constexpr std::size_t coordinate_at(std::size_t half, std::size_t p) {
    if (Bits == 4) return 2 * p + half;
    if (Bits == 3) return p / 4 * 8 + 4 * half + p % 4;
    constexpr std::size_t kPlane = 8 * Bits;  // bytes
    return 8 / Bits * (p % kPlane) + 32 / kPlane * half + p / kPlane;
  }

  // Where load_ends() puts a byte, within 16.
  std::uint8_t place_of(std::size_t byte, std::size_t lane) const {
    if (byte >= bytes_) return kEmpty;
    std::size_t place = byte;
    if (bytes_ >= 16) {
      if (lane == 1) place = byte + 16 - bytes_;
    } else if (bytes_ >= 8) {
      if (byte >= 8) place = byte + 16 - bytes_;
    } else if (bytes_ >= 4) {
      if (byte >= 4) place = byte + 8 - bytes_;
    }
    return static_cast<std::uint8_t>(place);
  }

  // The first bytes and the last ones, which may be some of the first: nothing else is read.
  __m256i load_ends(const std::uint8_t* tail) const {
    const std::uint8_t* end = tail + bytes_;
    if (bytes_ >= 16) return _mm256_set_m128i(load<__m128i>(end - 16), load<__m128i>(tail));
    if (bytes_ >= 8) {
      return _mm256_broadcastsi128_si256(
          _mm_set_epi64x(load<std::int64_t>(end - 8), load<std::int64_t>(tail)));
    }
    if (bytes_ >= 4) {
      return _mm256_set1_epi64x(static_cast<std::int64_t>(
          load<std::uint32_t>(tail) | std::uint64_t{load<std::uint32_t>(end - 4)} << 32));
    }
    return _mm256_set1_epi32(tail[0] | tail[bytes_ / 2] << 8 * (bytes_ / 2) |
                             end[-1] << 8 * (bytes_ - 1));
  }

  __m256i dot(const std::uint8_t* tail, __m256i table) const {
    const __m256i v = _mm256_shuffle_epi8(load_ends(tail), load<__m256i>(places_));
    __m256i low, high;
    if constexpr (Bits == 4) {
      low = v;
      high = _mm256_srli_epi16(v, 4);
    } else if constexpr (Bits == 3) {
      low = spread(_mm256_and_si256(v, _mm256_set1_epi32(0xfff)));
      high = spread(_mm256_srli_epi32(v, 12));
    } else if constexpr (Bits == 2) {
      low = _mm256_srlv_epi64(v, _mm256_setr_epi64x(0, 0, 2, 2));
      high = _mm256_srlv_epi64(v, _mm256_setr_epi64x(4, 4, 6, 6));
    } else {
      low = _mm256_srlv_epi64(v, _mm256_setr_epi64x(0, 1, 2, 3));
      high = _mm256_srlv_epi64(v, _mm256_setr_epi64x(4, 5, 6, 7));
    }
    const __m256i sum = add(_mm256_setzero_si256(), table, low, query_[0]);
    return add(sum, table, high, query_[1]);
  }

  // Four codes in twelve bits to four bytes.
  static __m256i spread(__m256i v) {
    v = _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi32(v, 10)),
                         _mm256_set1_epi32(0x003f003f));
    return _mm256_or_si256(v, _mm256_slli_epi32(v, 5));
  }

  static __m256i add(__m256i sum, __m256i table, __m256i codes, const std::int8_t* query) {
    codes = _mm256_and_si256(codes, _mm256_set1_epi8((1 << Bits) - 1));
    const __m256i levels = _mm256_shuffle_epi8(table, codes);
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, levels, load<__m256i>(query));
#else
    const __m256i pairs = _mm256_maddubs_epi16(levels, load<__m256i>(query));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }

  std::size_t bytes_;
  alignas(32) std::uint8_t places_[32];
  alignas(32) std::int8_t query_[2][32];
};

}  // namespace
}  // namespace turboquant::kernels
