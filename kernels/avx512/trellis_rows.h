// One query over rows of a trellis code on AVX-512. Four rows at a time: of each as many whole
// registers of its plane as there are, then columns of 16 bytes, those of the four rows side by
// side, so that no row has a register of its own that is mostly empty. Internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/trellis_planes.h"
#include "kernels/trellis_tail.h"

namespace turboquant::kernels {
namespace {

constexpr std::size_t kPair = 32, kColumn = 16;  // bytes of a plane

inline __m512i either(__m512i mask, __m512i set, __m512i clear) {
  return _mm512_ternarylogic_epi64(mask, set, clear, 0xca);
}
inline __m512i exclusive_or(__m512i a, __m512i b, __m512i c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}

// Quadwords of `now` shifted left by Shift bits, those of `back` shifted in. back: the quadwords of
// the plane before those of `now`; so eight bits are a step of time.
template <int Shift>
inline __m512i funnel(__m512i now, __m512i back) {
#if defined(__AVX512VBMI2__)
  return _mm512_shldi_epi64(now, back, Shift);
#else
  return _mm512_or_si512(_mm512_slli_epi64(now, Shift), _mm512_srli_epi64(back, 64 - Shift));
#endif
}
// The exclusive or of three such.
template <int A, int B, int C>
inline __m512i funnels(__m512i now, __m512i back) {
#if defined(__AVX512VBMI2__)
  return exclusive_or(funnel<A>(now, back), funnel<B>(now, back), funnel<C>(now, back));
#else
  const __m512i left =
      exclusive_or(_mm512_slli_epi64(now, A), _mm512_slli_epi64(now, B), _mm512_slli_epi64(now, C));
  const __m512i right =
      exclusive_or(_mm512_srli_epi64(back, 64 - A), _mm512_srli_epi64(back, 64 - B),
                   _mm512_srli_epi64(back, 64 - C));
  return _mm512_xor_si512(left, right);
#endif
}

// Fields of a register of the plane with the coded bits, and of those of the rest.
struct PlaneBytes {
  __m512i now, back;            // back: eight bytes before
  __m512i one, five;            // one byte and five before, for 4 bits without VBMI2
  __m512i rest_even, rest_odd;  // 3 bits
};

#if defined(__AVX512VBMI2__)
template <int Bits>
inline constexpr bool kBytesBefore = false;
#else
template <int Bits>
inline constexpr bool kBytesBefore = Bits == 4;
#endif
template <int Bits>
[[gnu::always_inline]] inline void bytes_before(PlaneBytes& of) {
  if constexpr (kBytesBefore<Bits>) {
    of.one = funnel<8>(of.now, of.back);
    of.five = funnel<40>(of.now, of.back);
  }
}

// Products of registers of the plane with the query. A look-up of VBMI reads six bits, others four
// and bit 7, which has to be clear; what is above an index is there because nothing takes it away.
template <int Bits>
class RegisterProducts {
 public:
  explicit RegisterProducts(const TrellisTable& table) {
    const __m512i first = broadcast_table(table.lookup, table.offset);
    tables_[0] = first;
    if constexpr (Bits == 1) {
      // For the second field of two bits, and for the third.
      tables_[1] = _mm512_shuffle_epi8(first, load512(kPlaces.second));
      tables_[2] = _mm512_shuffle_epi8(first, load512(kPlaces.third));
    } else if constexpr (Bits == 2) {
      // The low parity under the field instead of on top of it.
      tables_[1] = _mm512_shuffle_epi8(first, load512(kPlaces.second));
    } else if constexpr (Bits == 4) {
      tables_[1] = broadcast_table(table.lookup + 16, table.offset);
#if defined(__AVX512VBMI__)
      tables_[0] = _mm512_mask_mov_epi64(first, 0xcc, tables_[1]);
#endif
    }
    // Or the compiler makes them anew for every row.
    __asm__("" : "+v"(m0f_), "+v"(m33_), "+v"(m55_), "+v"(m88_));
  }

  static constexpr std::size_t kFields = fields_of(Bits);

  /// Adds to sums[0] and sums[1]. query: [kFields][64].
  [[gnu::always_inline]] void add(const PlaneBytes& of, const std::int8_t* query,
                                  __m512i* sums) const {
    const auto product = [&](std::size_t field, __m512i levels) __attribute__((always_inline)) {
      sums[field % 2] =
          _mm512_dpbusd_epi32(sums[field % 2], levels, load512(query + field * kBytes));
    };
    if constexpr (Bits == 1 || Bits == 3) {
      const __m512i high = exclusive_or(of.now, of.back, funnel<8>(of.now, of.back));
      const __m512i low = funnels<16, 40, 56>(of.now, of.back);
      const __m512i even = either(m55_, low, _mm512_add_epi8(high, high));
      const __m512i odd = either(m55_, _mm512_srli_epi16(low, 1), high);
      if constexpr (Bits == 1) {
        one_bit(even, 0, product);
        one_bit(odd, 1, product);
      } else {
        three_bits(even, of.rest_even, 0, product);
        three_bits(odd, of.rest_odd, 1, product);
      }
    } else if constexpr (Bits == 2) {
      const __m512i high = exclusive_or(of.now, of.back, funnel<8>(of.now, of.back));
      const __m512i fields = either(m55_, of.now, high);
      const __m512i low = funnels<16, 40, 56>(of.now, of.back);
      const __m512i low_up = _mm512_add_epi8(low, low);
#if defined(__AVX512VBMI__)
      const __m512i even = either(m33_, fields, low_up);
      const __m512i odd = either(m33_, _mm512_srli_epi16(low, 2), fields);
      product(0, look_up(tables_[0], even));
      product(1, look_up(tables_[1], odd));
      product(2, look_up(tables_[0], _mm512_srli_epi16(even, 4)));
      product(3, look_up(tables_[1], _mm512_srli_epi16(odd, 4)));
#else
      // Bit 3 of an index is clear, so neither half needs a mask.
      constexpr int kFirstOrBoth = 0xf8;  // a | (b & c)
      const __m512i m44 = _mm512_set1_epi8(0x44);
      const __m512i even =
          _mm512_ternarylogic_epi64(_mm512_and_si512(fields, m33_), low_up, m44, kFirstOrBoth);
      const __m512i odd =
          _mm512_ternarylogic_epi64(_mm512_and_si512(_mm512_srli_epi16(fields, 2), m33_),
                                    _mm512_srli_epi16(low, 1), m44, kFirstOrBoth);
      product(0, look_up(tables_[0], even));
      product(1, look_up(tables_[0], odd));
      product(2, look_up(tables_[0], _mm512_srli_epi16(even, 4)));
      product(3, look_up(tables_[0], _mm512_srli_epi16(odd, 4)));
#endif
    } else {
#if defined(__AVX512VBMI__)
      const __m512i high = exclusive_or(of.now, of.back, funnel<8>(of.now, of.back));
      const __m512i codes = either(m88_, high, of.now);
      // The low parity on top of an index.
      product(0, look_up(tables_[0], either(m0f_, codes, funnel<41>(of.now, of.back))));
      product(1, look_up(tables_[0],
                         either(m0f_, _mm512_srli_epi16(codes, 4), funnel<37>(of.now, of.back))));
#else
      // The low parity in bit 7 chooses one of two tables.
      const auto levels = [&](__m512i index, __m512i low) __attribute__((always_inline)) {
        index = _mm512_and_si512(index, m0f_);
        return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(tables_[0], index),
                                        _mm512_movepi8_mask(low), tables_[1], index);
      };
      constexpr int kOtherIfBoth = 0x78;  // a ^ (b & c)
      const __m512i codes =
          _mm512_ternarylogic_epi64(of.now, _mm512_xor_si512(of.one, of.back), m88_, kOtherIfBoth);
      product(0, levels(codes, _mm512_slli_epi16(of.five, 4)));
      product(1, levels(_mm512_srli_epi16(codes, 4), of.five));
#endif
    }
  }

 private:
  template <typename Product>
  [[gnu::always_inline]] void one_bit(__m512i v, std::size_t field, const Product& product) const {
#if defined(__AVX512VBMI__)
    product(field, look_up(tables_[0], v));
    product(field + 2, look_up(tables_[1], v));
    product(field + 4, look_up(tables_[2], v));
    product(field + 6, look_up(tables_[1], _mm512_srli_epi16(v, 4)));
#else
    const __m512i low = _mm512_and_si512(v, m0f_);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(v, 4), m0f_);
    product(field, look_up(tables_[0], low));
    product(field + 2, look_up(tables_[1], low));
    product(field + 4, look_up(tables_[0], high));
    product(field + 6, look_up(tables_[1], high));
#endif
  }
  template <typename Product>
  [[gnu::always_inline]] void three_bits(__m512i parities, __m512i rest, std::size_t field,
                                         const Product& product) const {
    const __m512i v = either(m33_, parities, _mm512_slli_epi16(rest, 2));
    const __m512i upper = either(m33_, _mm512_srli_epi16(parities, 2), rest);
    product(field, look_up(tables_[0], clean(v, 15)));
    product(field + 2, look_up(tables_[0], clean(upper, 15)));
    product(field + 4, look_up(tables_[0], clean(_mm512_srli_epi16(v, 4), 15)));
    product(field + 6, look_up(tables_[0], clean(_mm512_srli_epi16(upper, 4), 15)));
  }

  // Where the entries of the other tables stand in the first one.
  struct Places {
    constexpr Places() : second(), third() {
      for (int i = 0; i < 64; ++i) {
        second[i] = static_cast<std::uint8_t>(Bits == 1 ? i / 4 % 4 : i / 4 % 4 + i / 2 % 2 * 4);
        third[i] = static_cast<std::uint8_t>(i / 16 % 4);
      }
    }
    alignas(64) std::uint8_t second[64], third[64];
  };
  static constexpr Places kPlaces{};

  __m512i tables_[3];
  __m512i m0f_ = _mm512_set1_epi8(0x0f), m33_ = _mm512_set1_epi8(0x33);
  __m512i m55_ = _mm512_set1_epi8(0x55), m88_ = _mm512_set1_epi8(static_cast<char>(0x88));
};

}  // namespace
}  // namespace turboquant::kernels

#if defined(__AVX512VBMI__)
#include "kernels/avx512/trellis_short.h"
#endif

namespace turboquant::kernels {
namespace {

// How the planes of rows are cut: whole registers, and behind them up to three columns or up to
// four pairs, the last of which may be a part of one. As measured.
struct RowParts {
  explicit RowParts(std::size_t plane_bytes)
      : bytes(plane_bytes), whole(bytes <= kMostPairs * kPair ? 0 : bytes / kBytes * kBytes) {
    const std::size_t rest = bytes - whole;
    if (rest % kPair == 0 || rest > 3 * kColumn) {
      pairs = (rest + kPair - 1) / kPair;
    } else {
      columns = (rest + kColumn - 1) / kColumn;
    }
  }
  static constexpr std::size_t kMostPairs = 4;
  std::size_t bytes;  // of a plane
  std::size_t whole;  // of it in whole registers
  std::size_t pairs = 0, columns = 0;
};

// The query as RowProducts takes it.
template <int Bits>
class RowQuery {
 public:
  RowQuery(const std::int8_t* query, std::size_t d, const RowParts& parts) : planes_(query, d) {
    std::int8_t* to = rest_;
    const auto from = [&](std::size_t field, std::size_t at) {
      return planes_.of(static_cast<int>(field), at / kBytes * kBytes) + at % kBytes;
    };
    std::size_t at = parts.whole;
    for (std::size_t i = 0; i < parts.pairs; ++i, at += kPair) {
      for (std::size_t field = 0; field < fields_of(Bits); ++field, to += kBytes) {
        store(to, _mm512_broadcast_i64x4(load<__m256i>(from(field, at))));
      }
    }
    for (std::size_t i = 0; i < parts.columns; ++i, at += kColumn) {
      for (std::size_t field = 0; field < fields_of(Bits); ++field, to += kBytes) {
        store(to, _mm512_broadcast_i32x4(load<__m128i>(from(field, at))));
      }
    }
  }
  const PlaneQuery<Bits>& planes() const { return planes_; }
  /// [register][field][64], of the whole registers of a plane.
  const std::int8_t* registers() const { return planes_.of(0, 0); }
  /// [pair][field][2][32] or [column][field][4][16], the same for each row.
  const std::int8_t* rest() const { return rest_; }

 private:
  PlaneQuery<Bits> planes_;
  alignas(64) std::int8_t rest_[RowParts::kMostPairs * fields_of(Bits) * kBytes];
};

template <int Bits>
class RowProducts {
 public:
  RowProducts(const TrellisTable& table, const std::int8_t* query, std::size_t d, std::int32_t bias)
      : products_(table),
        parts_(packed_bytes(d, kWidth)),
        query_(query, d, parts_),
        bytes_(parts_.bytes),
        last_column_(static_cast<__mmask16>((1u << ((bytes_ + kColumn - 1) % kColumn + 1)) - 1)),
        last_pair_(first_bytes(bytes_ % kPair)),
        last_pair_back_(first_bytes(bytes_ % kPair + 8)),
        bias_(bias) {}

  /// f(Shape) with what the compiler has to know of a row: whether it has whole registers and
  /// pairs, perhaps a part of one, how many columns, and whether all is less than eight bytes.
  enum Pairs { kNoPairs, kWholePairs, kPartOfPair };
  template <bool HasWhole, Pairs Kind, int NumberOfColumns, bool IsShort = false>
  struct Shape {
    static constexpr bool kWhole = HasWhole, kShort = IsShort;
    static constexpr Pairs kPairs = Kind;
    static constexpr int kColumns = NumberOfColumns;
  };
  template <typename Function>
  void by_shape(const Function& f) const {
    if (bytes_ == 0) return f(Shape<false, kNoPairs, 0>());
    if (bytes_ < 8) return f(Shape<false, kNoPairs, 1, true>());
    if (parts_.whole > 0) {
      if (parts_.pairs + parts_.columns == 0) return f(Shape<true, kNoPairs, 0>());
      return by_rest<true>(f);
    }
    by_rest<false>(f);
  }
  const PlaneQuery<Bits>& query() const { return query_.planes(); }
  std::int32_t dot_short(const std::uint8_t* row) const {
    return dot_one<Shape<false, kNoPairs, 1, true>>(row);
  }

  template <typename OfShape>
  [[gnu::noinline]] void dot_rows(const std::uint8_t* codes, std::size_t stride,
                                  const std::uint32_t* rows, std::size_t n,
                                  std::int32_t* dots) const {
    const RegisterProducts<Bits> products = products_;  // in registers
    dot_by<4, kPrefetchBytes>(
        codes, stride, rows, n, dots,
        [&](const std::uint8_t* const row[4])
            __attribute__((always_inline)) { return dot<OfShape, 4>(products, row); },
        [&](const std::uint8_t* row) { return dot_one<OfShape>(row); });
  }

 private:
  template <typename OfShape>
  [[gnu::noinline]] std::int32_t dot_one(const std::uint8_t* row) const {
    const std::uint8_t* const same[] = {row, row, row, row};
    return _mm_cvtsi128_si32(dot<OfShape, 1>(products_, same));
  }

  /// Products of `Rows` rows, 1 or 4; if one, row[0] to row[3] are it.
  template <typename OfShape, int Rows>
  [[gnu::always_inline]] __m128i dot(const RegisterProducts<Bits>& products,
                                     const std::uint8_t* const row[4]) const {
    constexpr bool kPairs = OfShape::kPairs != kNoPairs;
    constexpr bool kColumns = OfShape::kColumns > 0;
    // Every quarter: sums of the four rows, side by side.
    __m512i all = _mm512_setzero_si512();
    if constexpr (OfShape::kWhole) {
      __m512i sums[4] = {};
      registers<Rows>(products, row, sums);
      all = sum_quarters(sums);
    }
    if constexpr (kPairs || kColumns) {
      __m256i before;
      if constexpr (OfShape::kShort) {
        before = short_ends(row);
      } else {
        before = ends(row);
      }
      if constexpr (kPairs) {
        __m512i sums[2];
        pairs<OfShape>(products, row, before, sums);
        __m512i sum = _mm512_add_epi32(_mm512_unpacklo_epi64(sums[0], sums[1]),
                                       _mm512_unpackhi_epi64(sums[0], sums[1]));
        sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB));
        all = _mm512_mask_add_epi32(all, 0xaa55, all, sum);
      }
      if constexpr (kColumns) {
        __m512i sum = columns<OfShape>(products, row, before);
        sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_BADC));
        sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB));
        if constexpr (!OfShape::kWhole) {
          const __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
          return _mm_add_epi32(_mm512_castsi512_si128(_mm512_permutexvar_epi32(places, sum)),
                               _mm_set1_epi32(bias_));
        }
        all = _mm512_mask_add_epi32(all, 0x8421, all, sum);
      }
    }
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(
        _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)),
        _mm_set1_epi32(bias_));
  }

  static constexpr int kWidth = coded_width(Bits);
  static constexpr std::size_t kFields = fields_of(Bits);

  template <bool HasWhole, typename Function>
  void by_rest(const Function& f) const {
    switch (parts_.columns) {
      case 1:
        return f(Shape<HasWhole, kNoPairs, 1>());
      case 2:
        return f(Shape<HasWhole, kNoPairs, 2>());
      case 3:
        return f(Shape<HasWhole, kNoPairs, 3>());
    }
    if (bytes_ % kPair == 0) return f(Shape<HasWhole, kWholePairs, 0>());
    f(Shape<HasWhole, kPartOfPair, 0>());
  }

  static __mmask32 first_bytes(std::size_t n) {
    return n < kPair ? (__mmask32{1} << n) - 1 : ~__mmask32{0};
  }

  static __m512i broadcast_quad(const void* from) {
    std::int64_t quad;
    std::memcpy(&quad, from, sizeof quad);
    return _mm512_set1_epi64(quad);
  }
  // The end of a plane, a field further up, and the first state.
  template <typename Register>
  [[gnu::always_inline]] static Register before(Register end, Register state) {
    constexpr auto kUpper = static_cast<long long>(in_each_byte(0xffu << kWidth & 0xffu));
    return ((end << kWidth) & kUpper) | state;
  }
  static const std::uint64_t* state(const std::uint8_t* row) {
    return kFirstStates<kWidth>.bytes + row[0];
  }

  // Whole registers, the rows in turn, so that a load of the query serves all of them.
  template <int Rows>
  [[gnu::always_inline]] void registers(const RegisterProducts<Bits>& products,
                                        const std::uint8_t* const row[4], __m512i* sums) const {
    __m512i more[4] = {};
    const std::int8_t* query = query_.registers();
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const std::uint8_t* plane = row[r] + 1;
      PlaneBytes of;
      of.now = load512(plane);
      of.back = _mm512_alignr_epi64(
          of.now, before(broadcast_quad(plane + bytes_ - 8), broadcast_quad(state(row[r]))), 7);
      bytes_before<Bits>(of);
      add(products, of, plane, query, &sums[r], &more[r]);
    }
    for (std::size_t at = kBytes; at < parts_.whole; at += kBytes) {
      query += kFields * kBytes;
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const std::uint8_t* plane = row[r] + 1 + at;
        PlaneBytes of;
        of.now = load512(plane);
        of.back = load512(plane - 8);
        if constexpr (kBytesBefore<Bits>) {
          of.one = load512(plane - 1);
          of.five = load512(plane - 5);
        }
        add(products, of, plane, query, &sums[r], &more[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) sums[r] = _mm512_add_epi32(sums[r], more[r]);
  }
  [[gnu::always_inline]] void add(const RegisterProducts<Bits>& products, PlaneBytes& of,
                                  const std::uint8_t* plane, const std::int8_t* query, __m512i* sum,
                                  __m512i* more) const {
    if constexpr (Bits == 3) {
      of.rest_even = load512(plane + bytes_);
      of.rest_odd = load512(plane + 2 * bytes_);
    }
    __m512i sums[2] = {*sum, *more};
    products.add(of, query, sums);
    *sum = sums[0];
    *more = sums[1];
  }

  // Byte `at` and the next of the planes, a quarter for each row.
  template <bool Whole>
  [[gnu::always_inline]] __m512i column(const std::uint8_t* const row[4], std::size_t at) const {
    const auto read = [&](int r) __attribute__((always_inline)) {
      return Whole ? load<__m128i>(row[r] + 1 + at)
                   : _mm_maskz_loadu_epi8(last_column_, row[r] + 1 + at);
    };
    const __m512i two = _mm512_inserti32x4(_mm512_castsi128_si512(read(0)), read(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(two, read(2), 2), read(3), 3);
  }
  // A quadword for each row.
  template <typename At>
  [[gnu::always_inline]] static __m256i quads(const At& at) {
    const auto two = [&](int r) __attribute__((always_inline)) {
      const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at(r)));
      return _mm_castps_si128(
          _mm_loadh_pi(_mm_castsi128_ps(first), reinterpret_cast<const __m64*>(at(r + 1))));
    };
    return _mm256_set_m128i(two(2), two(0));
  }

  // What the format thinks before the planes.
  [[gnu::always_inline]] __m256i ends(const std::uint8_t* const row[4]) const {
    return before(
        quads([&](int r) __attribute__((always_inline)) { return row[r] + 1 + bytes_ - 8; }),
        quads([&](int r) __attribute__((always_inline)) { return state(row[r]); }));
  }
  __m256i short_ends(const std::uint8_t* const row[4]) const {
    std::uint64_t quad[4];
    for (int r = 0; r < 4; ++r) quad[r] = bytes_before<Bits, true>(row[r], bytes_);
    return quads([&](int r) { return quad + r; });
  }

  // The pairs behind whole registers: half a register of sums for each row.
  template <typename OfShape>
  [[gnu::always_inline]] void pairs(const RegisterProducts<Bits>& products,
                                    const std::uint8_t* const row[4], __m256i before,
                                    __m512i* sums) const {
    __m512i more[2][2] = {};
    const auto whole = [](const std::uint8_t* from) __attribute__((always_inline)) {
      return load<__m256i>(from);
    };
    const auto part = [&](const std::uint8_t* from) __attribute__((always_inline)) {
      return _mm256_maskz_loadu_epi8(last_pair_, from);
    };
    const auto part_back = [&](const std::uint8_t* from) __attribute__((always_inline)) {
      return _mm256_maskz_loadu_epi8(last_pair_back_, from);
    };
    const auto add = [&](std::size_t at, const std::int8_t* query, bool first, const auto& now,
                         const auto& back) __attribute__((always_inline)) {
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const auto read = [&](std::size_t from, const auto& half) __attribute__((always_inline)) {
          return _mm512_inserti64x4(_mm512_castsi256_si512(half(row[2 * r] + 1 + from)),
                                    half(row[2 * r + 1] + 1 + from), 1);
        };
        PlaneBytes of;
        of.now = read(at, now);
        if (first) {
          const __m512i places = r == 0 ? _mm512_setr_epi64(8, 0, 1, 2, 9, 4, 5, 6)
                                        : _mm512_setr_epi64(10, 0, 1, 2, 11, 4, 5, 6);
          of.back = _mm512_permutex2var_epi64(of.now, places, _mm512_castsi256_si512(before));
        } else {
          of.back = read(at - 8, back);
        }
        bytes_before<Bits>(of);
        if constexpr (Bits == 3) {
          of.rest_even = read(bytes_ + at, now);
          of.rest_odd = read(2 * bytes_ + at, now);
        }
        products.add(of, query, more[r]);
      }
    };
    const std::int8_t* query = query_.rest();
    std::size_t at = parts_.whole;
    if constexpr (!OfShape::kWhole) {
      add(0, query, true, whole, whole);
      at += kPair;
      query += kFields * kBytes;
    }
    for (; at + kPair <= bytes_; at += kPair, query += kFields * kBytes) {
      add(at, query, false, whole, whole);
    }
    if constexpr (OfShape::kPairs == kPartOfPair) add(at, query, false, part, part_back);
    for (int r = 0; r < 2; ++r) sums[r] = _mm512_add_epi32(more[r][0], more[r][1]);
  }

  // The columns behind them: a quarter of sums for each row.
  template <typename OfShape>
  [[gnu::always_inline]] __m512i columns(const RegisterProducts<Bits>& products,
                                         const std::uint8_t* const row[4], __m256i before) const {
    __m512i sums[4] = {};
    const std::size_t first = parts_.whole;
    if constexpr (OfShape::kWhole) {
      before = quads([&](int r) __attribute__((always_inline)) { return row[r] + 1 + first - 8; });
    }
    // Upper halves of quarters count.
    __m512i last = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3),
                                            _mm512_castsi256_si512(before));
    const std::int8_t* query = query_.rest();
#pragma GCC unroll 4
    for (int c = 0; c < OfShape::kColumns; ++c) {
      const std::size_t at = first + static_cast<std::size_t>(c) * kColumn;
      const bool is_last = c == OfShape::kColumns - 1;
      const auto read = [&](std::size_t from) __attribute__((always_inline)) {
        return is_last ? column<false>(row, from) : column<true>(row, from);
      };
      PlaneBytes of;
      of.now = read(at);
      // The upper half of each quarter of the column before, the lower one of this.
      of.back = _mm512_castpd_si512(
          _mm512_shuffle_pd(_mm512_castsi512_pd(last), _mm512_castsi512_pd(of.now), 0x55));
      last = of.now;
      bytes_before<Bits>(of);
      if constexpr (Bits == 3) {
        of.rest_even = read(bytes_ + at);
        of.rest_odd = read(2 * bytes_ + at);
      }
      products.add(of, query + static_cast<std::size_t>(c) * kFields * kBytes, sums + c % 2 * 2);
    }
    return _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
  }

  RegisterProducts<Bits> products_;
  RowParts parts_;
  RowQuery<Bits> query_;
  std::size_t bytes_;
  __mmask16 last_column_;  // its bytes
  __mmask32 last_pair_, last_pair_back_;
  std::int32_t bias_;
};

void trellis_dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                      std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                      std::int32_t* dots) {
  const std::int32_t bias = -table.offset * query_of_planes(query, d, table.bits).sum;
  bool tail = trellis_tail(d, table.bits) > 0;  // still to be added
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const RowProducts<kBits> products(table, query.values, d - trellis_tail(d, kBits), bias);
#if defined(__AVX512VBMI__)
    const std::size_t bytes = trellis_plane_bytes(d, kBits);
    if (n > 1 && bytes > 0 && bytes < 8) {
      const EightRows<kBits> eight(table, products.query(), bytes, bias);
      const auto one = [&](const std::uint8_t* row) {
        std::int32_t dot = products.dot_short(row);
        if (tail) add_tail_products(row, 0, nullptr, 1, d, table, query, &dot);
        return dot;
      };
      const Tails tails(table, query.values, tail ? d : 0);
      if constexpr (kBits == 3) {
        if (tail) {
          eight.template dot_rows<true>(codes, stride, rows, n, dots, tails, one);
          tail = false;
          return;
        }
      }
      return eight.template dot_rows<false>(codes, stride, rows, n, dots, tails, one);
    }
#endif
    products.by_shape([&](auto shape) {
      products.template dot_rows<decltype(shape)>(codes, stride, rows, n, dots);
    });
  });
  if (!tail) return;
#if defined(__AVX512VBMI__)
  if (n > 1) {
    return add_tails(codes, stride, rows, n, d, Tails(table, query.values, d), dots);
  }
#endif
  add_tail_products(codes, stride, rows, n, d, table, query, dots);
}

}  // namespace
}  // namespace turboquant::kernels
