// Trellis codes on AVX2. Internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/trellis_encode.h"
#include "kernels/trellis_planes.h"

namespace turboquant::kernels {
namespace {

// Levels of 64 coordinates.
struct TwoHalves {
  __m256i low, high;
};

template <int Bits>
class Lookup {
 public:
  Lookup(const TrellisTable& table, std::int32_t add)
      : first_(broadcast_table(table.lookup, add)),
        second_(broadcast_table(table.lookup + 16, add)) {}

  // Of a block of mixed codes.
  TwoHalves of_block(const std::uint8_t* mixed) const {
    if constexpr (Bits < 4) {
      constexpr int kMixed = mixed_bits(Bits);
      return {_mm256_shuffle_epi8(first_, expand<kMixed, 0>(mixed)),
              _mm256_shuffle_epi8(first_, expand<kMixed, 1>(mixed))};
    } else {
      const __m256i low = load256(mixed + 32);
      return {look_up(expand<4, 0>(mixed), _mm256_slli_epi16(low, 4)),
              look_up(expand<4, 1>(mixed), low)};
    }
  }
  TwoHalves of_last(const LastBlock& last) const {
    return {look_up(load256(last.codes), load256(last.low)),
            look_up(load256(last.codes + 32), load256(last.low + 32))};
  }

 private:
  // low: which table, in the top bits of the bytes.
  __m256i look_up(__m256i codes, __m256i low) const {
    const __m256i levels = _mm256_shuffle_epi8(first_, codes);
    if constexpr (Bits < 4) return levels;
    return _mm256_blendv_epi8(levels, _mm256_shuffle_epi8(second_, codes), low);
  }

  __m256i first_, second_;
};

template <int Bits>
void trellis_decode_bits(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                         std::int32_t add, std::int8_t* out) {
  const Lookup<Bits> lookup(table, add);
  const auto put = [&](const TwoHalves& levels, std::size_t i) {
    store(out + i, levels.low);
    store(out + i + 32, levels.high);
  };
  for_each_mixed_block<Bits>(
      row, d,
      [&](const std::uint8_t* mixed, std::size_t i) { put(lookup.of_block(mixed), i); },
      [&](const LastBlock& last, std::size_t i) { put(lookup.of_last(last), i); });
}

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  by_bits(table.bits,
          [&](auto bits) { trellis_decode_bits<decltype(bits)::kValue>(row, d, table, add, out); });
}

// Two pair sums of level + offset fit in 16 bits up to 3 bits, as for scalar codes.
template <int Bits>
inline __m256i trellis_block(__m256i sum, const TwoHalves& levels, const std::int8_t* query) {
  return dot_block<Bits>(sum, levels.low, levels.high, load256(query), load256(query + 32));
}

template <int Bits>
[[gnu::noinline]] __m256i trellis_last(__m256i sum, const std::uint8_t* row, std::size_t d,
                                       const Lookup<Bits>& lookup, const std::int8_t* query) {
  LastBlock last;
  mix_last_block<Bits>(row, d, last);
  return trellis_block<Bits>(sum, lookup.of_last(last), query + d / kBlock * kBlock);
}

template <int Bits, int Rows>
inline void trellis_sums(const std::uint8_t* const* row, std::size_t d, const Lookup<Bits>& lookup,
                         const std::int8_t* query, __m256i* sums) {
  constexpr std::size_t kOfRow = kMixedBlocks * mixed_bytes(Bits);
  alignas(64) std::uint8_t mixed[Rows * kOfRow];
  const std::size_t blocks = d / kBlock;
  for (std::size_t first = 0; first < blocks; first += kMixedBlocks) {
    const std::size_t end = blocks - first < kMixedBlocks ? blocks : first + kMixedBlocks;
    for (int r = 0; r < Rows; ++r) {
      mix_row<Bits>(row[r], d, first, end, mixed + static_cast<std::size_t>(r) * kOfRow);
    }
    __m256i local[Rows];
    for (int r = 0; r < Rows; ++r) local[r] = sums[r];
    for (std::size_t b = first; b < end; ++b) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const std::uint8_t* block =
            mixed + static_cast<std::size_t>(r) * kOfRow + (b - first) * mixed_bytes(Bits);
        local[r] = trellis_block<Bits>(local[r], lookup.of_block(block), query + b * kBlock);
      }
    }
    for (int r = 0; r < Rows; ++r) sums[r] = local[r];
  }
  if (d % kBlock != 0) {
    for (int r = 0; r < Rows; ++r) sums[r] = trellis_last<Bits>(sums[r], row[r], d, lookup, query);
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
          __m256i sums[4] = {};
          trellis_sums<kBits, 4>(row, d, lookup, query.values, sums);
          return _mm_add_epi32(sum_lanes(sums[0], sums[1], sums[2], sums[3]),
                               _mm_set1_epi32(bias));
        },
        [&](const std::uint8_t* row) {
          __m256i sum[1] = {};
          trellis_sums<kBits, 1>(&row, d, lookup, query.values, sum);
          const __m256i zero = _mm256_setzero_si256();
          return _mm_cvtsi128_si32(sum_lanes(sum[0], zero, zero, zero)) + bias;
        });
  });
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
