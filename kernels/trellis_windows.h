// Where the states of 16 coordinates of a trellis code lie, for backends that look up bytes within
// registers of 16: each state is the top byte of a 16-bit word, once that is shifted left.
// Internal linkage, one copy per backend.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/code_layout.h"

namespace turboquant::kernels {
namespace {

/// 16 coordinates take 2 Bits bytes and one more, which is the first of the next 16. Words of even
/// and of odd coordinates, in order; the bytes of a word are the wrong way round in the row.
template <int Bits>
struct Windows {
  constexpr Windows() : bytes(), shifts(), multipliers() {
    for (std::size_t i = 0; i < 16; ++i) {
      const std::size_t at = Bits * (i + 1);
      bytes[i % 2][i / 2 * 2] = static_cast<std::int8_t>(at / 8 + 1);
      bytes[i % 2][i / 2 * 2 + 1] = static_cast<std::int8_t>(at / 8);
      shifts[i % 2][i / 2] = static_cast<std::int16_t>(at % 8);
      multipliers[i % 2][i / 2] = static_cast<std::int16_t>(1 << at % 8);
    }
  }
  alignas(16) std::int8_t bytes[2][16];
  alignas(16) std::int16_t shifts[2][8];
  alignas(16) std::int16_t multipliers[2][8];
};
template <int Bits>
inline constexpr Windows<Bits> kWindows{};

/// Bytes that loads of 16 bytes touch when they read the four times 16 coordinates of a block.
constexpr std::size_t touched_bytes(int bits) { return 6 * static_cast<std::size_t>(bits) + 16; }

/// f(bytes, i) for each block of a row, which begins with coordinate i: in the row where loads of
/// 16 bytes stay inside, else in a copy with zeros behind.
template <int Bits, typename Function>
inline void for_each_block(const std::uint8_t* row, std::size_t d, const Function& f) {
  constexpr std::size_t kOfBlock = block_bytes(Bits);
  const std::size_t row_bytes = trellis_bytes(d, Bits);
  std::size_t i = 0;
  std::size_t at = 0;
  for (; at + touched_bytes(Bits) <= row_bytes; i += kBlock, at += kOfBlock) f(row + at, i);
  for (; i < d; i += kBlock, at += kOfBlock) {
    alignas(64) std::uint8_t copy[64] = {};
    if (i + kBlock <= d) {
      std::memcpy(copy, row + at, kOfBlock + 1);
    } else {
      std::memcpy(copy, row + at, row_bytes - at);
    }
    f(copy, i);
  }
}

}  // namespace
}  // namespace turboquant::kernels
