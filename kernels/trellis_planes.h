// Trellis codes for SIMD backends. A row is taken as its planes stand, field by field, which is the
// order of time; queries are put into that order. The parities of the coded bits are exclusive ors
// of the plane shifted by whole bytes. Internal linkage, one copy per backend.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/code_layout.h"
#include "kernels/vector_kernels.h"

namespace turboquant::kernels {
namespace {

typedef std::uint64_t Quads __attribute__((vector_size(kBytes)));

constexpr std::uint64_t in_each_byte(unsigned byte) { return 0x0101010101010101u * byte; }

/// Fields of a byte of the plane with the coded bits.
constexpr std::size_t fields_of(int bits) {
  return 8 / static_cast<std::size_t>(coded_width(bits));
}

/// A register of the plane with the coded bits, and what comes of the bytes before each: `now` with
/// `flips` over it has the high parities at the coded bits, `low` the low ones.
struct Parities {
  Quads now, flips, low;
};

// back: for each Lanes::kBack bytes of `now` as many bytes before them. Lanes brings what the
// vector extensions cannot say.
template <typename Lanes, int Bits>
inline Parities parities(Quads now, Quads back) {
  static_assert(low_taps(1) == 0x0a4 && low_taps(4) == 0x020 && kHighTaps == 0x103);
  const Quads flips = Lanes::template before<1>(now, back) ^ Lanes::template before<8>(now, back);
  Quads low = Lanes::template before<5>(now, back);
  if constexpr (Bits < 4) {
    low ^= Lanes::template before<2>(now, back) ^ Lanes::template before<7>(now, back);
  }
  return {now, flips, low};
}

// The same where the eight bytes before can be read.
template <int Bits>
inline Parities parities_at(const std::uint8_t* plane) {
  Quads low = load<Quads>(plane - 5);
  if constexpr (Bits < 4) low ^= load<Quads>(plane - 2) ^ load<Quads>(plane - 7);
  return {load<Quads>(plane), load<Quads>(plane - 1) ^ load<Quads>(plane - 8), low};
}

// bytes_before of a plane of less than eight bytes.
[[gnu::noinline]] std::uint64_t bytes_before_short(const std::uint8_t* plane, std::size_t bytes,
                                                   int width, std::uint64_t state) {
  std::uint8_t before[16] = {};
  std::memcpy(before + 8, plane, bytes);
  for (std::size_t k = 1; k <= 8; ++k) {
    before[8 - k] =
        static_cast<std::uint8_t>(before[8 - k + bytes] << width | (state >> (8 * (8 - k)) & 0xff));
  }
  return load<std::uint64_t>(before);
}

// What stands in the eight bytes before a plane: its end, a field further up, and the first state
// in the lowest fields.
template <int Bits>
inline std::uint64_t bytes_before(const std::uint8_t* row, std::size_t d) {
  constexpr int kCoded = coded_width(Bits);
  const std::size_t bytes = packed_bytes(d, kCoded);
  constexpr std::uint64_t kLowest = in_each_byte(1u << (kCoded - 1));
  // Bit k - 1 of the state goes to byte 8 - k.
  const std::uint64_t bits = row[0] * in_each_byte(1) & 0x0102040810204080u;
  const std::uint64_t state = (bits + 0x7f7e7c7870604000u) >> (8 - kCoded) & kLowest;
  constexpr std::uint64_t kUpper = in_each_byte(0xffu << kCoded & 0xffu);
  if (bytes < 8) return bytes_before_short(row + 1, bytes, kCoded, state);
  return (load<std::uint64_t>(row + 1 + bytes - 8) << kCoded & kUpper) | state;
}

/// What the planes of a row become: fields of two bits for 1 bit, of four bits for the rest,
/// indices into TrellisTable::lookup. 1 and 3 bits: fields 0, 2, 4, 6 in even, 1, 3, 5, 7 in odd.
/// 1 bit: both parities, the high one on top.
/// 2 bits: fields 0 and 2 in even, 1 and 3 in odd: the low parity above the high one above the
/// rest. 3 bits: the rest above both parities; fields 0 and 4 in even, 2 and 6 in even_upper, 1 and
/// 5 in odd, 3 and 7 in odd_upper. 4 bits: the high parity above the rest in even; the low one,
/// which chooses one of two tables, on top of each field of odd, over anything.
struct Indices {
  Quads even, odd, even_upper, odd_upper;
};

// rest_even, rest_odd: the second plane, for 3 bits.
template <int Bits>
inline Indices indices(const Parities& p, Quads rest_even, Quads rest_odd) {
  constexpr std::uint64_t k33 = in_each_byte(0x33), k44 = in_each_byte(0x44);
  if constexpr (Bits == 1 || Bits == 3) {
    constexpr std::uint64_t k55 = in_each_byte(0x55), kAa = in_each_byte(0xaa);
    const Quads high = p.now ^ p.flips;
    const Quads even = (p.low & k55) | ((high << 1) & kAa);
    const Quads odd = ((p.low >> 1) & k55) | (high & kAa);
    if constexpr (Bits == 1) return {even, odd, Quads{}, Quads{}};
    constexpr std::uint64_t kCc = in_each_byte(0xcc);
    return {(even & k33) | ((rest_even << 2) & kCc), (odd & k33) | ((rest_odd << 2) & kCc),
            ((even >> 2) & k33) | (rest_even & kCc), ((odd >> 2) & k33) | (rest_odd & kCc)};
  } else if constexpr (Bits == 2) {
    const Quads fields = p.now ^ (p.flips & in_each_byte(0xaa));
    return {(fields & k33) | ((p.low << 1) & k44), ((fields >> 2) & k33) | ((p.low >> 1) & k44),
            Quads{}, Quads{}};
  } else {
    return {p.now ^ (p.flips & in_each_byte(0x88)), p.low, Quads{}, Quads{}};
  }
}

/// A query as the planes stand; zeros where they have no coordinate.
template <int Bits>
class PlaneQuery {
 public:
  PlaneQuery(const std::int8_t* query, std::size_t d)
      : bytes_(packed_bytes(d, coded_width(Bits))), pitch_(round_up(bytes_, kBytes)) {
    constexpr std::size_t kOfBlock = plane_bytes(coded_width(Bits));
    const std::size_t whole = d / kBlock * kOfBlock;
    const std::size_t last = bytes_ - whole;
    for (std::size_t field = 0; field < kFields; ++field) {
      std::int8_t* to = values_ + field * pitch_;
      const std::int8_t* from = query + field * kOfBlock;
      for (std::size_t at = 0; at < whole; at += kOfBlock, from += kBlock) {
        std::memcpy(to + at, from, kOfBlock);
      }
      std::memset(to + whole, 0, pitch_ - whole);
      const std::size_t n = d % kBlock;
      const std::size_t start = field * last;
      if (start < n) {
        std::memcpy(to + whole, query + d - n + start, n - start < last ? n - start : last);
      }
    }
  }
  /// Of a field of the register that begins with byte `at` of a plane.
  const std::int8_t* of(int field, std::size_t at) const {
    return values_ + static_cast<std::size_t>(field) * pitch_ + at;
  }

 private:
  static constexpr std::size_t kFields = fields_of(Bits);
  std::size_t bytes_, pitch_;
  alignas(64) std::int8_t values_[kMaxDimension + kFields * kBytes];
};

/// The registers of the planes of rows of one dimension.
template <typename Lanes, int Bits>
class Registers {
 public:
  explicit Registers(std::size_t d)
      : d_(d),
        bytes_(packed_bytes(d, coded_width(Bits))),
        whole_(bytes_ / kBytes * kBytes),
        rest_(bytes_ - whole_),
        rest_back_(rest_.n + Lanes::kBack < kBytes ? rest_.n + Lanes::kBack : kBytes) {}

  /// f(Shape) with what the compiler has to know of these registers.
  template <typename Function>
  void by_shape(const Function& f) const {
    const bool half = rest_.n <= kBytes / 2;
    if (rest_.n == 0) {
      f(Shape<true, false, false>());
    } else if (whole_ == 0) {
      half ? f(Shape<false, true, true>()) : f(Shape<false, true, false>());
    } else {
      half ? f(Shape<true, true, true>()) : f(Shape<true, true, false>());
    }
  }
  /// Whole registers, a part of one at the end, and whether that is at most a half.
  template <bool HasWhole, bool HasPart, bool HasHalf>
  struct Shape {
    static constexpr bool kWhole = HasWhole, kPart = HasPart, kHalf = HasHalf;
    /// Less halves that are taken together with another row's.
    using Alone = Shape<HasWhole, HasPart && !HasHalf, false>;
  };

  /// f(indices, at) for each register, which begins with byte `at` of each plane. What lies past
  /// the end of a plane is unspecified.
  template <typename OfShape, typename Function>
  [[gnu::always_inline]] void for_each(OfShape /*shape*/, const std::uint8_t* row,
                                       const Function& f) const {
    const std::uint8_t* plane = row + 1;
    const std::uint64_t before = bytes_before<Bits>(row, d_);
    if constexpr (OfShape::kWhole) {
      const auto read = [](const std::uint8_t* from) { return load<Quads>(from); };
      for (std::size_t at = 0; at < whole_; at += kBytes) {
        if (at > 0 && Lanes::kLoadsBefore) {
          f(of(plane, parities_at<Bits>(plane + at), at, read), at);
          continue;
        }
        const Quads now = read(plane + at);
        const Quads back =
            at == 0 ? Lanes::back_of_first(now, before) : read(plane + at - Lanes::kBack);
        f(of(plane, parities<Lanes, Bits>(now, back), at, read), at);
      }
    }
    if constexpr (OfShape::kPart) {
      const auto read = [this](const std::uint8_t* from) { return rest_.load(from); };
      const Quads now = read(plane + whole_);
      const Quads back = OfShape::kWhole ? rest_back_.load(plane + whole_ - Lanes::kBack)
                                         : Lanes::back_of_first(now, before);
      f(of(plane, parities<Lanes, Bits>(now, back), whole_, read), whole_);
    }
  }

  /// f(indices, at) once, for the last halves of registers of two rows side by side.
  template <typename OfShape, typename Function>
  [[gnu::always_inline]] void last_halves(OfShape /*shape*/, const std::uint8_t* a,
                                          const std::uint8_t* b, const Function& f) const {
    const auto read = [&](std::size_t at, const typename Lanes::Part& part) {
      return Lanes::two_halves(part.load_half(a + 1 + at), part.load_half(b + 1 + at));
    };
    const Quads now = read(whole_, rest_);
    const Quads back = OfShape::kWhole ? read(whole_ - Lanes::kBack, rest_back_)
                                       : Lanes::back_of_halves(now, bytes_before<Bits>(a, d_),
                                                               bytes_before<Bits>(b, d_));
    const Parities p = parities<Lanes, Bits>(now, back);
    if constexpr (Bits == 3) {
      f(indices<3>(p, read(bytes_ + whole_, rest_), read(2 * bytes_ + whole_, rest_)), whole_);
    } else {
      f(indices<Bits>(p, Quads{}, Quads{}), whole_);
    }
  }

  std::size_t bytes() const { return bytes_; }

 private:
  template <typename Read>
  [[gnu::always_inline]] Indices of(const std::uint8_t* plane, const Parities& p, std::size_t at,
                                    const Read& read) const {
    if constexpr (Bits == 3) {
      return indices<3>(p, read(plane + bytes_ + at), read(plane + 2 * bytes_ + at));
    } else {
      return indices<Bits>(p, Quads{}, Quads{});
    }
  }

  std::size_t d_, bytes_, whole_;
  typename Lanes::Part rest_, rest_back_;
};

/// trellis_decode. levels(indices, to, pitch) writes the levels of a register, field by field.
template <typename Lanes, int Bits, typename Function>
inline void decode_planes(const std::uint8_t* row, std::size_t d, std::int8_t* out,
                          const Function& levels) {
  constexpr std::size_t kOfBlock = plane_bytes(coded_width(Bits));
  constexpr std::size_t kFields = fields_of(Bits);
  alignas(64) std::int8_t planes[kMaxDimension + kFields * kBytes];
  const Registers<Lanes, Bits> registers(d);
  const std::size_t bytes = registers.bytes();
  const std::size_t pitch = round_up(bytes, kBytes);
  registers.by_shape([&](auto shape) {
    registers.for_each(shape, row,
                       [&](const Indices& of, std::size_t at) { levels(of, planes + at, pitch); });
  });
  const std::size_t whole = d / kBlock * kOfBlock;
  for (std::size_t at = 0; at < whole; at += kOfBlock) {
    for (std::size_t field = 0; field < kFields; ++field, out += kOfBlock) {
      std::memcpy(out, planes + field * pitch + at, kOfBlock);
    }
  }
  const std::size_t last = bytes - whole;
  for (std::size_t i = 0; i < d % kBlock; i += last) {
    const std::size_t n = d % kBlock - i < last ? d % kBlock - i : last;
    std::memcpy(out + i, planes + i / last * pitch + whole, n);
  }
}

}  // namespace
}  // namespace turboquant::kernels
