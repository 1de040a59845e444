// How the codes of a row lie on the device: the blocks of docs/code_format.md, with the tail as one
// more block (codes past d are 0) and, for 3 bits, the planes of low bits of all blocks before the
// planes of top bits. Factors lie apart. A scan gives each lane 16 bytes, a chunk, at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/code_layout.h"

namespace turboquant::cuda {

/// Lanes that share a row: so many chunks, a group, are read at once.
inline constexpr int kLanesOfRow = 4;

/// Codes as kernels tell them apart: the bits of a scalar code, of a trellis code 4 more.
TQ_HOST_DEVICE constexpr int trellis_code(int bits) { return bits + 4; }
TQ_HOST_DEVICE constexpr int bits_of(int code) { return code > 4 ? code - 4 : code; }

/// Groups of four registers of four levels that a chunk decodes to.
TQ_HOST_DEVICE constexpr int quads_of(int code) {
  return code == 1 || code == trellis_code(1) || code == trellis_code(3) ? 8
         : bits_of(code) == 4                                            ? 2
                                                                         : 4;
}

/// Whether codes are decoded to level + offset, which is never negative, rather than to the level.
TQ_HOST_DEVICE constexpr bool unsigned_levels(int code) {
  return code == 4 || code == trellis_code(3) || code == trellis_code(4);
}

// A row of a trellis code: 8 bytes of zeros, the 8 bytes that stand before the plane with the coded
// bits (docs/code_format.md), that plane and, for 3 bits, the two with the others, each padded with
// zeros to 16 bytes. A chunk is of the first plane. Codes of a bit stream behind the planes get a
// byte each at the end of these, in the field whose bytes before are the steps before.
struct RowLayout {
  int dimension = 0;
  int bits = 0;
  int code = 0;
  int blocks = 0;  // of 64 coordinates
  int chunks = 0;  // of 16 bytes of codes, for 3 bits of their low plane
  int groups = 0;  // chunks / kLanesOfRow, rounded up
  int top = 0;     // 3 bits: where the planes of top bits begin; of a trellis: bytes of a plane
  int stride = 0;  // bytes from row to row, a multiple of 16

  RowLayout() = default;
  RowLayout(int d, int b, bool trellis = false)
      : dimension(d), bits(b), code(trellis ? trellis_code(b) : b) {
    blocks = (d + 63) / 64;
    if (trellis) {
      chunks = (plane_bytes() + stream_codes() + 15) / 16;
      top = chunks * 16;
      stride = kTrellisPlane + top * (b == 3 ? 3 : 1);
    } else {
      const int low_bytes = b == 3 ? 16 : 8 * b;  // of a block
      chunks = (blocks * low_bytes + 15) / 16;
      top = blocks * 16;
      stride = (blocks * 8 * b + 15) / 16 * 16;
    }
    groups = (chunks + kLanesOfRow - 1) / kLanesOfRow;
  }

  /// Where the first plane of a trellis code begins.
  static constexpr int kTrellisPlane = 16;
  TQ_HOST_DEVICE bool trellis() const { return code > 4; }
  /// Width of a field of that plane, and its bytes.
  TQ_HOST_DEVICE int coded_width() const { return kernels::coded_width(bits); }
  TQ_HOST_DEVICE int plane_bytes() const {
    return static_cast<int>(
        kernels::trellis_plane_bytes(static_cast<std::size_t>(dimension), bits));
  }
  /// Codes of the bit stream behind the planes, and the field that has them here.
  TQ_HOST_DEVICE int stream_codes() const {
    return static_cast<int>(kernels::trellis_tail(static_cast<std::size_t>(dimension), bits));
  }
  TQ_HOST_DEVICE int stream_field() const { return dimension < 8 ? 0 : 7; }

  /// Query values of a group that a scan takes: chunks past the last one count as zeros.
  std::size_t operand_bytes() const {
    return static_cast<std::size_t>(groups) * kLanesOfRow * 16 * quads_of(code);
  }
};

/// The coordinate whose level is in byte `byte` (0 to 3) of register `reg` of a decoded chunk. The
/// order is the one in which few instructions decode (kernels/cuda/decode.cuh); queries follow it.
TQ_HOST_DEVICE constexpr int coordinate_of(int bits, int chunk, int reg, int byte) {
  if (bits == 4) {
    const int at = 4 * (reg / 2) + 2 * (reg % 2) + byte / 2;
    return 64 * (chunk / 2) + 16 * (chunk % 2) + at + 32 * (byte % 2);
  }
  if (bits == 1) {
    const int at = 4 * (reg / 8) + 2 * (reg % 2) + byte / 2;
    const int bit = reg % 8 / 2 + 4 * (byte % 2);
    return 64 * (2 * chunk + at / 8) + at % 8 + 8 * bit;
  }
  const int at = 4 * (reg / 4) + 2 * (reg % 2) + byte / 2;
  const int field = reg % 4 / 2 + 2 * (byte % 2);
  return 64 * chunk + at + 16 * field;
}

/// The coordinate in a field of a byte of the first plane, as it lies on the device; `dimension` or
/// more where there is none. bits: the layout's, which kernels know when they are compiled.
TQ_HOST_DEVICE inline int plane_coordinate(const RowLayout& layout, int bits, int byte, int field) {
  const auto d = static_cast<std::size_t>(layout.dimension);
  const std::size_t in_planes = d - kernels::trellis_tail(d, bits);
  const int of_stream = byte - static_cast<int>(kernels::trellis_plane_bytes(d, bits));
  if (of_stream >= 0) {
    return field == layout.stream_field() ? static_cast<int>(in_planes) + of_stream
                                          : layout.dimension;
  }
  return static_cast<int>(
      kernels::plane_coordinate({static_cast<std::size_t>(byte), static_cast<std::size_t>(field)},
                                in_planes, kernels::coded_width(bits)));
}

/// As coordinate_of, of a trellis code; `dimension` or more where there is no coordinate.
TQ_HOST_DEVICE inline int trellis_coordinate_of(const RowLayout& layout, int code, int chunk,
                                                int reg, int byte) {
  const int bits = bits_of(code);
  const int word = reg / quads_of(code);
  const int plane_byte = 16 * chunk + 4 * word + 2 * (reg % 2) + byte / 2;
  const int field = bits == 4   ? byte % 2
                    : bits == 3 ? 4 * (byte % 2) + reg % 4 / 2 * 2 + reg / 4 % 2
                    : bits == 2 ? 2 * (byte % 2) + reg % 4 / 2
                                : 4 * (byte % 2) + reg % 8 / 2;
  return plane_coordinate(layout, bits, plane_byte, field);
}

}  // namespace turboquant::cuda
