// KernelTable::trellis_encode for every SIMD backend: sums of 256 states in 16 bits, as
// many a register as fit. `Lanes` brings what the vector extensions cannot say. Internal linkage,
// one copy per backend.
#pragma once

#include "kernels/by_bits.h"
#include "kernels/trellis_tail.h"
#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

constexpr std::size_t kWords = kBytes / 2;  // sums in a register
typedef std::uint16_t Words __attribute__((vector_size(kBytes)));

// out[i] = y[i] in the units of the encoder, n at most kBlock.
inline void encoder_units(const float* y, std::size_t n, float factor, std::int16_t* out) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  float padded[kBlock] = {};
  std::memcpy(padded, y, n * sizeof(float));
  typedef std::int16_t Shorts __attribute__((vector_size(kBytes / 2)));
  for (std::size_t i = 0; i < kBlock; i += kWidth) {
    Floats v = load<Floats>(padded + i) * factor;
    v = v > 32767.0f ? broadcast(32767.0f) : v;
    v = v < -32767.0f ? broadcast(-32767.0f) : v;
    const auto rounded = __builtin_convertvector((v + magic) - magic, Ints);
    store(out + i, __builtin_convertvector(rounded, Shorts));
  }
}

// What each label costs at n coordinates, at most kBlock, and in four bits each the rest that a
// label takes there.
template <typename Lanes, int Bits>
void label_costs(const float* y, std::size_t n, const TrellisTable& table, std::uint16_t* costs,
                 std::uint16_t* rests) {
  alignas(64) std::int16_t units[kBlock];
  alignas(64) std::uint16_t of_label[4][kBlock];
  encoder_units(y, n, table.factor, units);
  const auto target = [&](std::size_t r) {
    return Words{} + static_cast<std::uint16_t>(table.targets[r]);
  };
  for (std::size_t i = 0; i < kBlock; i += kWords) {
    const auto x = load<Words>(units + i);
    Words all{};
    for (std::size_t label = 0; label < 4; ++label) {
      Words best = Lanes::squared_difference(x, target(label));
      Words which{};
      for (std::size_t rest = 1; rest < std::size_t{1} << (Bits - 1); ++rest) {
        const Words other = Lanes::squared_difference(x, target(4 * rest + label));
        const auto less = other < best;
        which = less ? Words{} + static_cast<std::uint16_t>(rest) : which;
        best = less ? other : best;
      }
      store(of_label[label] + i, best);
      all |= which << static_cast<std::uint16_t>(4 * label);
    }
    store(rests + i, all);
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t label = 0; label < 4; ++label) costs[4 * i + label] = of_label[label][i];
  }
}

// Byte indices within a quadword of the costs of four labels. Lane j of [l]: label j ^ l, counted
// from the label of state 2 j.
template <int Bits>
struct LabelLanes {
  constexpr LabelLanes() : bytes() {
    for (unsigned l = 0; l < 4; ++l) {
      for (unsigned j = 0; j < kWords; ++j) {
        const unsigned label = trellis_label(2 * j, Bits) ^ l;
        bytes[l][2 * j] = static_cast<std::uint8_t>(2 * label);
        bytes[l][2 * j + 1] = static_cast<std::uint8_t>(2 * label + 1);
      }
    }
  }
  alignas(64) std::uint8_t bytes[4][2 * kWords];
};
template <int Bits>
inline constexpr LabelLanes<Bits> kLabelLanes{};

// One step: from the sums of 256 states to those after it. Returns the least of them. Writes for
// each state whether it comes from the second of its predecessors.
template <typename Lanes, int Bits>
inline std::uint16_t trellis_step(const std::uint16_t* sums, std::uint64_t costs,
                                  std::uint16_t floor, std::uint16_t* next, std::uint8_t* choices) {
  // The present bit and the oldest one turn the same bit of a label.
  static_assert(trellis_label(1, Bits) == 2 && trellis_label(256, Bits) == 2);
  const Words quads = Lanes::broadcast_quad(costs) - floor;
  Words of_label[4];
  for (std::size_t l = 0; l < 4; ++l) {
    of_label[l] = Lanes::shuffle_quads(quads, kLabelLanes<Bits>.bytes[l]);
  }
  const Words most = Words{} + static_cast<std::uint16_t>(32767);
  Words least = most;
#pragma GCC unroll 16
  for (std::size_t r = 0; r < 128 / kWords; ++r) {
    const unsigned label = trellis_label(static_cast<unsigned>(2 * r * kWords), Bits);
    const auto a = load<Words>(sums + r * kWords);
    const auto b = load<Words>(sums + 128 + r * kWords);
    const Words even_first = a + of_label[label];
    const Words odd_first = a + of_label[label ^ 2];
    Words even = Lanes::lesser(even_first, b + of_label[label ^ 2]);
    Words odd = Lanes::lesser(odd_first, b + of_label[label]);
    Lanes::store_choices(even, even_first, odd, odd_first, choices, r);
    even = Lanes::lesser(even, most);
    odd = Lanes::lesser(odd, most);
    least = Lanes::lesser(least, Lanes::lesser(even, odd));
    Lanes::store_by_turns(even, odd, next + 2 * r * kWords);
  }
  return Lanes::smallest(least);
}

// Follows the choices back from `state` and writes the row.
template <typename Lanes, int Bits>
inline void write_path(const std::uint8_t* choices, const std::uint16_t* rests, std::size_t d,
                       std::size_t state, std::uint8_t* row) {
  constexpr int kCoded = coded_width(Bits);
  const std::size_t bytes = trellis_plane_bytes(d, Bits);
  const std::size_t tail = trellis_tail(d, Bits);
  std::memset(row, 0, trellis_bytes(d, Bits));
  std::size_t t = trellis_steps(d, Bits);
  const auto step_back = [&] {
    --t;
    const std::size_t window =
        state | std::size_t{Lanes::choice(choices + t * Lanes::kChoiceBytes, state)} << 8;
    state = window >> 1;
    return window;
  };
  const auto rest_of = [&](std::size_t i, std::size_t window) {
    return i < d ? rests[i] >> 4 * kWindowLabels<Bits>.of[window] & 15u : 0u;
  };
  std::uint32_t stream = 0;
  for (std::size_t j = tail; j-- > 0;) {
    const std::size_t window = step_back();
    const auto coded = static_cast<unsigned>(window & 1);
    stream |= (coded << 2 | rest_of(d - tail + j, window)) << 3 * j;
  }
  std::memcpy(row + trellis_bytes(d - tail, Bits), &stream, packed_bytes(tail, 3));
  for (std::size_t field = 8 / kCoded; field-- > 0;) {
    for (std::size_t byte = bytes; byte-- > 0;) {
      const std::size_t window = step_back();
      const unsigned rest = rest_of(plane_coordinate({byte, field}, d - tail, kCoded), window);
      const auto coded = static_cast<unsigned>(window & 1);
      const unsigned code = Bits == 3 ? coded : coded << (kCoded - 1) | rest;
      row[1 + byte] = static_cast<std::uint8_t>(row[1 + byte] | code << kCoded * field);
      if (Bits == 3) {
        const PlanePlace at = rest_place({byte, field}, bytes);
        std::uint8_t& to = row[1 + bytes + at.byte];
        to = static_cast<std::uint8_t>(to | rest << 2 * at.field);
      }
    }
  }
  row[0] = static_cast<std::uint8_t>(state);
}

template <typename Lanes, int Bits>
void trellis_path(const float* y, std::size_t d, const TrellisTable& table, std::uint8_t* work,
                  std::uint8_t* row) {
  constexpr int kCoded = coded_width(Bits);
  const std::size_t padded = round_up(d, kBlock);
  auto* const costs = reinterpret_cast<std::uint16_t*>(work);
  auto* const rests = reinterpret_cast<std::uint16_t*>(work + 8 * padded);
  std::uint8_t* const choices = work + 10 * padded;
  for (std::size_t i = 0; i < d; i += kBlock) {
    label_costs<Lanes, Bits>(y + i, d - i < kBlock ? d - i : kBlock, table, costs + 4 * i,
                             rests + i);
  }
  alignas(64) std::uint16_t sums[2][256] = {};
  std::uint16_t floor = 0;
  std::size_t t = 0;
  const auto step = [&](std::size_t i) {
    const std::uint64_t quad = i < d ? load<std::uint64_t>(costs + 4 * i) : 0;
    floor = trellis_step<Lanes, Bits>(sums[t % 2], quad, floor, sums[(t + 1) % 2],
                                      choices + t * Lanes::kChoiceBytes);
    ++t;
  };
  const std::size_t in_planes = d - trellis_tail(d, Bits);
  const std::size_t bytes = trellis_plane_bytes(d, Bits);
  for (std::size_t field = 0; field < 8 / kCoded; ++field) {
    for (std::size_t byte = 0; byte < bytes; ++byte) {
      step(plane_coordinate({byte, field}, in_planes, kCoded));
    }
  }
  for (std::size_t i = in_planes; i < d; ++i) step(i);
  const std::uint16_t* last = sums[t % 2];
  std::size_t state = 0;
  for (std::size_t s = 1; s < 256; ++s) state = last[s] < last[state] ? s : state;
  write_path<Lanes, Bits>(choices, rests, d, state, row);
}

template <typename Lanes>
void trellis_encode_with(const float* y, std::size_t d, const TrellisTable& table,
                         std::uint8_t* work, std::uint8_t* row) {
  by_bits(table.bits,
          [&](auto bits) { trellis_path<Lanes, decltype(bits)::kValue>(y, d, table, work, row); });
}

}  // namespace
}  // namespace turboquant::kernels
