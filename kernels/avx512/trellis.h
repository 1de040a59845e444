// Trellis codes on AVX-512, with byte permutations (VBMI) and without. Internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/trellis_encode.h"
#include "kernels/trellis_planes.h"

namespace turboquant::kernels {
namespace {

template <int Bits>
class Lookup {
 public:
  Lookup(const TrellisTable& table, std::int32_t add)
      : first_(broadcast_table(table.lookup, add)),
        second_(broadcast_table(table.lookup + 16, add)) {}

  // Levels of a block of mixed codes.
  __m512i of_block(const std::uint8_t* mixed) const {
    const __m512i levels = look_up(first_, expand<mixed_bits(Bits)>(mixed));
    if constexpr (Bits < 4) return levels;
    const __m512i low = _mm512_broadcast_i64x4(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mixed + 32)));
    const __m512i tops = _mm512_sllv_epi64(low, _mm512_setr_epi64(4, 4, 4, 4, 0, 0, 0, 0));
    return _mm512_mask_mov_epi8(levels, _mm512_movepi8_mask(tops),
                                look_up(second_, expand<mixed_bits(Bits)>(mixed)));
  }
  __m512i of_last(const LastBlock& last) const {
    const __m512i codes = load512(last.codes);
    const __m512i levels = look_up(first_, codes);
    if constexpr (Bits < 4) return levels;
    return _mm512_mask_mov_epi8(levels, _mm512_movepi8_mask(load512(last.low)),
                                look_up(second_, codes));
  }

 private:
  __m512i first_, second_;
};

template <int Bits>
void trellis_decode_bits(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                         std::int32_t add, std::int8_t* out) {
  const Lookup<Bits> lookup(table, add);
  for_each_mixed_block<Bits>(
      row, d,
      [&](const std::uint8_t* mixed, std::size_t i) { store(out + i, lookup.of_block(mixed)); },
      [&](const LastBlock& last, std::size_t i) { store(out + i, lookup.of_last(last)); });
}

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  by_bits(table.bits,
          [&](auto bits) { trellis_decode_bits<decltype(bits)::kValue>(row, d, table, add, out); });
}

template <int Bits>
[[gnu::noinline]] __m512i trellis_last(__m512i sum, const std::uint8_t* row, std::size_t d,
                                       const Lookup<Bits>& lookup, const std::int8_t* query) {
  LastBlock last;
  mix_last_block<Bits>(row, d, last);
  return _mm512_dpbusd_epi32(sum, lookup.of_last(last), load512(query + d / kBlock * kBlock));
}

template <int Bits, int Rows>
inline void trellis_sums(const std::uint8_t* const* row, std::size_t d, const Lookup<Bits>& lookup,
                         const std::int8_t* query, __m512i* sums) {
  constexpr std::size_t kOfRow = kMixedBlocks * mixed_bytes(Bits);
  alignas(64) std::uint8_t mixed[Rows * kOfRow];
  const std::size_t blocks = d / kBlock;
  for (std::size_t first = 0; first < blocks; first += kMixedBlocks) {
    const std::size_t end = blocks - first < kMixedBlocks ? blocks : first + kMixedBlocks;
    for (std::size_t r = 0; r < Rows; ++r) {
      mix_row<Bits>(row[r], d, first, end, mixed + r * kOfRow);
    }
    __m512i local[Rows];
    for (std::size_t r = 0; r < Rows; ++r) local[r] = sums[r];
    for (std::size_t b = first; b < end; ++b) {
      const __m512i q = load512(query + b * kBlock);
#pragma GCC unroll 4
      for (std::size_t r = 0; r < Rows; ++r) {
        const std::uint8_t* block = mixed + r * kOfRow + (b - first) * mixed_bytes(Bits);
        local[r] = _mm512_dpbusd_epi32(local[r], lookup.of_block(block), q);
      }
    }
    for (std::size_t r = 0; r < Rows; ++r) sums[r] = local[r];
  }
  if (d % kBlock != 0) {
    for (std::size_t r = 0; r < Rows; ++r) {
      sums[r] = trellis_last<Bits>(sums[r], row[r], d, lookup, query);
    }
  }
}

void trellis_dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                      std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                      std::int32_t* dots) {
  const std::int32_t bias = -table.offset * query.sum;
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const Lookup<kBits> lookup(table, table.offset);
    dot_by<4, kPrefetchBytes>(
        codes, stride, rows, n, dots,
        [&](const std::uint8_t* const row[4]) {
          __m512i sums[4] = {};
          trellis_sums<kBits, 4>(row, d, lookup, query.values, sums);
          return _mm_add_epi32(sum_lanes(sums), _mm_set1_epi32(bias));
        },
        [&](const std::uint8_t* row) {
          __m512i sum[1] = {};
          trellis_sums<kBits, 1>(&row, d, lookup, query.values, sum);
          return _mm512_reduce_add_epi32(sum[0]) + bias;
        });
  });
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
