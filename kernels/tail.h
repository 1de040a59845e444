// The last d % 64 codes of a row: a little-endian bit stream, eight codes per `bits` bytes.
// Included by backend files only; everything has internal linkage on purpose, so that no copy
// compiled for one instruction set can be linked into another.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/code_layout.h"

namespace turboquant::kernels {
namespace {

// Spreads eight fields of `bits` bits over the eight bytes of a word by halving three times.
inline std::uint64_t spread_codes(std::uint64_t x, int bits) {
  const std::uint64_t one = 1;
  x = (x | x << (32 - 4 * bits)) & (((one << 4 * bits) - 1) * 0x0000000100000001u);
  x = (x | x << (16 - 2 * bits)) & (((one << 2 * bits) - 1) * 0x0001000100010001u);
  return (x | x << (8 - bits)) & (((one << bits) - 1) * 0x0101010101010101u);
}

// The inverse: the low `bits` bits of eight bytes side by side.
inline std::uint64_t gather_codes(std::uint64_t x, int bits) {
  const std::uint64_t one = 1;
  x = (x | x >> (8 - bits)) & (((one << 2 * bits) - 1) * 0x0001000100010001u);
  x = (x | x >> (16 - 2 * bits)) & (((one << 4 * bits) - 1) * 0x0000000100000001u);
  return (x | x >> (32 - 4 * bits)) & ((one << 8 * bits) - 1);
}

// codes: 64 bytes, those past n are zero. n < 64. Reads exactly packed_bytes(n, bits) bytes.
inline void unpack_tail(const std::uint8_t* packed, std::size_t n, int bits, std::uint8_t* codes) {
  std::uint8_t buffer[40] = {};
  std::memcpy(buffer, packed, packed_bytes(n, bits));
  for (std::size_t g = 0; g < 8; ++g) {
    std::uint32_t word = 0;
    std::memcpy(&word, buffer + g * static_cast<std::size_t>(bits), 4);
    const std::uint64_t fields = word & ((std::uint64_t{1} << 8 * bits) - 1);
    const std::uint64_t spread = spread_codes(fields, bits);
    std::memcpy(codes + 8 * g, &spread, 8);
  }
}

// codes: n of them, n < 64. Writes exactly packed_bytes(n, bits) bytes.
inline void pack_tail(const std::uint8_t* codes, std::size_t n, int bits, std::uint8_t* packed) {
  std::uint8_t padded[64] = {};
  std::uint8_t buffer[40] = {};
  std::memcpy(padded, codes, n);
  for (std::size_t g = 0; g < 8; ++g) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, padded + 8 * g, 8);
    const auto word = static_cast<std::uint32_t>(gather_codes(eight, bits));
    std::memcpy(buffer + g * static_cast<std::size_t>(bits), &word, 4);
  }
  std::memcpy(packed, buffer, packed_bytes(n, bits));
}

}  // namespace
}  // namespace turboquant::kernels
