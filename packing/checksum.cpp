#include "packing/checksum.h"

#include <algorithm>
#include <cstring>

namespace turboquant {
namespace {

std::uint64_t mix(std::uint64_t state, std::uint64_t word) {
  const std::uint64_t x = state ^ word;
  return ((x << 29) | (x >> 35)) * 0x9e3779b97f4a7c15u;
}

std::uint64_t load(const std::uint8_t* bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, 8);
  return word;
}

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "index files are little-endian");

}  // namespace

void Checksum::add(const std::uint8_t* data, std::size_t size) {
  length_ += size;
  for (; size >= 32; data += 32, size -= 32) {
    for (int lane = 0; lane < 4; ++lane) lanes_[lane] = mix(lanes_[lane], load(data + 8 * lane));
  }
  for (int lane = 0; size > 0; ++lane) {
    std::uint8_t word[8] = {};
    const std::size_t n = std::min<std::size_t>(size, 8);
    std::memcpy(word, data, n);
    lanes_[lane] = mix(lanes_[lane], load(word));
    data += n;
    size -= n;
  }
}

std::uint64_t Checksum::value() const {
  std::uint64_t h = length_;
  for (const std::uint64_t lane : lanes_) h = mix(h, lane);
  return h;
}

}  // namespace turboquant
