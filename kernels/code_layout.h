// How quantized coordinates are packed into bytes. docs/code_format.md is the specification;
// this header is its only implementation in code, shared by every backend.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/host_device.h"

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
TQ_HOST_DEVICE constexpr std::size_t packed_bytes(std::size_t d, int bits) {
  return (d * static_cast<std::size_t>(bits) + 7) / 8;
}

// A 64-coordinate block is one field plane of width 1, 2 or 4 bits, or for 3 bits a plane of the
// low two bits followed by a plane of the top bit. In a plane of width w, coordinate i lies in
// byte i % (8w), bits [w * (i / (8w)), ...), so one variable shift per vector restores order.
TQ_HOST_DEVICE constexpr std::size_t plane_bytes(int width) {
  return 8 * static_cast<std::size_t>(width);
}

// The tail is a little-endian bit stream: coordinate i takes bits [bits * i, bits * (i + 1)).

// A trellis code (docs/code_format.md). One bit of each coordinate, the coded one, takes its way
// through a shift register; the others are plain. A row is a byte of first state and a plane that
// holds the coded bits: of one-bit fields for 1 and 3 bits, of whole codes, the coded bit on top,
// for 2 and 4. The plane has M = ceil(d * width / 8) bytes, laid out in blocks as above. A last
// block of n coordinates takes W = ceil(n * width / 8) bytes and has coordinate i in byte i % W,
// bits [width * (i / W), ...).
// For 3 bits the planes hold whole eights of coordinates. 2 M bytes follow with the other two bits
// of the coordinate at byte m, bit p: byte M * (p % 2) + m, bits [2 * (p / 2), ...). Behind them
// the last d % 8 coordinates are a bit stream of codes, the coded bit on top, whose steps are the
// last.
TQ_HOST_DEVICE constexpr int coded_width(int bits) { return bits == 3 ? 1 : bits; }

constexpr std::size_t trellis_bytes(std::size_t d, int bits) { return 1 + packed_bytes(d, bits); }

/// How many of the coordinates lie in the bit stream.
TQ_HOST_DEVICE constexpr std::size_t trellis_tail(std::size_t d, int bits) {
  return bits == 3 ? d % 8 : 0;
}
/// Bytes of the plane with the coded bits.
TQ_HOST_DEVICE constexpr std::size_t trellis_plane_bytes(std::size_t d, int bits) {
  return packed_bytes(d - trellis_tail(d, bits), coded_width(bits));
}

/// Coded bits before the present one that a level depends on: what the byte of first state holds.
inline constexpr std::size_t kMemory = 8;

/// The coded bits whose parity is the low, the high bit of a label: bit k is k steps before.
constexpr unsigned low_taps(int bits) { return bits == 4 ? 0x020 : 0x0a4; }
inline constexpr unsigned kHighTaps = 0x103;

/// Label of a window of coded bits, the present one in bit 0.
constexpr unsigned trellis_label(unsigned window, int bits) {
  unsigned low = window & low_taps(bits);
  unsigned high = window & kHighTaps;
  for (unsigned shift = 8; shift > 0; shift /= 2) {
    low ^= low >> shift;
    high ^= high >> shift;
  }
  return (low & 1) | (high & 1) << 1;
}

/// Steps of a path: all fields of the plane with the coded bits, whether a coordinate has them or
/// not, then the bit stream. Step t is field t / bytes of byte t % bytes.
constexpr std::size_t trellis_steps(std::size_t d, int bits) {
  return trellis_plane_bytes(d, bits) * (8 / static_cast<std::size_t>(coded_width(bits))) +
         trellis_tail(d, bits);
}

/// Scratch of the encoder.
constexpr std::size_t trellis_work_bytes(std::size_t d, int bits) {
  return 10 * round_up(d, kBlock) + 256 * trellis_steps(d, bits);
}

/// Byte and field of coordinate i of d in a plane of a trellis code.
struct PlanePlace {
  std::size_t byte, field;
};
constexpr PlanePlace plane_place(std::size_t i, std::size_t d, int width) {
  const std::size_t block = i / kBlock;
  const std::size_t bytes =
      block < d / kBlock ? plane_bytes(width) : packed_bytes(d % kBlock, width);
  return {block * plane_bytes(width) + i % kBlock % bytes, i % kBlock / bytes};
}

constexpr PlanePlace rest_place(PlanePlace coded, std::size_t bytes) {
  return {bytes * (coded.field % 2) + coded.byte, coded.field / 2};
}

/// The coordinate there; d or more where there is none.
TQ_HOST_DEVICE constexpr std::size_t plane_coordinate(PlanePlace at, std::size_t d, int width) {
  const std::size_t block = at.byte / plane_bytes(width);
  const bool whole = block < d / kBlock;
  const std::size_t bytes = whole ? plane_bytes(width) : packed_bytes(d % kBlock, width);
  return block * kBlock + at.field * bytes + at.byte % plane_bytes(width);
}

static_assert(block_bytes(3) == plane_bytes(2) + plane_bytes(1));
static_assert(packed_bytes(kBlock, 3) == block_bytes(3));
static_assert(packed_bytes(50, 3) == 19 && packed_bytes(1, 1) == 1);

}  // namespace turboquant::kernels
