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

// back: for each 16 bytes of `now` the 16 bytes before them; back8: the same of 8. Lanes brings what
// the vector extensions cannot say.
template <typename Lanes, int Bits>
inline Parities parities(Quads now, Quads back, Quads back8) {
  static_assert(low_taps(1) == 0x0a4 && low_taps(4) == 0x020 && kHighTaps == 0x103);
  const Quads flips = Lanes::template before<1>(now, back) ^ back8;
  Quads low = Lanes::template before<5>(now, back);
  if constexpr (Bits < 4) {
    low ^= Lanes::template before<2>(now, back) ^ Lanes::template before<7>(now, back);
  }
  return {now, flips, low};
}
template <typename Lanes, int Bits>
inline Parities parities(Quads now, Quads back) {
  return parities<Lanes, Bits>(now, back, Lanes::template before<8>(now, back));
}

// The same where the eight bytes before can be read.
template <int Bits>
inline Parities parities_at(const std::uint8_t* plane) {
  Quads low = load<Quads>(plane - 5);
  if constexpr (Bits < 4) low ^= load<Quads>(plane - 2) ^ load<Quads>(plane - 7);
  return {load<Quads>(plane), load<Quads>(plane - 1) ^ load<Quads>(plane - 8), low};
}

// What stands in the eight bytes before a plane: its end, a field further up, and the first state
// in the lowest fields.
template <int Bits>
class BytesBefore {
 public:
  explicit BytesBefore(std::size_t d) : bytes_(packed_bytes(d, kCoded)) {
    __asm__("" : "+m"(*this));  // as for Masks
  }
  [[gnu::always_inline]] std::uint64_t operator()(const std::uint8_t* row) const {
    // Bit k - 1 of the state goes to byte 8 - k.
    const std::uint64_t bits = row[0] * ones_ & places_;
    const std::uint64_t state = (bits + carries_) >> (8 - kCoded) & lowest_;
    if (bytes_ < 8) return of_short(row, state);
    return (load<std::uint64_t>(row + 1 + bytes_ - 8) << kCoded & upper_) | state;
  }

 private:
  static constexpr int kCoded = coded_width(Bits);

  [[gnu::noinline]] std::uint64_t of_short(const std::uint8_t* row, std::uint64_t state) const {
    std::uint8_t before[16] = {};
    std::memcpy(before + 8, row + 1, bytes_);
    for (std::size_t k = 1; k <= 8; ++k) {
      before[8 - k] = static_cast<std::uint8_t>(before[8 - k + bytes_] << kCoded |
                                                (state >> (8 * (8 - k)) & 0xff));
    }
    return load<std::uint64_t>(before);
  }

  std::size_t bytes_;
  std::uint64_t ones_ = in_each_byte(1);
  std::uint64_t places_ = 0x0102040810204080u;
  std::uint64_t carries_ = 0x7f7e7c7870604000u;
  std::uint64_t lowest_ = in_each_byte(1u << (kCoded - 1));
  std::uint64_t upper_ = in_each_byte(0xffu << kCoded & 0xffu);
};

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
    return {(fields & m.m33) | ((p.low + p.low) & m.m44), ((fields >> 2) & m.m33) | ((p.low >> 1) & m.m44),
            Quads{}, Quads{}};
  } else {
    return {p.now ^ (p.flips & m.m88), p.low, Quads{}, Quads{}};
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
      : before_(d),
        bytes_(packed_bytes(d, coded_width(Bits))),
        whole_(bytes_ / kBytes * kBytes),
        rest_(bytes_ - whole_),
        rest_back_(rest_.n + 16 < kBytes ? rest_.n + 16 : kBytes) {}

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
    const std::uint64_t before = before_(row);
    if constexpr (OfShape::kWhole) {
      const auto read = [](const std::uint8_t* from) { return load<Quads>(from); };
      for (std::size_t at = 0; at < whole_; at += kBytes) {
        if (at > 0 && Lanes::kLoadsBefore) {
          f(of(plane, parities_at<Bits>(plane + at), at, read), at);
          continue;
        }
        const Quads now = read(plane + at);
        const Parities p = at == 0
                               ? parities<Lanes, Bits>(now, Lanes::back_of_first(now, before))
                               : parities<Lanes, Bits>(now, read(plane + at - 16),
                                                       read(plane + at - 8));
        f(of(plane, p, at, read), at);
      }
    }
    if constexpr (OfShape::kPart) {
      const auto read = [this](const std::uint8_t* from) { return rest_.load(from); };
      const Quads now = read(plane + whole_);
      const Quads back = OfShape::kWhole ? rest_back_.load(plane + whole_ - 16)
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
    const Quads back =
        OfShape::kWhole
            ? read(whole_ - 16, rest_back_)
            : Lanes::back_of_halves(now, before_(a), before_(b));
    const Parities p = parities<Lanes, Bits>(now, back);
    if constexpr (Bits == 3) {
      f(indices<Lanes, 3>(masks_, p, read(bytes_ + whole_, rest_), read(2 * bytes_ + whole_, rest_)), whole_);
    } else {
      f(indices<Lanes, Bits>(masks_, p, Quads{}, Quads{}), whole_);
    }
  }

  std::size_t bytes() const { return bytes_; }

 private:
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
  BytesBefore<Bits> before_;
  std::size_t bytes_, whole_;
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
