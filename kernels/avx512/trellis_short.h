// Trellis rows of few bytes on AVX-512 with byte permutations: eight rows side by side, a quadword
// each. So are planes of less than eight bytes, and of any 3-bit rows the coordinates behind the
// planes. Internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels/trellis_planes.h"

namespace turboquant::kernels {
namespace {

/// Of eight rows up to eight bytes each.
class EightQuads {
 public:
  explicit EightQuads(std::size_t bytes)
      : even_(static_cast<__mmask16>((1u << bytes) - 1)),
        odd_(static_cast<__mmask16>(even_ << 8)) {}
  /// Bytes `at` and the next of each row, zeros behind.
  [[gnu::always_inline]] __m512i load(const std::uint8_t* const row[8], std::size_t at) const {
    const auto two = [&](int r) __attribute__((always_inline)) {
      const __m128i even = _mm_maskz_loadu_epi8(even_, row[r] + at);
      return _mm_mask_loadu_epi8(even, odd_, row[r + 1] + at - 8);
    };
    const __m256i low = _mm256_set_m128i(two(2), two(0));
    const __m256i high = _mm256_set_m128i(two(6), two(4));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }

 private:
  __mmask16 even_, odd_;
};

/// Byte j is first + step * j, modulo 64: shifts of _mm512_multishift_epi64_epi8.
constexpr long long byte_shifts(int first, int step) {
  std::uint64_t all = 0;
  for (int j = 0; j < 8; ++j) {
    all |= static_cast<std::uint64_t>((first + step * j) & 63) << (8 * j);
  }
  return static_cast<long long>(all);
}
template <int First, int Step>
inline __m512i multishift(__m512i quads) {
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(byte_shifts(First, Step)), quads);
}

/// The planes with the coded bits of eight rows, less than eight bytes each, in fields of Width
/// bits.
template <int Width>
class ShortPlanes {
 public:
  explicit ShortPlanes(std::size_t bytes)
      : bytes_(bytes),
        rows_(bytes + 1),
        up_(_mm512_set1_epi64(static_cast<long long>(8 * (7 - bytes)))),
        down_(_mm512_set1_epi64(static_cast<long long>(8 * bytes))),
        on_top_(_mm512_set1_epi64(
            static_cast<long long>(bytes == 0 ? 0 : ~std::uint64_t{0} << 8 * (8 - bytes)))) {}

  struct Bits {
    __m512i plane;
    __m512i before;  // what the format thinks in the eight bytes before it
    __m512i end;     // its last eight bytes, those before it among them
  };
  [[gnu::always_inline]] Bits load(const std::uint8_t* const row[8]) const {
    // The first state below the plane.
    const __m512i all = rows_.load(row, 0);
    const __m512i top = _mm512_and_si512(_mm512_sllv_epi64(all, up_), on_top_);
    if (bytes_ == 0) {
      const __m512i end = multishift<64 + 7 - 7, -1>(all);
      return {end, end, end};
    }
    // On top of the lowest field of each byte; whatever else in it is of no account.
    const __m512i states = multishift<64 + 7 - (Width - 1), -1>(all);
    // Each turn makes the bytes right that lie a plane further back.
    __m512i end = top;
    __m512i before = either_field(end, states);
    for (std::size_t right = bytes_; right < 8; right += bytes_) {
      end = _mm512_or_si512(top, _mm512_srlv_epi64(before, down_));
      before = either_field(end, states);
    }
    end = _mm512_or_si512(top, _mm512_srlv_epi64(before, down_));
    return {_mm512_srli_epi64(all, 8), before, end};
  }

 private:
  static __m512i either_field(__m512i end, __m512i states) {
    constexpr auto kUpper = static_cast<long long>(in_each_byte(0xffu << Width & 0xffu));
    return either(_mm512_set1_epi64(kUpper), _mm512_slli_epi64(end, Width), states);
  }

  std::size_t bytes_;
  EightQuads rows_;
  __m512i up_, down_, on_top_;
};

/// Sums of the two lanes of each quadword.
inline __m256i sum_pairs(__m512i sum) {
  return _mm512_cvtepi64_epi32(_mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_CDAB)));
}

/// What 3-bit rows have behind their planes.
class Tails {
 public:
  Tails(const TrellisTable& table, const std::int8_t* query, std::size_t d)
      : n_(trellis_tail(d, 3)),
        at_(1 + 3 * trellis_plane_bytes(d, 3)),
        streams_(packed_bytes(n_, 3)) {
    // An index has the rest in bits 0 and 1, the high parity in bit 2, the low one in bit 3.
    alignas(16) std::int8_t levels[16];
    for (int i = 0; i < 16; ++i) {
      levels[i] = table.levels[4 * (i & 3) + 2 * (i >> 2 & 1) + (i >> 3)];
    }
    table_ = broadcast_table(levels, table.offset);
    std::uint64_t quad = 0;
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < n_; ++i) {
      const std::int8_t value = query[d - n_ + i];
      quad |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(value)) << 8 * i;
      sum += value;
    }
    query_ = _mm512_set1_epi64(static_cast<long long>(quad));
    bias_ = _mm512_set1_epi64(static_cast<std::uint32_t>(-table.offset * sum));
  }
  /// Adds the products to the lanes of each row. ends: the last eight bytes of the plane.
  [[gnu::always_inline]] __m512i add(__m512i sum, const std::uint8_t* const row[8],
                                     __m512i ends) const {
    const __m512i fields = multishift<0, 3>(streams_.load(row, at_));
    const __m512i now = _mm512_slli_epi16(fields, 5);  // the coded bits on top of each byte
    const __m512i high = exclusive_or(now, ends, funnel<8>(now, ends));
    const __m512i low = funnels<16, 40, 56>(now, ends);
    const __m512i index = either(
        _mm512_set1_epi8(0x03), fields,
        either(_mm512_set1_epi8(0x04), _mm512_srli_epi16(high, 5), _mm512_srli_epi16(low, 4)));
    return _mm512_dpbusd_epi32(_mm512_add_epi32(sum, bias_), look_up(table_, index), query_);
  }

 private:
  std::size_t n_, at_;
  EightQuads streams_;
  __m512i table_, query_, bias_;
};

/// Products of such rows.
template <int Bits>
class EightRows {
 public:
  EightRows(const TrellisTable& table, const PlaneQuery<Bits>& query, std::size_t bytes,
            std::int32_t bias)
      : products_(table), planes_(bytes), rest_(bytes), bytes_(bytes), bias_(bias) {
    for (std::size_t field = 0; field < fields_of(Bits); ++field) {
      store(query_ + field * kBytes,
            _mm512_set1_epi64(load<long long>(query.of(static_cast<int>(field), 0))));
    }
  }
  template <bool HasTail, typename One>
  [[gnu::noinline]] void dot_rows(const std::uint8_t* codes, std::size_t stride,
                                  const std::uint32_t* rows, std::size_t n, std::int32_t* dots,
                                  const Tails& all_tails, const One& one) const {
    const RegisterProducts<Bits> products = products_;  // in registers
    const ShortPlanes<coded_width(Bits)> planes = planes_;
    const Tails tails = all_tails;
    dot_by<8, kPrefetchBytes>(
        codes, stride, rows, n, dots,
        [&](const std::uint8_t* const row[8]) __attribute__((always_inline)) {
          const auto bits = planes.load(row);
          PlaneBytes of;
          of.now = bits.plane;
          of.back = bits.before;
          if constexpr (Bits == 3) {
            of.rest_even = rest_.load(row, 1 + bytes_);
            of.rest_odd = rest_.load(row, 1 + 2 * bytes_);
          }
          __m512i sums[2] = {};
          if constexpr (HasTail) sums[0] = tails.add(sums[0], row, bits.end);
          products.add(of, query_, sums);
          return _mm256_add_epi32(sum_pairs(_mm512_add_epi32(sums[0], sums[1])),
                                  _mm256_set1_epi32(bias_));
        },
        one);
  }

 private:
  RegisterProducts<Bits> products_;
  ShortPlanes<coded_width(Bits)> planes_;
  EightQuads rest_;
  std::size_t bytes_;
  std::int32_t bias_;
  alignas(64) std::int8_t query_[fields_of(Bits) * kBytes];
};

/// add_tail_products.
[[gnu::noinline]] void add_tails(const std::uint8_t* codes, std::size_t stride,
                                 const std::uint32_t* rows, std::size_t n, std::size_t d,
                                 const Tails& all_tails, std::int32_t* dots) {
  const Tails tails = all_tails;  // in registers
  const std::size_t bytes = trellis_plane_bytes(d, 3);
  const ShortPlanes<1> planes(bytes < 8 ? bytes : 0);
  const EightQuads ends(8);
  const std::uint8_t* row[8];
  for (std::size_t j = 0; j < n; j += 8) {
    for (std::size_t r = 0; r < 8; ++r) {
      const std::size_t i = j + r < n ? j + r : n - 1;
      row[r] = codes + stride * (rows != nullptr ? rows[i] : i);
      __asm__("" : "+r"(row[r]));  // as in dot_by
    }
    const __m512i back = bytes < 8 ? planes.load(row).end : ends.load(row, 1 + bytes - 8);
    const __m512i sum = tails.add(_mm512_setzero_si512(), row, back);
    const auto live = static_cast<__mmask8>(n - j < 8 ? (1u << (n - j)) - 1 : 0xff);
    const __m256i before = _mm256_maskz_loadu_epi32(live, dots + j);
    _mm256_mask_storeu_epi32(dots + j, live, _mm256_add_epi32(before, sum_pairs(sum)));
  }
}

}  // namespace
}  // namespace turboquant::kernels
