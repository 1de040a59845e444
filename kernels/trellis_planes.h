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

/// The bits of a first state as they stand in the eight bytes before a plane of fields of Width
/// bits: bit k - 1 on top of the lowest field of byte 8 - k.
template <int Width>
struct FirstStates {
  constexpr FirstStates() : bytes() {
    for (unsigned state = 0; state < 256; ++state) {
      for (unsigned k = 1; k <= 8; ++k) {
        bytes[state] |= static_cast<std::uint64_t>(state >> (k - 1) & 1)
                        << (8 * (8 - k) + Width - 1);
      }
    }
  }
  std::uint64_t bytes[256];
};
template <int Width>
inline constexpr FirstStates<Width> kFirstStates{};

// A plane of less than eight bytes, on top of zeros.
inline std::uint64_t load_short(const std::uint8_t* plane, std::size_t bytes) {
  if (bytes == 0) return 0;
  std::uint64_t value = 0;
  if (bytes >= 4) {
    value = load<std::uint32_t>(plane) |
            static_cast<std::uint64_t>(load<std::uint32_t>(plane + bytes - 4)) << 8 * (bytes - 4);
  } else {
    const std::size_t places[] = {0, bytes / 2, bytes - 1};
    for (const std::size_t at : places) value |= static_cast<std::uint64_t>(plane[at]) << 8 * at;
  }
  return value << 8 * (8 - bytes);
}

// bytes_before of such a plane: each turn makes the bytes right that lie a plane further back.
inline std::uint64_t bytes_before_short(std::uint64_t plane, std::size_t bytes, std::uint64_t upper,
                                        int width, std::uint64_t state) {
  if (bytes == 0) return state;
  std::uint64_t before = 0;
  for (std::size_t right = 0; right < 8; right += bytes) {
    before = ((plane | before >> 8 * bytes) << width & upper) | state;
  }
  return before;
}

// What stands in the eight bytes before a plane of that many bytes: its end, a field further up,
// and the first state in the lowest fields.
template <int Bits, bool Short>
[[gnu::always_inline]] inline std::uint64_t bytes_before(const std::uint8_t* row,
                                                         std::size_t bytes) {
  constexpr int kCoded = coded_width(Bits);
  const std::uint64_t state = kFirstStates<kCoded>.bytes[row[0]];
  constexpr std::uint64_t kUpper = in_each_byte(0xffu << kCoded & 0xffu);
  if constexpr (Short) {
    return bytes_before_short(load_short(row + 1, bytes), bytes, kUpper, kCoded, state);
  } else {
    return (load<std::uint64_t>(row + 1 + bytes - 8) << kCoded & kUpper) | state;
  }
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

/// Constants of indices(). From memory, where the compiler cannot see what they are: it would make
/// them anew for every row otherwise.
struct Masks {
  Masks()
      : m33(Quads{} + in_each_byte(0x33)),
        m44(Quads{} + in_each_byte(0x44)),
        m55(Quads{} + in_each_byte(0x55)),
        m88(Quads{} + in_each_byte(0x88)),
        maa(Quads{} + in_each_byte(0xaa)),
        mcc(Quads{} + in_each_byte(0xcc)) {
    __asm__("" : "+m"(*this));
  }
  Quads m33, m44, m55, m88, maa, mcc;
};

// rest_even, rest_odd: the second plane, for 3 bits.
template <typename Lanes, int Bits>
inline Indices indices(const Masks& m, const Parities& p, Quads rest_even, Quads rest_odd) {
  if constexpr (Bits == 1 || Bits == 3) {
    const Quads high = p.now ^ p.flips;
    const Quads even = (p.low & m.m55) | ((high + high) & m.maa);
    const Quads odd = ((p.low >> 1) & m.m55) | (high & m.maa);
    if constexpr (Bits == 1) return {even, odd, Quads{}, Quads{}};
    return {(even & m.m33) | ((rest_even << 2) & m.mcc), (odd & m.m33) | ((rest_odd << 2) & m.mcc),
            ((even >> 2) & m.m33) | (rest_even & m.mcc), ((odd >> 2) & m.m33) | (rest_odd & m.mcc)};
  } else if constexpr (Bits == 2) {
    const Quads fields = p.now ^ (p.flips & m.maa);
    if constexpr (Lanes::kIgnoresTops) {
      return {(fields & m.m33) | ((p.low + p.low) & ~m.m33),
              ((fields >> 2) & m.m33) | ((p.low >> 1) & ~m.m33), Quads{}, Quads{}};
    }
    return {(fields & m.m33) | ((p.low + p.low) & m.m44),
            ((fields >> 2) & m.m33) | ((p.low >> 1) & m.m44), Quads{}, Quads{}};
  } else {
    return {p.now ^ (p.flips & m.m88), p.low, Quads{}, Quads{}};
  }
}

/// Where byte `at` of a field stands among the bytes of all fields, register by register.
template <int Bits>
constexpr std::size_t byte_of_field(std::size_t field, std::size_t at) {
  return at / kBytes * (fields_of(Bits) * kBytes) + field * kBytes + at % kBytes;
}

/// Room for as many.
template <int Bits>
inline constexpr std::size_t kFieldBytes = kMaxDimension + fields_of(Bits) * kBytes;

/// f(at, field, i, n): bytes at, at + 1, ... of that field are coordinates i to i + n - 1 of d, and
/// within a register.
template <int Bits, typename Function>
inline void for_each_run(std::size_t d, const Function& f) {
  constexpr std::size_t kOfBlock = plane_bytes(coded_width(Bits));
  constexpr std::size_t kRun = kOfBlock < kBytes ? kOfBlock : kBytes;
  const std::size_t whole = d / kBlock * kOfBlock;
  for (std::size_t at = 0; at < whole; at += kRun) {
    for (std::size_t field = 0; field < fields_of(Bits); ++field) {
      f(at, field, at / kOfBlock * kBlock + field * kOfBlock + at % kOfBlock, kRun);
    }
  }
  const std::size_t n = d % kBlock;
  const std::size_t last = packed_bytes(n, coded_width(Bits));
  for (std::size_t i = 0; i < n;) {
    const std::size_t at = whole + i % last;
    const std::size_t to_end = last - i % last;
    const std::size_t in_register = kBytes - at % kBytes;
    std::size_t run = to_end < in_register ? to_end : in_register;
    run = n - i < run ? n - i : run;
    f(at, i / last, d - n + i, run);
    i += run;
  }
}

/// A query as the planes stand; zeros where they have no coordinate.
template <int Bits>
class PlaneQuery {
 public:
  PlaneQuery(const std::int8_t* query, std::size_t d) {
    // Registers read one even of no bytes.
    const std::size_t bytes = d > 0 ? packed_bytes(d, coded_width(Bits)) : 1;
    const std::size_t whole = d / kBlock * plane_bytes(coded_width(Bits)) / kBytes * kBytes;
    std::memset(values_ + whole * fields_of(Bits), 0,
                (round_up(bytes, kBytes) - whole) * fields_of(Bits));
    for_each_run<Bits>(d, [&](std::size_t at, std::size_t field, std::size_t i, std::size_t n) {
      std::memcpy(values_ + byte_of_field<Bits>(field, at), query + i, n);
    });
  }
  /// Of a field of the register that begins with byte `at` of a plane.
  [[gnu::always_inline]] const std::int8_t* of(int field, std::size_t at) const {
    return values_ + at * fields_of(Bits) + static_cast<std::size_t>(field) * kBytes;
  }

 private:
  alignas(64) std::int8_t values_[kFieldBytes<Bits>];
};

/// The registers of the planes of rows of one dimension.
template <typename Lanes, int Bits>
class Registers {
 public:
  explicit Registers(std::size_t d)
      : bytes_(packed_bytes(d, coded_width(Bits))),
        whole_(bytes_ / kBytes * kBytes),
        rest_(bytes_ - whole_),
        rest_back_(rest_.n + Lanes::kBack < kBytes ? rest_.n + Lanes::kBack : kBytes) {}

  /// f(Shape) with what the compiler has to know of these registers.
  template <typename Function>
  void by_shape(const Function& f) const {
    const bool half = rest_.n <= kBytes / 2;
    if (bytes_ < 8) {
      f(Shape<false, true, false, true>());
    } else if (rest_.n == 0) {
      f(Shape<true, false, false>());
    } else if (whole_ == 0) {
      half ? f(Shape<false, true, true>()) : f(Shape<false, true, false>());
    } else {
      half ? f(Shape<true, true, true>()) : f(Shape<true, true, false>());
    }
  }
  /// Whole registers, a part of one at the end, whether that is at most a half, and whether all are
  /// less than eight bytes.
  template <bool HasWhole, bool HasPart, bool HasHalf, bool IsShort = false>
  struct Shape {
    static constexpr bool kWhole = HasWhole, kPart = HasPart, kHalf = HasHalf, kShort = IsShort;
  };

  /// f(indices, at) for each register, which begins with byte `at` of each plane. What lies past
  /// the end of a plane is unspecified.
  template <typename OfShape, typename Function>
  [[gnu::always_inline]] void for_each(OfShape shape, const std::uint8_t* row,
                                       const Function& f) const {
    if constexpr (OfShape::kWhole) {
      first(row, f);
      for (std::size_t at = kBytes; at < whole_; at += kBytes) next(row, at, f);
    }
    if constexpr (OfShape::kPart) part(shape, row, f);
  }

  /// The same for the first whole register, one of the next up to whole(), and the part behind.
  template <typename Function>
  [[gnu::always_inline]] void first(const std::uint8_t* row, const Function& f) const {
    const Quads now = read_whole(row + 1);
    const Quads back = Lanes::back_of_first(now, bytes_before<Bits, false>(row, bytes_));
    f(of(row + 1, parities<Lanes, Bits>(now, back), 0, read_whole), 0);
  }
  template <typename Function>
  [[gnu::always_inline]] void next(const std::uint8_t* row, std::size_t at,
                                   const Function& f) const {
    const std::uint8_t* plane = row + 1;
    Parities p;
    if constexpr (Lanes::kLoadsBefore) {
      p = parities_at<Bits>(plane + at);
    } else {
      p = parities<Lanes, Bits>(read_whole(plane + at), read_whole(plane + at - Lanes::kBack));
    }
    f(of(plane, p, at, read_whole), at);
  }
  template <typename OfShape, typename Function>
  [[gnu::always_inline]] void part(OfShape /*shape*/, const std::uint8_t* row,
                                   const Function& f) const {
    if constexpr (!OfShape::kHalf && !OfShape::kShort) {
      if (rest_.n <= kBytes / 2 || rest_back_.n <= kBytes / 2) __builtin_unreachable();
    }
    const std::uint8_t* plane = row + 1;
    const auto read = [this](const std::uint8_t* from) { return rest_.load(from); };
    const Quads now = read(plane + whole_);
    const Quads back = OfShape::kWhole ? rest_back_.load(plane + whole_ - Lanes::kBack)
                                       : Lanes::back_of_first(
                                             now, bytes_before<Bits, OfShape::kShort>(row, bytes_));
    f(of(plane, parities<Lanes, Bits>(now, back), whole_, read), whole_);
  }
  std::size_t whole() const { return whole_; }

  /// f(indices, at) once, for the last halves of registers of two rows side by side.
  template <typename OfShape, typename Function>
  [[gnu::always_inline]] void last_halves(OfShape /*shape*/, const std::uint8_t* a,
                                          const std::uint8_t* b, const Function& f) const {
    const auto read = [&](std::size_t at, const typename Lanes::Part& part) {
      return Lanes::two_halves(part.load_half(a + 1 + at), part.load_half(b + 1 + at));
    };
    const Quads now = read(whole_, rest_);
    const Quads back =
        OfShape::kWhole ? read(whole_ - Lanes::kBack, rest_back_)
                        : Lanes::back_of_halves(now, bytes_before<Bits, OfShape::kShort>(a, bytes_),
                                                bytes_before<Bits, OfShape::kShort>(b, bytes_));
    const Parities p = parities<Lanes, Bits>(now, back);
    if constexpr (Bits == 3) {
      f(indices<Lanes, 3>(masks_, p, read(bytes_ + whole_, rest_),
                          read(2 * bytes_ + whole_, rest_)),
        whole_);
    } else {
      f(indices<Lanes, Bits>(masks_, p, Quads{}, Quads{}), whole_);
    }
  }

 private:
  static Quads read_whole(const std::uint8_t* from) { return load<Quads>(from); }
  template <typename Read>
  [[gnu::always_inline]] Indices of(const std::uint8_t* plane, const Parities& p, std::size_t at,
                                    const Read& read) const {
    if constexpr (Bits == 3) {
      return indices<Lanes, 3>(masks_, p, read(plane + bytes_ + at), read(plane + 2 * bytes_ + at));
    } else {
      return indices<Lanes, Bits>(masks_, p, Quads{}, Quads{});
    }
  }

  Masks masks_;
  std::size_t bytes_, whole_;
  typename Lanes::Part rest_, rest_back_;
};

/// trellis_decode. levels(indices, to) writes the levels of a register, field by field.
template <typename Lanes, int Bits, typename Function>
inline void decode_planes(const std::uint8_t* row, std::size_t d, std::int8_t* out,
                          const Function& levels) {
  alignas(64) std::int8_t planes[kFieldBytes<Bits>];
  const Registers<Lanes, Bits> registers(d);
  registers.by_shape([&](auto shape) {
    registers.for_each(shape, row, [&](const Indices& of, std::size_t at) {
      levels(of, planes + at * fields_of(Bits));
    });
  });
  for_each_run<Bits>(d, [&](std::size_t at, std::size_t field, std::size_t i, std::size_t n) {
    std::memcpy(out + i, planes + byte_of_field<Bits>(field, at), n);
  });
}

}  // namespace
}  // namespace turboquant::kernels
