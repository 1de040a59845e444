// KernelTable::sign_sums: a shuffle of bytes reads four signs of as many rows as a register has
// bytes. Internal linkage, one copy per backend.
#pragma once

#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

typedef std::uint8_t Bytes8 __attribute__((vector_size(kBytes)));
typedef std::uint16_t Words16 __attribute__((vector_size(kBytes)));
typedef std::uint32_t Words32 __attribute__((vector_size(kBytes)));

// Lanes: table(p), 16 entries ready for look-ups; low(table, bytes) and high(table, bytes), the
// entries that the low and the high four bits of each byte choose.

template <typename Lanes>
inline Bytes8 sign_entries(const std::uint8_t* plane, const std::uint8_t* tables) {
  const auto bytes = load<Bytes8>(plane);
  return Lanes::low(Lanes::table(tables), bytes) + Lanes::high(Lanes::table(tables + 16), bytes);
}

template <typename Lanes>
void sign_sums_with(const std::uint8_t* plane, std::size_t n_bytes, const std::uint8_t* tables,
                    std::int32_t start, std::size_t ahead, std::int32_t* sums) {
  constexpr std::size_t kMost = 512;  // bytes whose 1,024 entries add up in 16 bits
  static_assert(2 * kMost * kMostSign < 65536);
  for (std::size_t part = 0; part < kBlock; part += kBytes) {
    Ints total[4];
    for (Ints& t : total) t = start - Ints{};
    for (std::size_t first = 0; first < n_bytes; first += kMost) {
      const std::size_t last = n_bytes - first < kMost ? n_bytes : first + kMost;
      Words16 even = {};
      Words16 odd = {};
      std::size_t g = first;
      for (; g + 2 <= last; g += 2) {
        const std::uint8_t* bytes = plane + g * kBlock + part;
        if (part == 0) {
          __builtin_prefetch(bytes + ahead);
          __builtin_prefetch(bytes + ahead + kBlock);
        }
        const Bytes8 four = sign_entries<Lanes>(bytes, tables + g * 32) +
                            sign_entries<Lanes>(bytes + kBlock, tables + g * 32 + 32);
        even += reinterpret_cast<Words16>(four) & 255;
        odd += reinterpret_cast<Words16>(four) >> 8;
      }
      if (g < last) {
        const Bytes8 two = sign_entries<Lanes>(plane + g * kBlock + part, tables + g * 32);
        even += reinterpret_cast<Words16>(two) & 255;
        odd += reinterpret_cast<Words16>(two) >> 8;
      }
      total[0] += reinterpret_cast<Ints>(reinterpret_cast<Words32>(even) & 65535);
      total[1] += reinterpret_cast<Ints>(reinterpret_cast<Words32>(odd) & 65535);
      total[2] += reinterpret_cast<Ints>(reinterpret_cast<Words32>(even) >> 16);
      total[3] += reinterpret_cast<Ints>(reinterpret_cast<Words32>(odd) >> 16);
    }
    for (std::size_t c = 0; c < 4; ++c) store(sums + 16 * c + part / 4, total[c]);
  }
}

}  // namespace
}  // namespace turboquant::kernels
