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

/// The bytes of the block at byte `at` of a row, with zeros behind the row's end.
struct BlockCopy {
  BlockCopy(const std::uint8_t* row, std::size_t at, std::size_t row_bytes, int bits) : bytes() {
    const std::size_t block = block_bytes(bits) + 1;
    std::memcpy(bytes, row + at, row_bytes - at < block ? row_bytes - at : block);
  }
  alignas(64) std::uint8_t bytes[64];
};

}  // namespace
}  // namespace turboquant::kernels
