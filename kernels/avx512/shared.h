// AVX-512 kernels that the avx512 and amx backends share: 64 coordinates a register, u8 x s8
// products through vpdpbusd. Internal linkage, one copy per backend.
#pragma once

#include <immintrin.h>

#define TQ_VECTOR_BYTES 64
#include "kernels/backends.h"
#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/vector_table.h"
#if !defined(__AVX512VBMI__)
#include "kernels/avx2/tails.h"
#endif

namespace turboquant::kernels {
namespace {

inline __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

inline __m512i broadcast_table(const std::int8_t table[16], int offset) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_broadcast_i32x4(_mm_add_epi8(t, _mm_set1_epi8(static_cast<char>(offset))));
}

// Codes of a block, one a byte. With VBMI the look-up reads six bits and the table repeats every
// 2^Bits entries, so whatever lies above the code is left there; without, the look-up needs bit 7
// clear.
#if defined(__AVX512VBMI__)
inline __m512i clean(__m512i codes, int /*mask*/) { return codes; }
inline __m512i look_up(__m512i table, __m512i codes) {
  return _mm512_permutexvar_epi8(codes, table);
}
#else
inline __m512i clean(__m512i codes, int mask) {
  return _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(mask)));
}
inline __m512i look_up(__m512i table, __m512i codes) { return _mm512_shuffle_epi8(table, codes); }
#endif

template <int Bits>
inline __m512i expand(const std::uint8_t* block) {
  if constexpr (Bits == 4) {
    const __m512i v =
        _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
    return clean(_mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4)), 15);
  } else if constexpr (Bits == 2) {
    const __m512i v =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
    return clean(_mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6)), 3);
  } else {
    std::int64_t word;
    std::memcpy(&word, block + (Bits == 3 ? plane_bytes(2) : 0), 8);
    const __m512i v = _mm512_set1_epi64(word);
    if constexpr (Bits == 1) {
      return clean(_mm512_srlv_epi64(v, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7)), 1);
    } else {
      // Rotated so that the top bit of three lands at bit 2 of each byte, under the other two.
      const __m512i top = _mm512_rorv_epi64(v, _mm512_setr_epi64(62, 63, 0, 1, 2, 3, 4, 5));
      constexpr int kSelect = 0xca;  // mask ? a : b
      return clean(_mm512_ternarylogic_epi64(_mm512_set1_epi8(3), expand<2>(block), top, kSelect),
                   7);
    }
  }
}

// Levels of the last n codes, n < 64.
template <int Bits>
inline __m512i tail_levels(const std::uint8_t* packed, std::size_t n, __m512i table) {
#if defined(__AVX512VBMI__)
  // Eight codes fill Bits bytes: each quadword gets its bytes, each byte its field.
  const __mmask64 live = (std::uint64_t{1} << packed_bytes(n, Bits)) - 1;
  const __m512i stream = _mm512_maskz_loadu_epi8(live, packed);
  const __m512i byte_in_quad = _mm512_set1_epi64(0x0706050403020100);
  const __m512i first = _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7),
                                           _mm512_set1_epi64(Bits * 0x0101010101010101));
  const __m512i quads = _mm512_permutexvar_epi8(_mm512_add_epi8(first, byte_in_quad), stream);
  std::uint64_t shifts = 0;
  for (int i = 0; i < 8; ++i) shifts |= static_cast<std::uint64_t>(i * Bits) << (8 * i);
  const __m512i fields =
      _mm512_multishift_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(shifts)), quads);
  return look_up(table, fields);
#else
  std::uint8_t codes[64];
  unpack_tail(packed, n, Bits, codes);
  return look_up(table, load512(codes));
#endif
}

template <int Bits>
void decode_bits(const std::uint8_t* packed, std::size_t d, __m512i table, std::int8_t* out) {
  std::size_t i = 0;
  for (; i + kBlock <= d; i += kBlock, packed += block_bytes(Bits)) {
    store(out + i, look_up(table, expand<Bits>(packed)));
  }
  if (i < d) store(out + i, tail_levels<Bits>(packed, d - i, table));
}

void decode(const std::uint8_t* packed, std::size_t d, int bits, const std::int8_t table[16],
            std::int8_t* out) {
  const __m512i t = broadcast_table(table, 0);
  by_bits(bits, [&](auto b) { decode_bits<decltype(b)::kValue>(packed, d, t, out); });
}

// Every quarter: its sums of four registers, side by side.
inline __m512i sum_quarters(const __m512i sums[4]) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]),
                                      _mm512_unpackhi_epi32(sums[0], sums[1]));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[2], sums[3]),
                                      _mm512_unpackhi_epi32(sums[2], sums[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// Sums of the lanes of four registers.
inline __m128i sum_lanes(const __m512i sums[4]) {
  const __m512i all = sum_quarters(sums);
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Four rows at a time, so that each load of the query serves four products.
template <int Bits>
inline __m128i dot_four(const std::uint8_t* const row[4], std::size_t d, __m512i table,
                        const std::int8_t* query) {
  __m512i sums[4] = {};
  std::size_t i = 0;
  for (std::size_t at = 0; i + kBlock <= d; i += kBlock, at += block_bytes(Bits)) {
    const __m512i q = load512(query + i);
    for (int r = 0; r < 4; ++r) {
      const __m512i levels = look_up(table, expand<Bits>(row[r] + at));
      sums[r] = _mm512_dpbusd_epi32(sums[r], levels, q);
    }
  }
  if (i < d) {
    const __m512i q = load512(query + i);
    for (int r = 0; r < 4; ++r) {
      const std::uint8_t* tail = row[r] + packed_bytes(i, Bits);
      sums[r] = _mm512_dpbusd_epi32(sums[r], tail_levels<Bits>(tail, d - i, table), q);
    }
  }
  return sum_lanes(sums);
}

template <int Bits>
inline std::int32_t dot_one(const std::uint8_t* row, std::size_t d, __m512i table,
                            const std::int8_t* query) {
  __m512i sum = _mm512_setzero_si512();
  std::size_t i = 0;
  for (; i + kBlock <= d; i += kBlock, row += block_bytes(Bits)) {
    sum = _mm512_dpbusd_epi32(sum, look_up(table, expand<Bits>(row)), load512(query + i));
  }
  if (i < d) {
    sum = _mm512_dpbusd_epi32(sum, tail_levels<Bits>(row, d - i, table), load512(query + i));
  }
  return _mm512_reduce_add_epi32(sum);
}

#if defined(__AVX512VBMI__)
// Indices for permutations of bytes: scale * (i % period) + start, shifted right.
struct ByteIndices {
  constexpr ByteIndices(int period, int scale, int start, int shift) : bytes() {
    for (int i = 0; i < 64; ++i) {
      bytes[i] = static_cast<std::uint8_t>((scale * (i % period) + start) >> shift);
    }
  }
  alignas(64) std::uint8_t bytes[64];
};

// Products of rows of less than a block, two rows a register: 32 pairs of codes each. A pair is a
// field that one look-up of six bits resolves for either of its codes; at 4 bits it is a byte.
template <int Bits>
class ShortRows {
 public:
  ShortRows(const CodeTable& table, const std::int8_t* query, std::size_t d)
      : live_(static_cast<__mmask32>((std::uint64_t{1} << packed_bytes(d, Bits)) - 1)) {
    static constexpr ByteIndices kEven(32, 2, 0, 0);
    static constexpr ByteIndices kOdd(32, 2, 1, 0);
    static constexpr ByteIndices kSecond(64, 1, 0, Bits < 4 ? Bits : 0);
    first_ = broadcast_table(table.levels, table.offset);
    second_ = look_up(first_, load512(kSecond.bytes));
    even_ = _mm512_permutexvar_epi8(load512(kEven.bytes), load512(query));
    odd_ = _mm512_permutexvar_epi8(load512(kOdd.bytes), load512(query));
  }

  __m256i dot_eight(const std::uint8_t* const row[8]) const {
    __m512i sums[4];
    for (int r = 0; r < 4; ++r) sums[r] = dot_two(row[r], row[r + 4]);
    const __m512i quarters = sum_quarters(sums);
    const __m512i halves =
        _mm512_add_epi32(quarters, _mm512_shuffle_i32x4(quarters, quarters, 0xb1));
    return _mm512_castsi512_si256(_mm512_shuffle_i32x4(halves, halves, 0x08));
  }

 private:
  __m512i dot_two(const std::uint8_t* a, const std::uint8_t* b) const {
    const __m512i bytes =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi8(live_, a)),
                           _mm256_maskz_loadu_epi8(live_, b), 1);
    __m512i first = bytes;
    __m512i second = _mm512_srli_epi16(bytes, 4);
    if constexpr (Bits < 4) {
      // Eight pairs fill 2 * Bits bytes: each quadword gets its bytes, each byte its pair.
      const __m512i start = _mm512_setr_epi64(0, 1, 2, 3, 0, 1, 2, 3);
      const __m512i row = _mm512_setr_epi64(0, 0, 0, 0, 32, 32, 32, 32);
      const __m512i spread = _mm512_set1_epi64(0x0101010101010101);
      const __m512i quads = _mm512_permutexvar_epi8(
          _mm512_add_epi8(
              _mm512_mullo_epi64(
                  _mm512_add_epi64(_mm512_mullo_epi64(start, _mm512_set1_epi64(2 * Bits)), row),
                  spread),
              _mm512_set1_epi64(0x0706050403020100)),
          bytes);
      std::uint64_t shifts = 0;
      for (int i = 0; i < 8; ++i) shifts |= static_cast<std::uint64_t>(2 * i * Bits) << (8 * i);
      first =
          _mm512_multishift_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(shifts)), quads);
      second = first;
    }
    const __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), look_up(first_, first), even_);
    return _mm512_dpbusd_epi32(sums, look_up(second_, second), odd_);
  }

  __mmask32 live_;
  __m512i first_, second_, even_, odd_;
};
#endif

void dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
              std::size_t n, std::size_t d, const CodeTable& table, QueryView query,
              std::int32_t* dots) {
  const __m512i levels = broadcast_table(table.levels, table.offset);
  const std::int32_t bias = -table.offset * query.sum;
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const auto one = [&](const std::uint8_t* row) {
      return dot_one<kBits>(row, d, levels, query.values) + bias;
    };
#if defined(__AVX512VBMI__)
    if (d < kBlock && n >= 8) {
      const ShortRows<kBits> products(table, query.values, d);
      const auto eight = [&](const std::uint8_t* const row[8]) {
        return _mm256_add_epi32(products.dot_eight(row), _mm256_set1_epi32(bias));
      };
      dot_by<8, kPrefetchBytes>(codes, stride, rows, n, dots, eight, one);
      return;
    }
#endif
#if !defined(__AVX512VBMI__)
    if (d % kBlock != 0 && n >= kManyTails) {
      const std::size_t blocks = d / kBlock;
      const TailProducts<kBits> tails(query.values + blocks * kBlock, d % kBlock);
      const auto four = [&](const std::uint8_t* const row[4]) {
        const std::size_t at = blocks * block_bytes(kBits);
        const std::uint8_t* const tail[] = {row[0] + at, row[1] + at, row[2] + at, row[3] + at};
        const __m128i last = tails.dot_four(tail, _mm512_castsi512_si256(levels));
        const __m128i whole = dot_four<kBits>(row, blocks * kBlock, levels, query.values);
        return _mm_add_epi32(_mm_add_epi32(whole, last), _mm_set1_epi32(bias));
      };
      dot_by<4, kPrefetchBytes>(codes, stride, rows, n, dots, four, one);
      return;
    }
#endif
    const auto four = [&](const std::uint8_t* const row[4]) {
      return _mm_add_epi32(dot_four<kBits>(row, d, levels, query.values), _mm_set1_epi32(bias));
    };
    dot_by<4, kPrefetchBytes>(codes, stride, rows, n, dots, four, one);
  });
}

}  // namespace
}  // namespace turboquant::kernels

#include "kernels/avx512/trellis.h"
#include "kernels/avx512/trellis_rows.h"

namespace turboquant::kernels {
namespace {

struct FloatLanes : TrellisLanes {
  using Float = __m512;
  static constexpr std::size_t kWidth = 16;
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float broadcast(float x) { return _mm512_set1_ps(x); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static unsigned passing(const std::int32_t* dots, Float scale, Float term, Float cutoff) {
    const Float product = _mm512_mul_ps(_mm512_cvtepi32_ps(load512(dots)), scale);
    return _mm512_cmp_ps_mask(_mm512_sub_ps(product, term), cutoff, _CMP_NLE_UQ);
  }
  static __m512i table(const std::uint8_t* entries) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
  }
  static Bytes8 low(__m512i table, Bytes8 bytes) {
    return reinterpret_cast<Bytes8>(look_up(table, clean(reinterpret_cast<__m512i>(bytes), 15)));
  }
  static Bytes8 high(__m512i table, Bytes8 bytes) {
    return low(table,
               reinterpret_cast<Bytes8>(_mm512_srli_epi16(reinterpret_cast<__m512i>(bytes), 4)));
  }
};

}  // namespace
}  // namespace turboquant::kernels
