// Codes of 3 bits, taken apart into what is worth coding and what is not.
//
// A code is a rank from 0 to 7. Its top bit, the sign, is 1 as often as 0, and its low two bits
// alone are nearly uniform: all that Lloyd-Max cells differ in is how far they lie from 0. So the
// low bits are inverted where the sign is 0, which makes them the rank of the distance, and those
// fields and the signs are kept apart.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/code_layout.h"

namespace turboquant::packing {

/// Bytes of the distances of one row, and of its signs. In the tail, 12 bits of code are 8 bits of
/// distances and 4 of signs, whatever they mean, so that nothing is lost.
constexpr std::size_t tail_bytes(std::size_t d) {
  return kernels::packed_bytes(d % kernels::kBlock, 3);
}
constexpr std::size_t distance_bytes(std::size_t d) {
  return d / kernels::kBlock * kernels::plane_bytes(2) + (2 * tail_bytes(d) + 2) / 3;
}
constexpr std::size_t sign_bytes(std::size_t d) {
  return d / kernels::kBlock * kernels::plane_bytes(1) + (tail_bytes(d) + 2) / 3;
}

/// code[packed_bytes(d, 3)] to distances[distance_bytes(d)] and signs[sign_bytes(d)].
void split_three_bits(const std::uint8_t* code, std::size_t d, std::uint8_t* distances,
                      std::uint8_t* signs);

/// The inverse.
void join_three_bits(const std::uint8_t* distances, const std::uint8_t* signs, std::size_t d,
                     std::uint8_t* code);

}  // namespace turboquant::packing
