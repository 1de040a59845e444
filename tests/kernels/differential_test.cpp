// Every backend computes the bits that the scalar reference computes, for every length around the
// vector widths, every bit width, and data at odd addresses. One test instance per backend; it
// fails when the backend it names is not the one that runs.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"
#include "quantizer/aligned.h"
#include "quantizer/levels.h"
#include "quantizer/trellis.h"

namespace turboquant::kernels {
namespace {

std::vector<std::size_t> lengths() {
  std::vector<std::size_t> all;
  for (std::size_t d = 1; d <= 300; ++d) all.push_back(d);
  for (const std::size_t d : {384, 768, 1000, 1536, 3072}) all.push_back(d);
  return all;
}

std::vector<std::string> backends() {
  std::vector<std::string> names;
  for (const char* const* name = available(); *name != nullptr; ++name) names.emplace_back(*name);
  return names;
}

template <typename T>
void expect_same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(T)), 0);
}

// A buffer of exactly n elements that starts one byte past an aligned address, so that sanitizers
// see reads past the end and processors that dislike misalignment fault.
class OddBytes {
 public:
  explicit OddBytes(const std::vector<std::uint8_t>& bytes)
      : storage_(std::make_unique<std::uint8_t[]>(bytes.size() + 1)) {
    std::memcpy(data(), bytes.data(), bytes.size());
  }
  std::uint8_t* data() { return storage_.get() + 1; }

 private:
  std::unique_ptr<std::uint8_t[]> storage_;
};

// Bytes right behind or right before a page that must not be touched, whatever instructions do it.
class PageBytes {
 public:
  PageBytes() : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    void* all = mmap(nullptr, page_ * (kPages + 2), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    first_ = static_cast<std::uint8_t*>(all);
    mprotect(first_, page_, PROT_NONE);
    mprotect(end(), page_, PROT_NONE);
  }
  ~PageBytes() { munmap(first_, page_ * (kPages + 2)); }
  PageBytes(const PageBytes&) = delete;
  PageBytes& operator=(const PageBytes&) = delete;
  const std::uint8_t* put(const std::vector<std::uint8_t>& bytes, bool at_end) {
    EXPECT_LE(bytes.size(), page_ * kPages);
    std::uint8_t* to = at_end ? end() - bytes.size() : first_ + page_;
    std::memcpy(to, bytes.data(), bytes.size());
    return to;
  }

 private:
  static constexpr std::size_t kPages = 24;
  std::uint8_t* end() const { return first_ + page_ * (kPages + 1); }

  std::size_t page_;
  std::uint8_t* first_ = nullptr;
};

class Backend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_NE(find(GetParam().c_str()), nullptr);
    ASSERT_EQ(GetParam(), tested().name);
  }
  const KernelTable& tested() const { return *find(GetParam().c_str()); }
  const KernelTable& reference() const { return *find("scalar"); }

  std::vector<float> normals(std::size_t n, float deviation = 1) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> v(n);
    for (float& x : v) x = normal(random_);
    return v;
  }
  std::vector<std::uint8_t> codes(std::size_t n, int bits) {
    std::vector<std::uint8_t> v(n);
    for (auto& c : v) c = static_cast<std::uint8_t>(random_() & ((1u << bits) - 1));
    return v;
  }
  std::vector<std::int8_t> query(std::size_t d) {
    std::vector<std::int8_t> v(round_up(d, kBlock), 0);
    std::uniform_int_distribution<int> value(-127, 127);
    for (std::size_t i = 0; i < d; ++i) v[i] = static_cast<std::int8_t>(value(random_));
    return v;
  }

  std::mt19937 random_{7};
};

TEST_P(Backend, NormSquared) {
  for (const std::size_t d : lengths()) {
    const std::vector<float> x = normals(d, 1e15f);
    const double expected = reference().norm_squared(x.data(), d);
    EXPECT_EQ(tested().norm_squared(x.data(), d), expected) << d;
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      std::vector<float> y = x;
      y[random_() % d] = bad;
      EXPECT_FALSE(std::isfinite(tested().norm_squared(y.data(), d))) << d;
    }
  }
}

TEST_P(Backend, ScaleAndMultiply) {
  for (const std::size_t d : lengths()) {
    for (const double factor : {3.7e-3, 1e38, 1e-38, 1e44}) {
      const std::vector<float> x = normals(d, factor > 1e40 ? 1e-44f : 1);
      std::vector<float> a(d), b(d);
      reference().scale(x.data(), d, factor, a.data());
      tested().scale(x.data(), d, factor, b.data());
      expect_same_bits(a, b);
      reference().multiply(a.data(), x.data(), d);
      tested().multiply(b.data(), x.data(), d);
      expect_same_bits(a, b);
    }
  }
}

TEST_P(Backend, Fwht) {
  for (std::size_t n = 1; n <= kMaxDimension; n *= 2) {
    std::vector<float> a = normals(n);
    std::vector<float> b = a;
    reference().fwht(a.data(), n);
    tested().fwht(b.data(), n);
    expect_same_bits(a, b);
  }
}

TEST_P(Backend, Quantize) {
  for (int bits = 1; bits <= 4; ++bits) {
    const CodeTable& table = level_table(bits);
    for (const std::size_t d : lengths()) {
      std::vector<float> y = normals(d);
      // Thresholds themselves, both signs, and both zeros.
      for (std::size_t i = 0; i < d; i += 5) {
        const float t = table.thresholds[random_() % 8];
        y[i] = std::isfinite(t) ? (i % 2 == 0 ? t : -t) : (i % 2 == 0 ? 0.0f : -0.0f);
      }
      std::vector<std::uint8_t> a(d), b(d);
      const float expected = reference().quantize(y.data(), d, table, a.data());
      const float got = tested().quantize(y.data(), d, table, b.data());
      expect_same_bits(a, b);
      EXPECT_EQ(expected, got) << d << " " << bits;
    }
  }
}

TEST_P(Backend, PackAndDecode) {
  for (int bits = 1; bits <= 4; ++bits) {
    std::int8_t table[16];
    for (int i = 0; i < 16; ++i) {
      table[i] = static_cast<std::int8_t>(37 * (i & ((1 << bits) - 1)) - 100);
    }
    for (const std::size_t d : lengths()) {
      const std::vector<std::uint8_t> wanted = codes(d, bits);
      std::vector<std::uint8_t> a(packed_bytes(d, bits)), b(packed_bytes(d, bits), 0xff);
      reference().pack(wanted.data(), d, bits, a.data());
      tested().pack(wanted.data(), d, bits, b.data());
      expect_same_bits(a, b);
      OddBytes odd(b);
      std::vector<std::int8_t> out(round_up(d, kBlock));
      tested().decode(odd.data(), d, bits, table, out.data());
      for (std::size_t i = 0; i < d; ++i) ASSERT_EQ(out[i], table[wanted[i]]) << d << " " << i;
    }
  }
}

TEST_P(Backend, QuantizeQuery) {
  for (const std::size_t d : lengths()) {
    const std::vector<float> u = normals(d);
    EXPECT_EQ(tested().max_abs(u.data(), d), reference().max_abs(u.data(), d));
    const float factor = 127 / reference().max_abs(u.data(), d);
    std::vector<std::int8_t> a(round_up(d, kBlock)), b(round_up(d, kBlock), 99);
    const std::int32_t expected = reference().quantize_query(u.data(), d, factor, a.data());
    EXPECT_EQ(tested().quantize_query(u.data(), d, factor, b.data()), expected);
    expect_same_bits(a, b);
  }
}

TEST_P(Backend, DotRows) {
  PageBytes pages;
  for (int bits = 1; bits <= 4; ++bits) {
    for (const std::size_t d : lengths()) {
      // Backends take few rows and many in other ways.
      const std::size_t n = 1 + random_() % (random_() % 2 == 0 ? 11 : 60);
      const std::size_t stride = packed_bytes(d, bits) + random_() % 9;
      std::vector<std::uint8_t> rows(stride * (n - 1) + packed_bytes(d, bits));
      for (auto& byte : rows) byte = static_cast<std::uint8_t>(random_());
      const std::uint8_t* bytes = pages.put(rows, random_() % 2 == 0);
      const std::vector<std::int8_t> q = query(d);
      std::int32_t sum = 0;
      for (const auto v : q) sum += v;
      std::vector<std::uint32_t> order(n + 3);
      for (auto& r : order) r = static_cast<std::uint32_t>(random_() % n);
      for (const bool chosen : {false, true}) {
        const std::size_t count = chosen ? order.size() : n;
        std::vector<std::int32_t> a(count), b(count);
        reference().dot_rows(bytes, stride, chosen ? order.data() : nullptr, count, d,
                             level_table(bits), {q.data(), sum}, a.data());
        tested().dot_rows(bytes, stride, chosen ? order.data() : nullptr, count, d,
                          level_table(bits), {q.data(), sum}, b.data());
        expect_same_bits(a, b);
      }
    }
  }
}

// The largest sums that the formats allow must not overflow any intermediate.
TEST_P(Backend, DotRowsAtExtremes) {
  for (int bits = 1; bits <= 4; ++bits) {
    for (const std::size_t d : {64, 3072, 65536}) {
      for (const int sign : {1, -1}) {
        const std::vector<std::uint8_t> row(packed_bytes(d, bits), sign > 0 ? 0xff : 0x00);
        std::vector<std::int8_t> q(d, 127);
        std::int32_t dot = 0;
        tested().dot_rows(row.data(), row.size(), nullptr, 1, d, level_table(bits),
                          {q.data(), static_cast<std::int32_t>(127 * d)}, &dot);
        EXPECT_EQ(dot, sign * level_table(bits).offset * 127 * static_cast<std::int32_t>(d));
      }
    }
  }
}

// The levels of scalar codes, and what trellis codes can reach.
TEST_P(Backend, DotTile) {
  for (int bits = 1; bits <= 8; ++bits) {
    CodeTable table = level_table(bits > 4 ? bits - 4 : bits);
    if (bits > 4) {
      table.offset = trellis_table(bits - 4).offset;
      table.levels[0] = static_cast<std::int8_t>(-table.offset);
      table.levels[15] = static_cast<std::int8_t>(table.offset);
    }
    for (const std::size_t d : {64, 128, 320, 384, 1024}) {
      for (const std::size_t n_rows : {16, 48, 64}) {
        for (std::size_t groups = 1; groups <= 5; ++groups) {
          AlignedVector<std::int8_t> levels(n_rows * d), rows(n_rows * d);
          for (std::size_t i = 0; i < levels.size(); ++i) {
            // Mostly the largest magnitude: the worst case for narrow sums.
            const std::size_t code =
                random_() % 4 == 0 ? random_() % 16 : (i / d % 2 == 0 ? 15 : 0);
            levels[i] = table.levels[code];
            rows[i] =
                static_cast<std::int8_t>(levels[i] + (tested().unsigned_rows ? table.offset : 0));
          }
          AlignedVector<std::int8_t> queries(groups * kLane * d);
          AlignedVector<std::int32_t> zero(groups * kLane, 0), bias(groups * kLane, 0);
          for (std::size_t i = 0; i < queries.size(); ++i) {
            queries[i] = static_cast<std::int8_t>(random_() % 4 == 0
                                                      ? static_cast<int>(random_() % 255) - 127
                                                      : (i / 4 % 2 == 0 ? 127 : -127));
          }
          if (tested().unsigned_rows) {
            for (std::size_t i = 0; i < queries.size(); ++i) {
              const std::size_t q = i / (kLane * d) * kLane + i / 4 % kLane;
              bias[q] -= table.offset * queries[i];
            }
          }
          AlignedVector<std::int32_t> a(groups * n_rows * kLane), b(groups * n_rows * kLane);
          reference().dot_tile(levels.data(), n_rows, d, table, queries.data(), groups, zero.data(),
                               a.data());
          tested().dot_tile(rows.data(), n_rows, d, table, queries.data(), groups, bias.data(),
                            b.data());
          ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * 4), 0)
              << bits << " " << d << " " << n_rows << " " << groups;
        }
      }
    }
  }
}

TEST_P(Backend, TrellisEncode) {
  for (int bits = 1; bits <= 4; ++bits) {
    const TrellisTable& table = trellis_table(bits);
    for (const std::size_t d : lengths()) {
      // Coordinates of the expected size, of every size up to overflow, and equal ones, whose many
      // equal sums show the order of preference.
      std::vector<std::vector<float>> inputs = {normals(d), std::vector<float>(d, 0.0f)};
      if (d % 7 == 0 || d > 300) {
        inputs.push_back(normals(d, 30));
        inputs.push_back(normals(d, 1e37f));
        inputs.emplace_back(d, -1.0f);
        std::vector<float> alternating(d);
        for (std::size_t i = 0; i < d; ++i) alternating[i] = i / 3 % 2 == 0 ? 5.0f : -5.0f;
        inputs.push_back(alternating);
      }
      for (const std::vector<float>& y : inputs) {
        const std::size_t bytes = trellis_bytes(d, bits);
        std::vector<std::uint8_t> a(bytes + 1, 0xee), b(bytes + 1, 0xee);
        AlignedVector<std::uint8_t> work(trellis_work_bytes(d, bits));
        reference().trellis_encode(y.data(), d, table, work.data(), a.data());
        tested().trellis_encode(y.data(), d, table, work.data(), b.data());
        ASSERT_EQ(a, b) << bits << " " << d;
        EXPECT_EQ(b[bytes], 0xee);
      }
    }
  }
}

// A row of a trellis code by the words of docs/code_format.md, in order of time.
std::vector<int> trellis_levels(const std::vector<std::uint8_t>& row, std::size_t d,
                                const TrellisTable& table) {
  const auto width = static_cast<std::size_t>(table.bits == 3 ? 1 : table.bits);
  const std::size_t in_planes = table.bits == 3 ? d / 8 * 8 : d;
  const std::size_t bytes = (in_planes * width + 7) / 8;
  const std::size_t whole = d / 64 * 64;
  std::vector<int> levels(d, 1000);
  std::vector<int> coded;  // from the oldest on
  for (int k = 8; k >= 1; --k) coded.push_back(row[0] >> (k - 1) & 1);
  const auto level = [&](int rest) {
    const int* now = &coded.back();
    const int low = table.bits == 4 ? now[-5] : now[-2] ^ now[-5] ^ now[-7];
    const int high = now[0] ^ now[-1] ^ now[-8];
    return table.levels[4 * rest + 2 * high + low];
  };
  for (std::size_t field = 0; field < 8 / width; ++field) {
    for (std::size_t byte = 0; byte < bytes; ++byte) {
      const int code = row[1 + byte] >> (width * field) & ((1 << width) - 1);
      coded.push_back(code >> (width - 1));
      std::size_t i;
      if (byte < whole * width / 8) {
        i = byte / (8 * width) * 64 + field * 8 * width + byte % (8 * width);
      } else {
        i = whole + field * (bytes - whole * width / 8) + byte - whole * width / 8;
      }
      if (i >= in_planes) continue;
      int rest = code & ((1 << (width - 1)) - 1);
      if (table.bits == 3) {
        rest = row[1 + bytes + bytes * (field % 2) + byte] >> (2 * (field / 2)) & 3;
      }
      EXPECT_EQ(levels[i], 1000) << "two places for one coordinate";
      levels[i] = level(rest);
    }
  }
  for (std::size_t i = in_planes; i < d; ++i) {
    int code = 0;
    for (int k = 0; k < 3; ++k) {
      const std::size_t bit = 3 * (i - in_planes) + static_cast<std::size_t>(k);
      code |= (row[1 + 3 * bytes + bit / 8] >> bit % 8 & 1) << k;
    }
    coded.push_back(code >> 2);
    levels[i] = level(code & 3);
  }
  return levels;
}

TEST_P(Backend, TrellisDecode) {
  for (int bits = 1; bits <= 4; ++bits) {
    const TrellisTable& table = trellis_table(bits);
    for (const std::size_t d : lengths()) {
      const std::vector<std::uint8_t> row = codes(trellis_bytes(d, bits), 8);
      OddBytes odd(row);
      for (const std::int32_t add : {0, table.offset}) {
        std::vector<std::int8_t> out(round_up(d, kBlock));
        tested().trellis_decode(odd.data(), d, table, add, out.data());
        const std::vector<int> levels = trellis_levels(row, d, table);
        for (std::size_t i = 0; i < d; ++i) {
          ASSERT_EQ(out[i], static_cast<std::int8_t>(levels[i] + add))
              << bits << " " << d << " " << i;
        }
      }
    }
  }
}

TEST_P(Backend, TrellisDotRows) {
  std::vector<std::size_t> all = lengths();
  // Whole registers and parts of all kinds behind them, where a coordinate has one bit of a plane.
  for (const std::size_t d : {1100, 1200, 1280, 1300, 1400, 1450}) all.push_back(d);
  PageBytes pages;
  for (int bits = 1; bits <= 4; ++bits) {
    const TrellisTable& table = trellis_table(bits);
    for (const std::size_t d : all) {
      const std::size_t n = 1 + random_() % 17;
      const std::size_t stride = trellis_bytes(d, bits) + random_() % 9;
      const std::uint8_t* bytes =
          pages.put(codes(stride * (n - 1) + trellis_bytes(d, bits), 8), random_() % 2 == 0);
      std::vector<std::int8_t> q = query(d);
      if (d % 3 == 0) std::fill_n(q.begin(), d, static_cast<std::int8_t>(d % 2 == 0 ? 127 : -127));
      std::int32_t sum = 0;
      for (const auto v : q) sum += v;
      std::vector<std::uint32_t> order(n + 3);
      for (auto& r : order) r = static_cast<std::uint32_t>(random_() % n);
      for (const bool chosen : {false, true}) {
        const std::size_t count = chosen ? order.size() : n;
        std::vector<std::int32_t> a(count), b(count);
        reference().trellis_dot_rows(bytes, stride, chosen ? order.data() : nullptr, count, d,
                                     table, {q.data(), sum}, a.data());
        tested().trellis_dot_rows(bytes, stride, chosen ? order.data() : nullptr, count, d, table,
                                  {q.data(), sum}, b.data());
        expect_same_bits(a, b);
      }
    }
  }
}

TEST_P(Backend, TilesOfAttention) {
  constexpr std::size_t kStride = 130;
  const std::vector<float> steps = normals(kLane);
  for (const std::size_t n : {1, 3, 4, 7, 8, 15, 16, 17, 31, 64, 128}) {
    std::vector<std::int32_t> dots(n * kLane);
    for (auto& dot : dots) dot = static_cast<std::int32_t>(random_() % 2000001) - 1000000;
    const std::vector<float> factors = normals(n);
    std::vector<float> scores = normals(kLane * kStride);
    std::vector<float> expected = scores;
    tested().add_tile_scores(dots.data(), n, factors.data(), steps.data(), scores.data(), kStride);
    reference().add_tile_scores(dots.data(), n, factors.data(), steps.data(), expected.data(),
                                kStride);
    EXPECT_EQ(scores, expected) << n;
    scores.resize(n * kLane);
    expected.resize(n * kLane);
    tested().add_tile_sums(dots.data(), n, steps.data(), scores.data());
    reference().add_tile_sums(dots.data(), n, steps.data(), expected.data());
    EXPECT_EQ(scores, expected) << n;
  }
}

TEST_P(Backend, TakeOff) {
  for (const std::size_t n : {0, 1, 15, 16, 17, 31, 64, 65, 128}) {
    std::vector<std::int8_t> values(n);
    for (auto& value : values) value = static_cast<std::int8_t>(random_() % 255 - 127);
    std::vector<float> x = normals(n, 100);
    std::vector<float> expected = x;
    const float sum = tested().take_off(values.data(), 0.37f, n, x.data());
    EXPECT_EQ(sum, reference().take_off(values.data(), 0.37f, n, expected.data())) << n;
    EXPECT_EQ(x, expected) << n;
  }
}

std::vector<std::int32_t> flat(const std::vector<Hit>& hits, std::size_t n) {
  std::vector<std::int32_t> all;
  for (std::size_t i = 0; i < n; ++i) {
    all.push_back(static_cast<std::int32_t>(hits[i].row));
    all.push_back(static_cast<std::int32_t>(hits[i].query));
    all.push_back(hits[i].dot);
  }
  return all;
}

TEST_P(Backend, Select) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (const std::size_t n : {1, 7, 8, 15, 16, 17, 31, 64, 100}) {
    for (const bool with_term : {false, true}) {
      std::vector<std::int32_t> dots(n * kLane);
      for (auto& dot : dots) dot = static_cast<std::int32_t>(random_() % 2001) - 1000;
      std::vector<float> scales = normals(n), terms = normals(n, 300), of_query = normals(kLane);
      std::vector<float> cutoffs = normals(kLane, 500);
      cutoffs[3] = nan;
      cutoffs[5] = inf;
      cutoffs[7] = -inf;
      scales[n / 2] = inf;
      const float* term = with_term ? terms.data() : nullptr;
      std::vector<Hit> a(n * kLane), b(n * kLane);
      const std::size_t expected = reference().select_tile(
          dots.data(), n, scales.data(), term, of_query.data(), cutoffs.data(), a.data());
      const std::size_t got = tested().select_tile(dots.data(), n, scales.data(), term,
                                                   of_query.data(), cutoffs.data(), b.data());
      EXPECT_GE(expected, n);  // the NaN column passes whole
      EXPECT_EQ(flat(a, expected), flat(b, got));
      for (const float cutoff : cutoffs) {
        const std::size_t rows_expected = reference().select_rows(
            dots.data(), n, scales.data(), term, of_query[0], cutoff, a.data());
        const std::size_t rows_got = tested().select_rows(dots.data(), n, scales.data(), term,
                                                          of_query[0], cutoff, b.data());
        EXPECT_EQ(flat(a, rows_expected), flat(b, rows_got));
      }
    }
  }
}

TEST_P(Backend, SignSums) {
  for (const std::size_t n_bytes : {1, 2, 3, 7, 48, 96, 192, 511, 512, 513, 1025, 8192}) {
    for (const bool largest : {false, true}) {  // the worst case for narrow sums
      std::vector<std::uint8_t> plane(n_bytes * kBlock), tables(2 * n_bytes * 16);
      for (auto& byte : plane) byte = static_cast<std::uint8_t>(random_());
      for (auto& entry : tables) {
        entry = static_cast<std::uint8_t>(largest ? kMostSign : random_() % (kMostSign + 1));
      }
      OddBytes odd(plane);
      std::vector<std::int32_t> a(kBlock), b(kBlock);
      reference().sign_sums(odd.data(), n_bytes, tables.data(), -1234, 4096, a.data());
      tested().sign_sums(odd.data(), n_bytes, tables.data(), -1234, 0, b.data());
      expect_same_bits(a, b);
      const auto most = static_cast<std::int32_t>(2 * n_bytes * kMostSign) - 1234;
      if (largest) {
        EXPECT_EQ(b[63], most);
      }
    }
  }
}

TEST_P(Backend, HalvesToFloatsAndBack) {
  std::vector<std::uint16_t> finite;
  for (std::uint32_t h = 0; h < 65536; ++h) {
    if ((h >> 10 & 31) != 31) finite.push_back(static_cast<std::uint16_t>(h));
  }
  std::vector<float> values(finite.size());
  std::vector<float> expected(finite.size());
  tested().to_float(finite.data(), finite.size(), values.data());
  reference().to_float(finite.data(), finite.size(), expected.data());
  expect_same_bits(values, expected);
  std::vector<std::uint16_t> back(finite.size());
  tested().to_half(values.data(), values.size(), back.data());
  expect_same_bits(back, finite);
}

TEST_P(Backend, ToHalf) {
  std::vector<float> values = {0.0f,          -0.0f,      1e-8f,      2.98e-8f,     6.0e-8f,
                               6.1035156e-5f, 6.1e-5f,    65504.f,    65519.f,      65520.f,
                               -1e30f,        0x1.002p0f, 0x1.006p0f, 0x1.ffep-15f, 0x1.fffp-15f,
                               2049.f,        2051.f};
  for (const int exponent : {-26, -16, -14, -3, 0, 9, 15}) {
    for (const float x : normals(300, std::ldexp(1.0f, exponent))) values.push_back(x);
  }
  for (std::size_t n = values.size() - 40; n <= values.size(); ++n) {
    std::vector<std::uint16_t> out(n);
    std::vector<std::uint16_t> expected(n);
    tested().to_half(values.data(), n, out.data());
    reference().to_half(values.data(), n, expected.data());
    expect_same_bits(out, expected);
  }
}

TEST_P(Backend, FloatProducts) {
  for (const std::size_t n : lengths()) {
    const std::vector<float> a = normals(n);
    std::vector<float> y = normals(n);
    std::vector<float> expected = y;
    const float value = tested().dot(a.data(), y.data(), n);
    EXPECT_EQ(value, reference().dot(a.data(), y.data(), n)) << n;
    tested().add_scaled(a.data(), 0.37f, n, y.data());
    reference().add_scaled(a.data(), 0.37f, n, expected.data());
    expect_same_bits(y, expected);
  }
}

TEST_P(Backend, Exponentials) {
  for (const std::size_t n : lengths()) {
    std::vector<float> x = normals(n, 30);
    for (float& value : x) value = -std::fabs(value) + 5;
    x[n / 2] = -std::numeric_limits<float>::infinity();
    x[n / 3] = 5;
    std::vector<float> out(n);
    std::vector<float> expected(n);
    const float sum = tested().exp_sum(x.data(), n, 5, out.data());
    EXPECT_EQ(sum, reference().exp_sum(x.data(), n, 5, expected.data())) << n;
    expect_same_bits(out, expected);
    for (std::size_t i = 0; i < n; ++i) {
      const double exact = std::exp(static_cast<double>(x[i]) - 5);
      EXPECT_NEAR(out[i], x[i] - 5 <= -87 ? 0 : exact, 4e-7 * exact) << x[i];
    }
    tested().exp_sum(x.data(), n, 5, x.data());
    expect_same_bits(x, out);
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, Backend, testing::ValuesIn(backends()),
                         [](const auto& instance) { return instance.param; });

}  // namespace
}  // namespace turboquant::kernels
