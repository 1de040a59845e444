// AVX2: 32 coordinates a register; u8 x s8 products through maddubs.
#include <immintrin.h>

#define TQ_VECTOR_BYTES 32
#include "kernels/backends.h"
#include "kernels/by_bits.h"
#include "kernels/dot_by.h"
#include "kernels/vector_table.h"
// Use what the headers above define.
#include "kernels/avx2/blocks.h"
#include "kernels/avx2/trellis.h"

namespace turboquant::kernels::avx2 {
namespace {

template <int Bits>
void decode_bits(const std::uint8_t* packed, std::size_t d, __m256i table, std::int8_t* out) {
  std::size_t i = 0;
  for (; i + kBlock <= d; i += kBlock, packed += block_bytes(Bits)) {
    store(out + i, _mm256_shuffle_epi8(table, expand<Bits, 0>(packed)));
    store(out + i + 32, _mm256_shuffle_epi8(table, expand<Bits, 1>(packed)));
  }
  if (i < d) {
    std::uint8_t codes[64];
    unpack_tail(packed, d - i, Bits, codes);
    store(out + i, _mm256_shuffle_epi8(table, load256(codes)));
    store(out + i + 32, _mm256_shuffle_epi8(table, load256(codes + 32)));
  }
}

void decode(const std::uint8_t* packed, std::size_t d, int bits, const std::int8_t table[16],
            std::int8_t* out) {
  const __m256i t = broadcast_table(table, 0);
  by_bits(bits, [&](auto b) { decode_bits<decltype(b)::kValue>(packed, d, t, out); });
}

template <int Bits>
[[gnu::noinline]] __m256i add_tail(__m256i sum, const std::uint8_t* tail, std::size_t n,
                                   __m256i table, const std::int8_t* query) {
  std::uint8_t codes[64];
  unpack_tail(tail, n, Bits, codes);
  const __m256i low = _mm256_shuffle_epi8(table, load256(codes));
  const __m256i high = _mm256_shuffle_epi8(table, load256(codes + 32));
  return dot_block<Bits>(sum, low, high, load256(query), load256(query + 32));
}

// Products of the last coordinates of four rows, of which there are few.
template <int Bits>
class FewTails {
 public:
  FewTails(const std::int8_t* query, std::size_t n) : query_(query), n_(n) {}

  // Apart from dot_four of rows, whose sums would go through memory if a loop that is not unrolled
  // could reach them.
  [[gnu::noinline]] __m128i dot_four(const std::uint8_t* const tail[4], __m256i table) const {
    __m256i sums[4];
    for (int r = 0; r < 4; ++r) {
      sums[r] = add_tail<Bits>(_mm256_setzero_si256(), tail[r], n_, table, query_);
    }
    return sum_lanes(sums[0], sums[1], sums[2], sums[3]);
  }

 private:
  const std::int8_t* query_;
  std::size_t n_;
};

// Four rows at a time, so that each load of the query serves four products.
template <int Bits, typename Tails>
inline __m128i dot_four(const std::uint8_t* const row[4], std::size_t d, __m256i table,
                        const std::int8_t* query, const Tails& tails) {
  __m256i sums[4] = {};
  std::size_t i = 0, at = 0;
  for (; i + kBlock <= d; i += kBlock, at += block_bytes(Bits)) {
    const __m256i query_low = load256(query + i);
    const __m256i query_high = load256(query + i + 32);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m256i low = _mm256_shuffle_epi8(table, expand<Bits, 0>(row[r] + at));
      const __m256i high = _mm256_shuffle_epi8(table, expand<Bits, 1>(row[r] + at));
      sums[r] = dot_block<Bits>(sums[r], low, high, query_low, query_high);
    }
  }
  const __m128i dots = sum_lanes(sums[0], sums[1], sums[2], sums[3]);
  if (i == d) return dots;
  const std::uint8_t* const tail[] = {row[0] + at, row[1] + at, row[2] + at, row[3] + at};
  return _mm_add_epi32(dots, tails.dot_four(tail, table));
}

template <int Bits>
inline std::int32_t dot_one(const std::uint8_t* row, std::size_t d, __m256i table,
                            const std::int8_t* query) {
  __m256i sums[2] = {};  // blocks in turn, so that additions do not wait for one another
  std::size_t i = 0;
  for (std::size_t at = 0; i + kBlock <= d; i += kBlock, at += block_bytes(Bits)) {
    const __m256i low = _mm256_shuffle_epi8(table, expand<Bits, 0>(row + at));
    const __m256i high = _mm256_shuffle_epi8(table, expand<Bits, 1>(row + at));
    const __m256i sum =
        dot_block<Bits>(sums[0], low, high, load256(query + i), load256(query + i + 32));
    sums[0] = sums[1];
    sums[1] = sum;
  }
  __m256i sum = _mm256_add_epi32(sums[0], sums[1]);
  if (i < d) sum = add_tail<Bits>(sum, row + packed_bytes(i, Bits), d - i, table, query + i);
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

void dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
              std::size_t n, std::size_t d, const CodeTable& table, QueryView query,
              std::int32_t* dots) {
  const __m256i levels = broadcast_table(table.levels, table.offset);
  const std::int32_t bias = -table.offset * query.sum;
  by_bits(table.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::kValue;
    const auto walk = [&](const auto& tails) {
      dot_by<4, kPrefetchBytes>(
          codes, stride, rows, n, dots,
          [&](const std::uint8_t* const row[4]) {
            return _mm_add_epi32(dot_four<kBits>(row, d, levels, query.values, tails),
                                 _mm_set1_epi32(bias));
          },
          [&](const std::uint8_t* row) {
            return dot_one<kBits>(row, d, levels, query.values) + bias;
          });
    };
    const std::int8_t* last = query.values + d / kBlock * kBlock;
    if (d % kBlock == 0 || n < kManyTails) {
      walk(FewTails<kBits>(last, d % kBlock));
    } else {
      walk(TailProducts<kBits>(last, d % kBlock));
    }
  });
}

inline __m256i broadcast_four(const std::int8_t* levels) {
  std::int32_t four;
  std::memcpy(&four, levels, 4);
  return _mm256_set1_epi32(four);
}

// Rows x 16 queries. Sums pair sums are added in int16 before they are widened, as many as fit for
// the levels of the bit width (docs/code_format.md); the more there are, the fewer rows leave
// registers for them.
template <int Rows, int Sums>
void dot_tile_sums(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
                   const std::int8_t* group, const std::int32_t* bias, std::int32_t* dots) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::size_t r = 0; r < n_rows; r += Rows) {
    const std::int8_t* row = rows + r * d_padded;
    __m256i acc[Rows][2];
#pragma GCC unroll 4
    for (auto& a : acc) {
      a[0] = load256(bias);
      a[1] = load256(bias + 8);
    }
    for (std::size_t i = 0; i < d_padded; i += 4 * Sums) {
      const std::int8_t* q = group + i * kLane;
      __m256i part[Rows][2];
#pragma GCC unroll 16
      for (std::size_t s = 0; s < Sums; ++s) {
        const __m256i q0 = load256(q + 4 * s * kLane);
        const __m256i q1 = load256(q + 4 * s * kLane + 32);
#pragma GCC unroll 4
        for (std::size_t k = 0; k < Rows; ++k) {
          const __m256i levels = broadcast_four(row + k * d_padded + i + 4 * s);
          const __m256i p0 = _mm256_maddubs_epi16(levels, q0);
          const __m256i p1 = _mm256_maddubs_epi16(levels, q1);
          part[k][0] = s == 0 ? p0 : _mm256_add_epi16(part[k][0], p0);
          part[k][1] = s == 0 ? p1 : _mm256_add_epi16(part[k][1], p1);
        }
      }
#pragma GCC unroll 4
      for (std::size_t k = 0; k < Rows; ++k) {
        acc[k][0] = _mm256_add_epi32(acc[k][0], _mm256_madd_epi16(part[k][0], ones));
        acc[k][1] = _mm256_add_epi32(acc[k][1], _mm256_madd_epi16(part[k][1], ones));
      }
    }
#pragma GCC unroll 4
    for (std::size_t k = 0; k < Rows; ++k) {
      store(dots + (r + k) * kLane, acc[k][0]);
      store(dots + (r + k) * kLane + 8, acc[k][1]);
    }
  }
}

void dot_tile(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
              const CodeTable& table, const std::int8_t* queries, std::size_t groups,
              const std::int32_t* bias, std::int32_t* dots) {
  for (std::size_t g = 0; g < groups; ++g) {
    const std::int8_t* group = queries + g * kLane * d_padded;
    const std::int32_t* start = bias + g * kLane;
    std::int32_t* out = dots + g * n_rows * kLane;
    // So many pair sums of at most 4 * 127 * offset fit in 16 bits.
    if (table.offset <= 4) {
      dot_tile_sums<4, 16>(rows, n_rows, d_padded, group, start, out);
    } else if (table.offset <= 16) {
      dot_tile_sums<2, 4>(rows, n_rows, d_padded, group, start, out);
    } else if (table.offset <= 32) {
      dot_tile_sums<2, 2>(rows, n_rows, d_padded, group, start, out);
    } else {
      dot_tile_sums<4, 1>(rows, n_rows, d_padded, group, start, out);
    }
  }
}

struct FloatLanes : TrellisLanes {
  using Float = __m256;
  static constexpr std::size_t kWidth = 8;
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float broadcast(float x) { return _mm256_set1_ps(x); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static unsigned passing(const std::int32_t* dots, Float scale, Float term, Float cutoff) {
    const Float product = _mm256_mul_ps(_mm256_cvtepi32_ps(load256(dots)), scale);
    const Float passes = _mm256_cmp_ps(_mm256_sub_ps(product, term), cutoff, _CMP_NLE_UQ);
    return static_cast<unsigned>(_mm256_movemask_ps(passes));
  }
  static __m256i table(const std::uint8_t* entries) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
  }
  static Bytes8 low(__m256i table, Bytes8 bytes) {
    const __m256i v = reinterpret_cast<__m256i>(bytes);
    return reinterpret_cast<Bytes8>(
        _mm256_shuffle_epi8(table, _mm256_and_si256(v, _mm256_set1_epi8(15))));
  }
  static Bytes8 high(__m256i table, Bytes8 bytes) {
    return low(table,
               reinterpret_cast<Bytes8>(_mm256_srli_epi16(reinterpret_cast<__m256i>(bytes), 4)));
  }
};

}  // namespace

const KernelTable kTable = vector_table<FloatLanes>("avx2", true, 2, decode, trellis_decode,
                                                    trellis_dot_rows, dot_rows, dot_tile);

}  // namespace turboquant::kernels::avx2
