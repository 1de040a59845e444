// KernelTable::trellis_encode for every SIMD backend: sums of 16 bits, as many a register as fit.
// `Lanes` brings what the vector extensions cannot say. Internal linkage, one copy per backend.
#pragma once

#include "kernels/by_bits.h"
#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

template <std::size_t Bytes>
struct WordsOf {
  typedef std::uint16_t Type __attribute__((vector_size(Bytes)));
  typedef std::uint8_t Narrow __attribute__((vector_size(Bytes / 2)));
};

constexpr std::size_t kWords = kBytes / 2;  // sums in a register
using Words = WordsOf<kBytes>::Type;

// out[i] = y[i] in the units of the encoder, n at most kBlock.
inline void encoder_units(const float* y, std::size_t n, float factor, std::int16_t* out) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  float padded[kBlock] = {};
  std::memcpy(padded, y, n * sizeof(float));
  typedef std::int16_t Shorts __attribute__((vector_size(kBytes / 2)));
  for (std::size_t i = 0; i < kBlock; i += kWidth) {
    Floats v = load<Floats>(padded + i) * factor;
    v = v > 32767.0f ? broadcast(32767.0f) : v;
    v = v < -32767.0f ? broadcast(-32767.0f) : v;
    const auto rounded = __builtin_convertvector((v + magic) - magic, Ints);
    store(out + i, __builtin_convertvector(rounded, Shorts));
  }
}

// One register of groups of states: the least sum among the predecessors of each, less `floor`,
// and which predecessor has it.
template <int Bits, std::size_t Bytes>
inline typename WordsOf<Bytes>::Type best_predecessors(const std::uint16_t* sums,
                                                       std::uint16_t floor, std::uint8_t* from) {
  using Group = typename WordsOf<Bytes>::Type;
  constexpr std::size_t kGroups = kStates >> Bits;
  Group best = load<Group>(sums);
  Group which{};
#pragma GCC unroll 16
  for (std::size_t k = 1; k < std::size_t{1} << Bits; ++k) {
    const auto other = load<Group>(sums + k * kGroups);
    const auto less = other < best;
    which = less ? Group{} + static_cast<std::uint16_t>(k) : which;
    best = less ? other : best;
  }
  store(from, __builtin_convertvector(which, typename WordsOf<Bytes>::Narrow));
  best -= floor;
  const Group most = Group{} + static_cast<std::uint16_t>(32767);
  return best < most ? best : most;
}

// Follows the best predecessors back from `state`, then writes the row.
template <int Bits>
inline void write_path(std::uint8_t* work, std::size_t d, std::size_t state, std::uint8_t* row) {
  constexpr std::size_t kGroups = kStates >> Bits;
  constexpr std::size_t kMask = (std::size_t{1} << Bits) - 1;
  for (std::size_t i = d; i-- > 0;) {
    const std::size_t g = state >> Bits;
    std::uint8_t* from = work + i * kGroups;
    const std::size_t before = from[g] * kGroups + g;
    from[0] = static_cast<std::uint8_t>(state & kMask);
    state = before;
  }
  *row++ = static_cast<std::uint8_t>(state);
  // Eight codes fill Bits bytes.
  for (std::size_t i = 0; i < d; i += 8) {
    const std::size_t n = d - i < 8 ? d - i : 8;
    std::uint32_t word = 0;
    for (std::size_t j = 0; j < 8; ++j) {
      word = word << Bits | (j < n ? work[(i + j) * kGroups] : 0u);
    }
    const std::size_t bytes = packed_bytes(n, Bits);
    for (std::size_t j = 0; j < bytes; ++j) {
      *row++ = static_cast<std::uint8_t>(word >> 8 * (static_cast<std::size_t>(Bits) - 1 - j));
    }
  }
}

template <typename Lanes, int Bits>
void trellis_path(const float* y, std::size_t d, const TrellisTable& table, std::uint8_t* work,
                  std::uint8_t* row) {
  constexpr std::size_t kGroups = kStates >> Bits;
  constexpr std::size_t kGroupBytes = kBytes < 2 * kGroups ? kBytes : 2 * kGroups;
  constexpr std::size_t kStep = kGroupBytes / 2;
  using Group = typename WordsOf<kGroupBytes>::Type;
  alignas(64) std::uint16_t sums[kStates] = {};
  alignas(64) std::uint16_t best[kGroups];
  alignas(64) std::int16_t units[kBlock];
  std::uint16_t floor = 0;
  for (std::size_t i = 0; i < d; ++i) {
    if (i % kBlock == 0) {
      encoder_units(y + i, d - i < kBlock ? d - i : kBlock, table.factor, units);
    }
    Group least = Group{} + static_cast<std::uint16_t>(32767);
#pragma GCC unroll 16
    for (std::size_t g = 0; g < kGroups; g += kStep) {
      const Group b = best_predecessors<Bits, kGroupBytes>(sums + g, floor, work + i * kGroups + g);
      store(best + g, b);
      least = b < least ? b : least;
    }
    floor = Lanes::smallest(least);
    const Words x = Words{} + static_cast<std::uint16_t>(units[i % kBlock]);
#pragma GCC unroll 32
    for (std::size_t r = 0; r < kStates / kWords; ++r) {
      const Words cost = Lanes::squared_difference(x, load<Words>(table.targets + r * kWords));
      store(sums + r * kWords, Lanes::template repeat<Bits>(best, r) + cost);
    }
  }
  std::size_t state = 0;
  for (std::size_t s = 1; s < kStates; ++s) state = sums[s] < sums[state] ? s : state;
  write_path<Bits>(work, d, state, row);
}

template <typename Lanes>
void trellis_encode_with(const float* y, std::size_t d, const TrellisTable& table,
                         std::uint8_t* work, std::uint8_t* row) {
  by_bits(table.bits,
          [&](auto bits) { trellis_path<Lanes, decltype(bits)::kValue>(y, d, table, work, row); });
}

}  // namespace
}  // namespace turboquant::kernels
