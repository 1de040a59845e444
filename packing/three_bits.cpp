#include "packing/three_bits.h"

#include <array>
#include <cstring>

namespace turboquant::packing {
namespace {

constexpr std::uint64_t kEvenBits = 0x5555555555555555;

std::uint64_t load(const std::uint8_t* at) {
  std::uint64_t word;
  std::memcpy(&word, at, 8);
  return word;
}

void store(std::uint8_t* at, std::uint64_t word) { std::memcpy(at, &word, 8); }

// Inverts the fields of 2 bits of a block's low plane whose sign is 0. Field f of byte j is
// coordinate 16 f + j, whose sign is bit 2 f + j / 8 of byte j % 8.
void flip_block(const std::uint8_t* from, std::uint64_t signs, std::uint8_t* to) {
  store(to, load(from) ^ ~((signs & kEvenBits) * 3));
  store(to + 8, load(from + 8) ^ ~((signs >> 1 & kEvenBits) * 3));
}

// The tail: four coordinates are 12 bits of the code, or 8 bits of distance and 4 of sign.
std::uint32_t split_four(std::uint32_t code) {
  std::uint32_t distances = 0;
  std::uint32_t signs = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t rank = code >> (3 * i) & 7;
    const std::uint32_t sign = rank >> 2;
    distances |= (sign != 0 ? rank & 3 : ~rank & 3) << (2 * i);
    signs |= sign << i;
  }
  return distances | signs << 8;
}

struct TailTables {
  std::array<std::uint16_t, 4096> split;
  std::array<std::uint16_t, 4096> join;
  TailTables() {
    for (std::uint32_t code = 0; code < 4096; ++code) {
      split[code] = static_cast<std::uint16_t>(split_four(code));
      join[split[code]] = static_cast<std::uint16_t>(code);
    }
  }
};

const TailTables& tail_tables() {
  static const TailTables tables;
  return tables;
}

void split_tail(const std::uint8_t* code, std::size_t bytes, std::uint8_t* distances,
                std::uint8_t* signs) {
  const TailTables& tables = tail_tables();
  std::memset(signs, 0, (bytes + 2) / 3);
  for (std::size_t bit = 0, four = 0; bit < 8 * bytes; bit += 12, ++four) {
    const std::size_t at = bit / 8;
    std::uint32_t word = code[at];
    if (at + 1 < bytes) word |= static_cast<std::uint32_t>(code[at + 1]) << 8;
    const std::uint32_t split = tables.split[word >> (bit % 8) & 4095];
    distances[four] = static_cast<std::uint8_t>(split);
    signs[four / 2] = static_cast<std::uint8_t>(signs[four / 2] | (split >> 8) << (4 * (four % 2)));
  }
}

void join_tail(const std::uint8_t* distances, const std::uint8_t* signs, std::size_t bytes,
               std::uint8_t* code) {
  const TailTables& tables = tail_tables();
  std::memset(code, 0, bytes);
  for (std::size_t bit = 0, four = 0; bit < 8 * bytes; bit += 12, ++four) {
    const std::uint32_t sign = signs[four / 2] >> (4 * (four % 2)) & 15u;
    const std::uint32_t word = static_cast<std::uint32_t>(tables.join[distances[four] | sign << 8])
                               << (bit % 8);
    const std::size_t at = bit / 8;
    code[at] = static_cast<std::uint8_t>(code[at] | word);
    if (at + 1 < bytes) code[at + 1] = static_cast<std::uint8_t>(word >> 8);
  }
}

}  // namespace

void split_three_bits(const std::uint8_t* code, std::size_t d, std::uint8_t* distances,
                      std::uint8_t* signs) {
  for (; d >= kernels::kBlock; d -= kernels::kBlock) {
    const std::uint64_t top = load(code + 16);
    flip_block(code, top, distances);
    store(signs, top);
    code += kernels::block_bytes(3);
    distances += kernels::plane_bytes(2);
    signs += kernels::plane_bytes(1);
  }
  split_tail(code, tail_bytes(d), distances, signs);
}

void join_three_bits(const std::uint8_t* distances, const std::uint8_t* signs, std::size_t d,
                     std::uint8_t* code) {
  for (; d >= kernels::kBlock; d -= kernels::kBlock) {
    const std::uint64_t top = load(signs);
    flip_block(distances, top, code);
    store(code + 16, top);
    code += kernels::block_bytes(3);
    distances += kernels::plane_bytes(2);
    signs += kernels::plane_bytes(1);
  }
  join_tail(distances, signs, tail_bytes(d), code);
}

}  // namespace turboquant::packing
