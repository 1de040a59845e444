// Trellis codes for SIMD backends: a row becomes codes of more bits in the layout of scalar codes,
// which are then looked up as those are. The parities of the coded bits are exclusive ors of the
// plane shifted by whole bytes. Internal linkage, one copy per backend.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/code_layout.h"
#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

/// Bits of the codes that a row becomes: indices into TrellisTable::lookup. 1 bit: the two parities,
/// the high one on top. 2 bits: the low parity above the high one above the rest. 3 bits: the rest
/// above both parities. 4 bits: the high parity above the rest, and in a plane of its own, of which
/// only the top bit of each field counts, the low parity, which chooses one of two tables.
constexpr int mixed_bits(int bits) { return bits == 1 ? 2 : 4; }

/// Bytes of 64 mixed codes.
constexpr std::size_t mixed_bytes(int bits) {
  return bits == 4 ? 64 : block_bytes(mixed_bits(bits));
}

template <std::size_t Size>
struct QuadsOf {
  typedef std::uint64_t Type __attribute__((vector_size(Size)));
};

constexpr std::uint64_t in_each_byte(unsigned byte) { return 0x0101010101010101u * byte; }

/// Blocks of mixed codes of a row that are made at a time.
constexpr std::size_t kMixedBlocks = 32;

// a and b by turns, Group quadwords at a time.
template <std::size_t Size, std::size_t Group>
inline void interleave(typename QuadsOf<Size>::Type a, typename QuadsOf<Size>::Type b,
                       std::uint8_t* out) {
  using Quads = typename QuadsOf<Size>::Type;
  if constexpr (Size == 8 * Group) {
    store(out, a);
    store(out + Size, b);
  } else if constexpr (Size == 16) {
    store(out, __builtin_shuffle(a, b, Quads{0, 2}));
    store(out + Size, __builtin_shuffle(a, b, Quads{1, 3}));
  } else if constexpr (Size == 32 && Group == 1) {
    store(out, __builtin_shuffle(a, b, Quads{0, 4, 1, 5}));
    store(out + Size, __builtin_shuffle(a, b, Quads{2, 6, 3, 7}));
  } else if constexpr (Size == 32) {
    store(out, __builtin_shuffle(a, b, Quads{0, 1, 4, 5}));
    store(out + Size, __builtin_shuffle(a, b, Quads{2, 3, 6, 7}));
  } else if constexpr (Group == 1) {
    store(out, __builtin_shuffle(a, b, Quads{0, 8, 1, 9, 2, 10, 3, 11}));
    store(out + Size, __builtin_shuffle(a, b, Quads{4, 12, 5, 13, 6, 14, 7, 15}));
  } else if constexpr (Group == 2) {
    store(out, __builtin_shuffle(a, b, Quads{0, 1, 8, 9, 2, 3, 10, 11}));
    store(out + Size, __builtin_shuffle(a, b, Quads{4, 5, 12, 13, 6, 7, 14, 15}));
  } else {
    store(out, __builtin_shuffle(a, b, Quads{0, 1, 2, 3, 8, 9, 10, 11}));
    store(out + Size, __builtin_shuffle(a, b, Quads{4, 5, 6, 7, 12, 13, 14, 15}));
  }
}

// Two planes of 2 Size bytes, fields of two bits, as fields of four with `high` above `low`.
template <std::size_t Size>
inline void widen(typename QuadsOf<Size>::Type low, typename QuadsOf<Size>::Type high,
                  std::uint8_t* out) {
  const auto even = (low & in_each_byte(0x33)) | ((high & in_each_byte(0x33)) << 2);
  const auto odd = ((low >> 2) & in_each_byte(0x33)) | (high & in_each_byte(0xcc));
  interleave<Size, 2>(even, odd, out);
}

// Mixed codes of the blocks whose coded bits are the Size bytes from `plane` on, eight bytes before
// which are read as well. rest: where those blocks begin in the second plane, for 3 bits.
template <int Bits, std::size_t Size>
inline void mix(const std::uint8_t* plane, const std::uint8_t* rest, std::uint8_t* out) {
  using Quads = typename QuadsOf<Size>::Type;
  static_assert(kLowTaps == 0x0a4 && kHighTaps == 0x103);
  const auto before = [&](std::size_t k) { return load<Quads>(plane - k); };
  const Quads now = before(0);
  const Quads flips = before(1) ^ before(8);
  const Quads low = before(2) ^ before(5) ^ before(7);
  if constexpr (Bits == 1 || Bits == 3) {
    const Quads high = now ^ flips;
    const Quads even = (low & in_each_byte(0x55)) | ((high << 1) & in_each_byte(0xaa));
    const Quads odd = ((low >> 1) & in_each_byte(0x55)) | (high & in_each_byte(0xaa));
    if constexpr (Bits == 1) {
      interleave<Size, 1>(even, odd, out);
    } else {
      alignas(64) std::uint8_t pairs[2 * Size];
      interleave<Size, 1>(even, odd, pairs);
      if constexpr (Size == 8) {
        widen<16>(load<typename QuadsOf<16>::Type>(pairs),
                  load<typename QuadsOf<16>::Type>(rest), out);
      } else {
        widen<Size>(load<Quads>(pairs), load<Quads>(rest), out);
        widen<Size>(load<Quads>(pairs + Size), load<Quads>(rest + Size), out + 2 * Size);
      }
    }
  } else if constexpr (Bits == 2) {
    const Quads fields = now ^ (flips & in_each_byte(0xaa));
    const Quads even = (fields & in_each_byte(0x33)) | ((low << 1) & in_each_byte(0x44));
    const Quads odd = ((fields >> 2) & in_each_byte(0x33)) | ((low >> 1) & in_each_byte(0x44));
    interleave<Size, 2>(even, odd, out);
  } else {
    interleave<Size, 4>(now ^ (flips & in_each_byte(0x88)), low, out);
  }
}

// What stands in the eight bytes before a plane: its end, a field further up, and the first state
// in the lowest fields.
template <int Bits>
inline std::uint64_t bytes_before(const std::uint8_t* row, std::size_t d) {
  constexpr int kCoded = coded_width(Bits);
  const std::size_t bytes = packed_bytes(d, kCoded);
  constexpr std::uint64_t kLowest = in_each_byte(1u << (kCoded - 1));
  // Bit k - 1 of the state goes to byte 8 - k.
  const std::uint64_t bits = row[0] * in_each_byte(1) & 0x0102040810204080u;
  const std::uint64_t state = (bits + 0x7f7e7c7870604000u) >> (8 - kCoded) & kLowest;
  constexpr std::uint64_t kUpper = in_each_byte(0xffu << kCoded & 0xffu);
  if (bytes >= 8) return (load<std::uint64_t>(row + 1 + bytes - 8) << kCoded & kUpper) | state;
  std::uint8_t before[16] = {};
  std::memcpy(before + 8, row + 1, bytes);
  for (std::size_t k = 1; k <= 8; ++k) {
    before[8 - k] = static_cast<std::uint8_t>(before[8 - k + bytes] << kCoded |
                                              (state >> (8 * (8 - k)) & 0xff));
  }
  return load<std::uint64_t>(before);
}

// Mixed codes of blocks [first, last) of the whole blocks of a row. The first block needs what
// stands before the plane.
template <int Bits, std::size_t Size = kBytes>
inline void mix_blocks(const std::uint8_t* plane, const std::uint8_t* rest, std::size_t first,
                       std::size_t last, std::uint8_t* out) {
  constexpr std::size_t kOfBlock = plane_bytes(coded_width(Bits));
  constexpr std::size_t kAtATime = Size / kOfBlock;
  std::size_t i = first;
  if constexpr (kAtATime > 0) {
    for (; i + kAtATime <= last; i += kAtATime) {
      mix<Bits, Size>(plane + i * kOfBlock, rest + i * plane_bytes(2),
                      out + (i - first) * mixed_bytes(Bits));
    }
  }
  if constexpr (kAtATime > 1) {
    mix_blocks<Bits, Size / 2>(plane, rest, i, last, out + (i - first) * mixed_bytes(Bits));
  }
}

template <int Bits>
inline void mix_first_block(const std::uint8_t* row, std::size_t d, std::uint8_t* out) {
  constexpr std::size_t kOfBlock = plane_bytes(coded_width(Bits));
  alignas(64) std::uint8_t copy[8 + kOfBlock];
  store(copy, bytes_before<Bits>(row, d));
  std::memcpy(copy + 8, row + 1, kOfBlock);
  mix_blocks<Bits>(copy + 8, row + 1 + packed_bytes(d, coded_width(Bits)), 0, 1, out);
}

// Fields of the n coordinates of a last block, one a byte; out has 32 bytes more than kBlock.
template <int Field>
inline void spread_last_block(const std::uint8_t* plane, std::size_t n, std::uint8_t* out) {
  const std::size_t bytes = packed_bytes(n, Field);
  std::uint8_t padded[32] = {};
  std::memcpy(padded, plane, bytes);
  for (std::size_t f = 0; f < 8 / Field; ++f) {
    for (std::size_t at = 0; at < bytes; at += 8) {
      const std::uint64_t fields =
          load<std::uint64_t>(padded + at) >> (Field * f) & in_each_byte((1u << Field) - 1);
      store(out + f * bytes + at, fields);
    }
  }
}

/// Indices into TrellisTable::lookup of the last d % 64 coordinates, one a byte, and behind them, for
/// 4 bits, the low parities in the top bits of as many bytes.
struct LastBlock {
  alignas(64) std::uint8_t codes[kBlock + 32];
  alignas(64) std::uint8_t low[kBlock + 32];
};

template <int Bits>
[[gnu::noinline]] void mix_last_block(const std::uint8_t* row, std::size_t d, LastBlock& out) {
  constexpr int kCoded = coded_width(Bits);
  using Quads = QuadsOf<16>::Type;
  const std::size_t n = d % kBlock;
  const std::size_t start = (d - n) / 8 * static_cast<std::size_t>(kCoded);
  const std::size_t bytes = packed_bytes(n, kCoded);
  std::uint8_t copy[8 + 32] = {};
  if (start == 0) {
    store(copy, bytes_before<Bits>(row, d));
  } else {
    std::memcpy(copy, row + 1 + start - 8, 8);
  }
  std::memcpy(copy + 8, row + 1 + start, bytes);
  std::uint8_t fields[32];
  std::uint8_t parities[32];
  for (std::size_t at = 0; at < 32; at += 16) {
    const auto before = [&](std::size_t k) { return load<Quads>(copy + 8 + at - k); };
    const Quads flips = before(1) ^ before(8);
    store(fields + at, before(0) ^ (flips & in_each_byte(kCoded == 1   ? 0xff
                                                         : kCoded == 2 ? 0xaa
                                                                       : 0x88)));
    store(parities + at, before(2) ^ before(5) ^ before(7));
  }
  spread_last_block<kCoded>(fields, n, out.codes);
  spread_last_block<kCoded>(parities, n, out.low);
  std::uint8_t rest[kBlock + 32] = {};
  if constexpr (Bits == 3) {
    spread_last_block<2>(row + 1 + packed_bytes(d, 1) + (d - n) / 4, n, rest);
  }
  for (std::size_t i = 0; i < kBlock; i += 16) {
    const auto code = load<Quads>(out.codes + i);
    const auto low = load<Quads>(out.low + i);
    if constexpr (Bits == 1) {
      store(out.codes + i, code << 1 | low);
    } else if constexpr (Bits == 2) {
      store(out.codes + i, (low & in_each_byte(2)) << 1 | code);
    } else if constexpr (Bits == 3) {
      store(out.codes + i, load<Quads>(rest + i) << 2 | code << 1 | low);
    } else {
      store(out.low + i, low << 4);
    }
  }
}

// Mixed codes of blocks [first, last) of a row; last - first at most kMixedBlocks, so that they stay
// in the first cache.
template <int Bits>
inline void mix_row(const std::uint8_t* row, std::size_t d, std::size_t first, std::size_t last,
                    std::uint8_t* out) {
  const std::uint8_t* plane = row + 1;
  const std::uint8_t* rest = plane + packed_bytes(d, coded_width(Bits));
  // The first block last: the copy that it is made from has to be in memory before it can be read.
  const std::size_t from = first == 0 ? 1 : first;
  mix_blocks<Bits>(plane, rest, from, last, out + (from - first) * mixed_bytes(Bits));
  if (first == 0 && last > 0) mix_first_block<Bits>(row, d, out);
}

/// f(mixed, i) for each whole block of a row, which begins with coordinate i, then
/// last(codes, i) for what is left.
template <int Bits, typename Function, typename Last>
inline void for_each_mixed_block(const std::uint8_t* row, std::size_t d, const Function& f,
                                 const Last& last) {
  alignas(64) std::uint8_t mixed[kMixedBlocks * mixed_bytes(Bits)];
  const std::size_t blocks = d / kBlock;
  for (std::size_t first = 0; first < blocks; first += kMixedBlocks) {
    const std::size_t end = blocks - first < kMixedBlocks ? blocks : first + kMixedBlocks;
    mix_row<Bits>(row, d, first, end, mixed);
    for (std::size_t b = first; b < end; ++b) {
      f(mixed + (b - first) * mixed_bytes(Bits), b * kBlock);
    }
  }
  if (d % kBlock != 0) {
    LastBlock codes;
    mix_last_block<Bits>(row, d, codes);
    last(codes, blocks * kBlock);
  }
}

}  // namespace
}  // namespace turboquant::kernels
