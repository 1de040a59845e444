// Sixteen codes of a chunk to int8 levels in four registers, in the order of coordinate_of. Byte
// permutes look levels up: a selector is four nibbles, so codes are made the nibbles of a word.
#pragma once

#include <cstdint>

#include "kernels/cuda/row_layout.h"

namespace turboquant::cuda {

/// Levels by code, as bytes. Of 4 bits: level + offset, which is never negative.
struct LevelBytes {
  std::uint32_t words[4];
};

/// 16 bytes of codes and, for 3 bits, the 8 bytes of their top bits.
template <int kBits>
struct Chunk {
  uint4 low;
};
template <>
struct Chunk<3> {
  uint4 low;
  uint2 top;
};

__device__ __forceinline__ std::uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Not __byte_perm, which clears the top bits of the selector.
__device__ __forceinline__ std::uint32_t permute(std::uint32_t a, std::uint32_t b,
                                                 std::uint32_t selector) {
  std::uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

/// quad: a constant after unrolling.
template <int kBits>
__device__ __forceinline__ void decode_quad(const Chunk<kBits>& chunk, int quad,
                                            const LevelBytes& levels, std::uint32_t (&out)[4]) {
  const std::uint32_t* t = levels.words;
  if constexpr (kBits == 4) {
    // A nibble of 8 and more makes a permute repeat the sign bit, 0 here, of what it selects: of
    // two look-ups, one gives the level and the other 0.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t w = word_of(chunk.low, 2 * quad + i);
      const std::uint32_t flipped = w ^ 0x88888888u;
      out[2 * i] = permute(t[0], t[1], w) | permute(t[2], t[3], flipped);
      out[2 * i + 1] = permute(t[0], t[1], w >> 16) | permute(t[2], t[3], flipped >> 16);
    }
  } else if constexpr (kBits == 2) {
    const std::uint32_t w = word_of(chunk.low, quad);
    const std::uint32_t even = w & 0x33333333u;
    const std::uint32_t odd = w >> 2 & 0x33333333u;
    out[0] = permute(t[0], 0, even);
    out[1] = permute(t[0], 0, even >> 16);
    out[2] = permute(t[0], 0, odd);
    out[3] = permute(t[0], 0, odd >> 16);
  } else if constexpr (kBits == 3) {
    const std::uint32_t w = word_of(chunk.low, quad);
    const std::uint32_t top = (quad % 2 == 0 ? chunk.top.x : chunk.top.y) >> (quad / 2);
    const std::uint32_t even = (w & 0x33333333u) | (top << 2 & 0x44444444u);
    const std::uint32_t odd = (w >> 2 & 0x33333333u) | (top & 0x44444444u);
    out[0] = permute(t[0], t[1], even);
    out[1] = permute(t[0], t[1], even >> 16);
    out[2] = permute(t[0], t[1], odd);
    out[3] = permute(t[0], t[1], odd >> 16);
  } else {
    const std::uint32_t w = word_of(chunk.low, quad / 2) >> (2 * (quad % 2));
    const std::uint32_t even = w & 0x11111111u;
    const std::uint32_t odd = w >> 1 & 0x11111111u;
    out[0] = permute(t[0], 0, even);
    out[1] = permute(t[0], 0, even >> 16);
    out[2] = permute(t[0], 0, odd);
    out[3] = permute(t[0], 0, odd >> 16);
  }
}

/// The lane's chunk of a group; zeros past the last chunk.
template <int kBits>
__device__ __forceinline__ Chunk<kBits> load_chunk(const std::uint8_t* row, int chunk, int chunks,
                                                   int top) {
  Chunk<kBits> c;
  if (chunk < chunks) {
    c.low = __ldg(reinterpret_cast<const uint4*>(row) + chunk);
    if constexpr (kBits == 3) c.top = __ldg(reinterpret_cast<const uint2*>(row + top) + chunk);
  } else {
    c.low = make_uint4(0, 0, 0, 0);
    if constexpr (kBits == 3) c.top = make_uint2(0, 0);
  }
  return c;
}

}  // namespace turboquant::cuda
