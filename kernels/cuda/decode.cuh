// Sixteen codes of a chunk to int8 levels in four registers, in the order of coordinate_of. Byte
// permutes look levels up: a selector is four nibbles, so codes are made the nibbles of a word.
#pragma once

#include <cstdint>

#include "kernels/cuda/row_layout.h"

namespace turboquant::cuda {

/// Levels by code, as bytes, or level + offset where unsigned_levels(). Of a trellis code as
/// TrellisTable::lookup has them.
struct LevelBytes {
  std::uint32_t words[8];
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

/// Of a trellis code: 16 bytes of the plane with the coded bits, the 8 before them and, for 3 bits,
/// what lies there in the two planes of the other bits.
struct CodedChunk {
  uint4 low;
  uint2 before;
};
template <>
struct Chunk<trellis_code(1)> : CodedChunk {};
template <>
struct Chunk<trellis_code(2)> : CodedChunk {};
template <>
struct Chunk<trellis_code(4)> : CodedChunk {};
template <>
struct Chunk<trellis_code(3)> : CodedChunk {
  uint4 even, odd;
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

/// Parities of the coded bits up to those of a word of a chunk, in the place of each: byte by byte
/// the same bits of those 1 and 8, and of those that low_taps() names before. What is in other bits
/// is of no use.
struct Parities {
  std::uint32_t word;   // as it is
  std::uint32_t flips;  // what turns a coded bit into the high parity
  std::uint32_t low;
};

static_assert(kernels::low_taps(4) == 0x020 && kernels::low_taps(3) == 0x0a4 &&
              kernels::low_taps(2) == 0x0a4 && kernels::low_taps(1) == 0x0a4 &&
              kernels::kHighTaps == 0x103);
template <int kBits>
__device__ __forceinline__ Parities parities(const CodedChunk& chunk, int i) {
  const std::uint32_t now = word_of(chunk.low, i);
  const std::uint32_t one = i == 0 ? chunk.before.y : word_of(chunk.low, i - 1);
  const std::uint32_t two = i == 0   ? chunk.before.x
                            : i == 1 ? chunk.before.y
                                     : word_of(chunk.low, i - 2);
  std::uint32_t low = permute(two, one, 0x6543);
  if constexpr (kBits < 4) low ^= permute(one, now, 0x5432) ^ permute(two, one, 0x4321);
  return {now, permute(one, now, 0x6543) ^ two, low};
}

// Eight levels of 16 by the nibbles of a word. A nibble of 8 and more makes a permute repeat the
// sign bit, 0 here, of what it selects: of two look-ups, one gives the level and the other 0.
__device__ __forceinline__ void look_up(const std::uint32_t* t, std::uint32_t selectors,
                                        std::uint32_t& low, std::uint32_t& high) {
  const std::uint32_t flipped = selectors ^ 0x88888888u;
  low = permute(t[0], t[1], selectors) | permute(t[2], t[3], flipped);
  high = permute(t[0], t[1], selectors >> 16) | permute(t[2], t[3], flipped >> 16);
}

/// quad: a constant after unrolling.
template <int kBits>
__device__ __forceinline__ void decode_trellis_quad(const Chunk<kBits>& chunk, int quad,
                                                    const LevelBytes& levels,
                                                    std::uint32_t (&out)[4]) {
  const std::uint32_t* t = levels.words;
  if constexpr (kBits == trellis_code(4)) {
    constexpr std::uint32_t kTops = 0x88888888u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Parities p = parities<4>(chunk, 2 * quad + i);
      const std::uint32_t code = p.word ^ (p.flips & kTops);
      // As look_up, of 32: in each table, all but those that the parities tell look up 0.
      const std::uint32_t a = code | (p.low & kTops);
      const std::uint32_t b = (code ^ kTops) | (p.low & kTops);
      const std::uint32_t c = code | (~p.low & kTops);
      const std::uint32_t d = (code ^ kTops) | (~p.low & kTops);
      out[2 * i] = permute(t[0], t[1], a) | permute(t[2], t[3], b) | permute(t[4], t[5], c) |
                   permute(t[6], t[7], d);
      out[2 * i + 1] = permute(t[0], t[1], a >> 16) | permute(t[2], t[3], b >> 16) |
                       permute(t[4], t[5], c >> 16) | permute(t[6], t[7], d >> 16);
    }
  } else if constexpr (kBits == trellis_code(2)) {
    const Parities p = parities<2>(chunk, quad);
    const std::uint32_t fields = p.word ^ (p.flips & 0xaaaaaaaau);
    const std::uint32_t even = (fields & 0x33333333u) | (p.low << 1 & 0x44444444u);
    const std::uint32_t odd = (fields >> 2 & 0x33333333u) | (p.low >> 1 & 0x44444444u);
    out[0] = permute(t[0], t[1], even);
    out[1] = permute(t[0], t[1], even >> 16);
    out[2] = permute(t[0], t[1], odd);
    out[3] = permute(t[0], t[1], odd >> 16);
  } else if constexpr (kBits == trellis_code(3)) {
    const Parities p = parities<3>(chunk, quad / 2);
    const int by = quad % 2;
    const std::uint32_t low = p.low >> by;
    const std::uint32_t high = (p.word ^ p.flips) >> by;
    const std::uint32_t rest = word_of(by == 0 ? chunk.even : chunk.odd, quad / 2);
    look_up(t, (rest << 2 & 0xccccccccu) | (high << 1 & 0x22222222u) | (low & 0x11111111u), out[0],
            out[1]);
    look_up(t, (rest & 0xccccccccu) | (high >> 1 & 0x22222222u) | (low >> 2 & 0x11111111u), out[2],
            out[3]);
  } else {
    const Parities p = parities<1>(chunk, quad / 2);
    const int by = 2 * (quad % 2);
    const std::uint32_t low = p.low >> by;
    const std::uint32_t high = (p.word ^ p.flips) >> by;
    const std::uint32_t even = (low & 0x11111111u) | (high << 1 & 0x22222222u);
    const std::uint32_t odd = (low >> 1 & 0x11111111u) | (high & 0x22222222u);
    out[0] = permute(t[0], 0, even);
    out[1] = permute(t[0], 0, even >> 16);
    out[2] = permute(t[0], 0, odd);
    out[3] = permute(t[0], 0, odd >> 16);
  }
}

/// quad: a constant after unrolling.
template <int kBits>
__device__ __forceinline__ void decode_quad(const Chunk<kBits>& chunk, int quad,
                                            const LevelBytes& levels, std::uint32_t (&out)[4]) {
  const std::uint32_t* t = levels.words;
  if constexpr (kBits > 4) {
    decode_trellis_quad<kBits>(chunk, quad, levels, out);
  } else if constexpr (kBits == 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      look_up(t, word_of(chunk.low, 2 * quad + i), out[2 * i], out[2 * i + 1]);
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

struct GlobalMemory {
  template <typename T>
  __device__ static T load(const void* at) {
    return __ldg(static_cast<const T*>(at));
  }
};
struct SharedMemory {
  template <typename T>
  __device__ static T load(const void* at) {
    return *static_cast<const T*>(at);
  }
};

/// A chunk of a row. top: of RowLayout.
template <int kBits, class Memory>
__device__ __forceinline__ Chunk<kBits> read_chunk(const void* of_row, int chunk, int top) {
  const auto* row = static_cast<const char*>(of_row);
  Chunk<kBits> c;
  if constexpr (kBits > 4) {
    const char* at = row + RowLayout::kTrellisPlane + 16 * chunk;
    c.low = Memory::template load<uint4>(at);
    c.before = Memory::template load<uint2>(at - 8);
    if constexpr (kBits == trellis_code(3)) {
      c.even = Memory::template load<uint4>(at + top);
      c.odd = Memory::template load<uint4>(at + 2 * top);
    }
  } else {
    c.low = Memory::template load<uint4>(row + 16 * chunk);
    if constexpr (kBits == 3) c.top = Memory::template load<uint2>(row + top + 8 * chunk);
  }
  return c;
}

/// The lane's chunk of a group of a row in device memory; zeros past the last chunk.
template <int kBits>
__device__ __forceinline__ Chunk<kBits> load_chunk(const std::uint8_t* row, int chunk, int chunks,
                                                   int top) {
  if (chunk < chunks) return read_chunk<kBits, GlobalMemory>(row, chunk, top);
  return Chunk<kBits>{};
}

}  // namespace turboquant::cuda
