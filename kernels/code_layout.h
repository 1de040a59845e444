// How quantized coordinates are packed into bytes. docs/code_format.md is the specification;
// this header is its only implementation in code, shared by every backend.
#pragma once

#include <cstddef>
#include <cstdint>

namespace turboquant::kernels {

/// Coordinates per full block. Vectors are cut into blocks of 64; the rest is the tail.
inline constexpr std::size_t kBlock = 64;
inline constexpr int kMaxBits = 4;
inline constexpr std::size_t kMaxDimension = 65536;

/// Rows and queries of an integer product are handled 16 at a time.
inline constexpr std::size_t kLane = 16;

constexpr std::size_t round_up(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Bytes of one block: `bits` planes of 64 bits.
constexpr std::size_t block_bytes(int bits) { return 8 * static_cast<std::size_t>(bits); }

/// Bytes of the codes of one vector of dimension d, without its factors.
constexpr std::size_t packed_bytes(std::size_t d, int bits) {
  return (d * static_cast<std::size_t>(bits) + 7) / 8;
}

// A 64-coordinate block is one field plane of width 1, 2 or 4 bits, or for 3 bits a plane of the
// low two bits followed by a plane of the top bit. In a plane of width w, coordinate i lies in
// byte i % (8w), bits [w * (i / (8w)), ...), so one variable shift per vector restores order.
constexpr std::size_t plane_bytes(int width) { return 8 * static_cast<std::size_t>(width); }

// The tail is a little-endian bit stream: coordinate i takes bits [bits * i, bits * (i + 1)).

// A row of a trellis code is a big-endian bit stream: eight bits of first state, then the bits of
// each coordinate. The state after coordinate i is bits [bits * (i + 1), bits * (i + 1) + 8).
constexpr std::size_t trellis_bytes(std::size_t d, int bits) { return 1 + packed_bytes(d, bits); }

/// Scratch of the encoder: which predecessor is best, for each coordinate and group of states.
constexpr std::size_t trellis_work_bytes(std::size_t d, int bits) {
  return d * (std::size_t{256} >> bits);
}

static_assert(block_bytes(3) == plane_bytes(2) + plane_bytes(1));
static_assert(packed_bytes(kBlock, 3) == block_bytes(3));
static_assert(packed_bytes(50, 3) == 19 && packed_bytes(1, 1) == 1);

}  // namespace turboquant::kernels
