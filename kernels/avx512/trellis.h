// Trellis codes on AVX-512, with byte permutations (VBMI) and without. Internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/trellis_windows.h"

namespace turboquant::kernels {
namespace {

inline __m512i four_quarters(const void* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

// States of 64 coordinates, of the bytes that `live` names; a whole block has
// block_bytes(Bits) + 1 of them.
template <int Bits>
inline __m512i states64(const std::uint8_t* bytes, __mmask64 live) {
  const __m512i stream = _mm512_maskz_loadu_epi8(live, bytes);
#if defined(__AVX512VBMI__)
  // Eight coordinates take Bits bytes and one more: each quadword gets eight bytes from there on,
  // the first on top, and each byte the eight bits that end with its coordinate's.
  const __m512i first =
      _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7),
                         _mm512_set1_epi64(static_cast<long long>(Bits * 0x0101010101010101)));
  const __m512i index = _mm512_add_epi8(first, _mm512_set1_epi64(0x0001020304050607));
  std::uint64_t shifts = 0;
  for (int i = 0; i < 8; ++i) shifts |= static_cast<std::uint64_t>(56 - Bits * (i + 1)) << (8 * i);
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(shifts)),
                                      _mm512_permutexvar_epi8(index, stream));
#else
  // 16 coordinates begin every Bits words.
  const __m512i lane = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
  const __m512i start = _mm512_mullo_epi16(_mm512_or_si512(lane, _mm512_slli_epi64(lane, 16)),
                                           _mm512_set1_epi16(Bits));
  const __m512i starts = _mm512_or_si512(start, _mm512_slli_epi64(start, 32));
  const __m512i word = _mm512_set_epi16(7, 6, 5, 4, 3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1, 0, 7, 6, 5, 4,
                                        3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i v = _mm512_permutexvar_epi16(_mm512_add_epi16(starts, word), stream);
  const auto& w = kWindows<Bits>;
  const __m512i even = _mm512_sllv_epi16(_mm512_shuffle_epi8(v, four_quarters(w.bytes[0])),
                                         four_quarters(w.shifts[0]));
  const __m512i odd = _mm512_sllv_epi16(_mm512_shuffle_epi8(v, four_quarters(w.bytes[1])),
                                        four_quarters(w.shifts[1]));
  return _mm512_mask_mov_epi8(_mm512_srli_epi16(even, 8), 0xaaaaaaaaaaaaaaaa, odd);
#endif
}

// A table of 256 bytes in registers.
#if defined(__AVX512VBMI__)
struct Levels256 {
  Levels256(const std::int8_t* levels, std::int32_t add) {
    const __m512i plus = _mm512_set1_epi8(static_cast<char>(add));
    for (int i = 0; i < 4; ++i) {
      parts[i] = _mm512_add_epi8(_mm512_loadu_si512(levels + 64 * i), plus);
    }
  }
  __m512i operator()(__m512i states) const {
    const __m512i lower = _mm512_permutex2var_epi8(parts[0], states, parts[1]);
    const __m512i upper = _mm512_permutex2var_epi8(parts[2], states, parts[3]);
    return _mm512_mask_mov_epi8(lower, _mm512_movepi8_mask(states), upper);
  }
  __m512i parts[4];
};
#else
// The upper 128 states alone; the lower ones mirror them.
struct Levels256 {
  Levels256(const std::int8_t* levels, std::int32_t add)
      : plus(_mm512_set1_epi8(static_cast<char>(add))) {
    for (int i = 0; i < 8; ++i) parts[i] = four_quarters(levels + 128 + 16 * i);
  }
  __m512i operator()(__m512i states) const {
    const __m512i ones = _mm512_set1_epi8(-1);
    const __mmask64 positive = _mm512_movepi8_mask(states);
    const __m512i mirrored = _mm512_mask_sub_epi8(states, ~positive, ones, states);
    const __m512i low = _mm512_and_si512(mirrored, _mm512_set1_epi8(15));
    const __mmask64 bit4 = _mm512_test_epi8_mask(mirrored, _mm512_set1_epi8(16));
    const __mmask64 bit5 = _mm512_test_epi8_mask(mirrored, _mm512_set1_epi8(32));
    const __mmask64 bit6 = _mm512_test_epi8_mask(mirrored, _mm512_set1_epi8(64));
    const auto pair = [&](int i) {
      return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(parts[i], low), bit4, parts[i + 1], low);
    };
    const __m512i a = _mm512_mask_mov_epi8(pair(0), bit5, pair(2));
    const __m512i b = _mm512_mask_mov_epi8(pair(4), bit5, pair(6));
    const __m512i level = _mm512_mask_mov_epi8(a, bit6, b);
    return _mm512_mask_add_epi8(_mm512_sub_epi8(plus, level), positive, plus, level);
  }
  __m512i parts[8];
  __m512i plus;
};
#endif

// The first n bytes.
constexpr __mmask64 live_bytes(std::size_t n) { return (std::uint64_t{1} << n) - 1; }

template <int Bits>
void trellis_decode_bits(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                         std::int32_t add, std::int8_t* out) {
  const Levels256 levels(table.levels, add);
  const std::size_t bytes = trellis_bytes(d, Bits);
  std::size_t i = 0;
  std::size_t at = 0;
  for (; i + kBlock <= d; i += kBlock, at += block_bytes(Bits)) {
    store(out + i, levels(states64<Bits>(row + at, live_bytes(block_bytes(Bits) + 1))));
  }
  if (i < d) store(out + i, levels(states64<Bits>(row + at, live_bytes(bytes - at))));
}

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  by_bits(table.bits,
          [&](auto bits) { trellis_decode_bits<decltype(bits)::kValue>(row, d, table, add, out); });
}

template <int Bits>
inline __m128i trellis_dot_four(const std::uint8_t* const row[4], std::size_t d,
                                const Levels256& levels, const std::int8_t* query) {
  const std::size_t bytes = trellis_bytes(d, Bits);
  __m512i sums[4] = {};
  std::size_t i = 0;
  std::size_t at = 0;
  const auto block = [&](__mmask64 live) {
    const __m512i q = _mm512_loadu_si512(query + i);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      sums[r] = _mm512_dpbusd_epi32(sums[r], levels(states64<Bits>(row[r] + at, live)), q);
    }
  };
  for (; i + kBlock <= d; i += kBlock, at += block_bytes(Bits)) {
    block(live_bytes(block_bytes(Bits) + 1));
  }
  if (i < d) block(live_bytes(bytes - at));
  return sum_lanes(sums);
}

void trellis_dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                      std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                      std::int32_t* dots) {
  const Levels256 levels(table.levels, table.offset);
  const __m128i bias = _mm_set1_epi32(-table.offset * query.sum);
  by_bits(table.bits, [&](auto bits) {
    dot_by<4, kPrefetchBytes>(codes, stride, rows, n, dots, [&](const std::uint8_t* const row[4]) {
      return _mm_add_epi32(trellis_dot_four<decltype(bits)::kValue>(row, d, levels, query.values),
                           bias);
    });
  });
}

// Of FloatLanes: what KernelTable::trellis_encode needs.
struct TrellisLanes {
  template <typename Words>
  static Words squared_difference(Words x, Words target) {
    const __m512i e =
        _mm512_subs_epi16(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(target));
    return reinterpret_cast<Words>(_mm512_mulhrs_epi16(e, e));
  }
  static std::uint16_t smallest(WordsOf<32>::Type v) {
    const auto all = reinterpret_cast<__m256i>(v);
    const __m128i half =
        _mm_min_epu16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    return static_cast<std::uint16_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(half)));
  }
  static std::uint16_t smallest(WordsOf<64>::Type v) {
    const auto all = reinterpret_cast<__m512i>(v);
    return smallest(reinterpret_cast<WordsOf<32>::Type>(
        _mm256_min_epu16(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1))));
  }
  // Register r of the sums: each of its 32 >> Bits groups 2^Bits times.
  template <int Bits>
  static WordsOf<64>::Type repeat(const std::uint16_t* best, std::size_t r) {
    constexpr std::size_t kGroups = std::size_t{32} >> Bits;
    const std::uint16_t* from = best + r * kGroups;
    // Bytes of the group of each lane, counted from the first of its quarter of the register.
    const auto lanes = [](int a, int b) {
      const auto pair = [](int w) {
        return static_cast<long long>((2 * w + 1) << 8 | 2 * w) * 0x10001;
      };
      return _mm_set_epi64x(pair(b) << 32 | pair(b), pair(a) << 32 | pair(a));
    };
    __m512i words;
    if constexpr (Bits == 1) {
      const __m512i all =
          _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      words = _mm512_permutexvar_epi16(
          _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6,
                           5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0),
          all);
    } else if constexpr (Bits == 2) {
      words = _mm512_shuffle_epi8(four_quarters(from),
                                  quarters(lanes(0, 1), lanes(2, 3), lanes(4, 5), lanes(6, 7)));
    } else if constexpr (Bits == 3) {
      std::int64_t four;
      std::memcpy(&four, from, 8);
      words = _mm512_shuffle_epi8(_mm512_set1_epi64(four),
                                  quarters(lanes(0, 0), lanes(1, 1), lanes(2, 2), lanes(3, 3)));
    } else {
      std::int32_t two;
      std::memcpy(&two, from, 4);
      words = _mm512_shuffle_epi8(_mm512_set1_epi32(two),
                                  quarters(lanes(0, 0), lanes(0, 0), lanes(1, 1), lanes(1, 1)));
    }
    return reinterpret_cast<WordsOf<64>::Type>(words);
  }
  static __m512i quarters(__m128i a, __m128i b, __m128i c, __m128i d) {
    const __m512i lower = _mm512_castsi256_si512(_mm256_set_m128i(b, a));
    return _mm512_inserti64x4(lower, _mm256_set_m128i(d, c), 1);
  }
};

}  // namespace
}  // namespace turboquant::kernels
