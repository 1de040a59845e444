// How the codes of a row lie on the device: the blocks of docs/code_format.md, with the tail as one
// more block (codes past d are 0) and, for 3 bits, the planes of low bits of all blocks before the
// planes of top bits. Factors lie apart. A scan gives each lane 16 bytes, a chunk, at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/code_layout.h"

#ifdef __CUDACC__
#define TQ_HOST_DEVICE __host__ __device__
#else
#define TQ_HOST_DEVICE
#endif

namespace turboquant::cuda {

/// Lanes that share a row: so many chunks, a group, are read at once.
inline constexpr int kLanesOfRow = 4;

/// Groups of four registers of four levels that a chunk of codes of so many bits decodes to.
TQ_HOST_DEVICE constexpr int quads_of(int bits) { return bits == 1 ? 8 : bits == 4 ? 2 : 4; }

struct RowLayout {
  int dimension = 0;
  int bits = 0;
  int blocks = 0;  // of 64 coordinates
  int chunks = 0;  // of 16 bytes of codes, for 3 bits of their low plane
  int groups = 0;  // chunks / kLanesOfRow, rounded up
  int top = 0;     // 3 bits: where the planes of top bits begin
  int stride = 0;  // bytes from row to row, a multiple of 16

  RowLayout() = default;
  RowLayout(int d, int b) : dimension(d), bits(b) {
    blocks = (d + 63) / 64;
    const int low_bytes = b == 3 ? 16 : 8 * b;  // of a block
    chunks = (blocks * low_bytes + 15) / 16;
    groups = (chunks + kLanesOfRow - 1) / kLanesOfRow;
    top = blocks * 16;
    stride = (blocks * 8 * b + 15) / 16 * 16;
  }

  /// Query values of a group that a scan takes: chunks past the last one count as zeros.
  std::size_t operand_bytes() const {
    return static_cast<std::size_t>(groups) * kLanesOfRow * coordinates_of_chunk();
  }
  TQ_HOST_DEVICE int coordinates_of_chunk() const { return 16 * quads(); }
  TQ_HOST_DEVICE int quads() const { return quads_of(bits); }
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

}  // namespace turboquant::cuda
