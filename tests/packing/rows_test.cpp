// Packed rows: nothing is lost, the size is near the entropy, damage is seen
// (docs/packed_codes.md).
#include "packing/rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/code_layout.h"
#include "packing/streams.h"
#include "packing/three_bits.h"
#include "turboquant/quantizer.h"

namespace turboquant::packing {
namespace {

using Bytes = std::vector<std::uint8_t>;

Bytes random_bytes(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  Bytes bytes(n);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

struct Rows {
  RowLayout layout;
  std::size_t n;
  Bytes bytes;
};

// Codes of Gaussian vectors of different lengths.
Rows quantized(std::size_t d, int bits, std::size_t n, bool with_norm = false,
               Estimator estimator = Estimator::kTurboQuant) {
  QuantizerOptions options;
  options.dimension = d;
  options.bits = bits;
  options.with_norm = with_norm;
  options.estimator = estimator;
  const Quantizer codec(options);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(n * d);
  for (float& value : x) value = normal(random);
  Rows rows{{d, bits, codec.code_size()}, n, Bytes(n * codec.code_size())};
  codec.quantize(x.data(), n, rows.bytes.data());
  return rows;
}

Bytes unpacked(const Rows& rows, const Bytes& packed) {
  Bytes out(rows.bytes.size(), 0xcd);
  if (!unpack_rows(rows.layout, packed.data(), packed.size(), rows.n, out.data())) return {};
  return out;
}

TEST(ThreeBits, SplitsAndJoinsAnyBytes) {
  for (std::size_t d = 1; d <= 200; ++d) {
    const std::size_t packed = kernels::packed_bytes(d, 3);
    const Bytes code = random_bytes(packed, static_cast<std::uint32_t>(d));
    Bytes distances(distance_bytes(d), 0xaa);
    Bytes signs(sign_bytes(d), 0xaa);
    Bytes back(packed, 0xaa);
    split_three_bits(code.data(), d, distances.data(), signs.data());
    join_three_bits(distances.data(), signs.data(), d, back.data());
    ASSERT_EQ(back, code) << d;
  }
}

TEST(ThreeBits, DistancesForgetTheSign) {
  // Rows of ranks that mirror one another have equal distances and opposite signs.
  constexpr std::size_t kD = 64;
  Bytes code = random_bytes(kernels::packed_bytes(kD, 3), 1);
  Bytes mirrored = code;
  for (std::uint8_t& byte : mirrored) byte = static_cast<std::uint8_t>(~byte);
  Bytes distances(distance_bytes(kD)), other_distances(distance_bytes(kD));
  Bytes signs(sign_bytes(kD)), other_signs(sign_bytes(kD));
  split_three_bits(code.data(), kD, distances.data(), signs.data());
  split_three_bits(mirrored.data(), kD, other_distances.data(), other_signs.data());
  EXPECT_EQ(distances, other_distances);
  for (std::size_t i = 0; i < signs.size(); ++i) EXPECT_EQ(signs[i] ^ other_signs[i], 0xff);
}

TEST(PackedRows, ComeBackAsTheyWere) {
  for (const std::size_t d : {1u, 7u, 50u, 64u, 99u, 100u, 384u}) {
    for (int bits = 1; bits <= 4; ++bits) {
      for (const std::size_t n : {0u, 1u, 2u, 300u}) {
        const Rows rows = quantized(d, bits, n, d % 2 == 1);
        const Bytes packed = pack_rows(rows.layout, rows.bytes.data(), n);
        ASSERT_EQ(unpacked(rows, packed), rows.bytes) << d << " x " << bits << ", " << n;
      }
    }
  }
}

TEST(PackedRows, AnyBytesComeBack) {
  for (const std::size_t d : {3u, 11u, 75u}) {  // with bits that no code uses
    for (int bits = 1; bits <= 4; ++bits) {
      Rows rows{{d, bits, kernels::packed_bytes(d, bits) + 5}, 500, {}};
      rows.bytes = random_bytes(rows.n * rows.layout.code_size, 3);
      ASSERT_EQ(unpacked(rows, pack_rows(rows.layout, rows.bytes.data(), rows.n)), rows.bytes);
      std::fill(rows.bytes.begin(), rows.bytes.end(), 0x5a);
      ASSERT_EQ(unpacked(rows, pack_rows(rows.layout, rows.bytes.data(), rows.n)), rows.bytes);
    }
  }
}

TEST(PackedRows, ManyGroups) {
  Rows rows = quantized(70, 3, 80000);
  ASSERT_GT(rows.n, 2 * group_rows(rows.layout));
  const Bytes packed = pack_rows(rows.layout, rows.bytes.data(), rows.n);
  EXPECT_EQ(unpacked(rows, packed), rows.bytes);
}

TEST(PackedRows, TakeAboutTheirEntropy) {
  if (!can_code()) GTEST_SKIP() << "built without zstd";
  // Bits per coordinate of Lloyd-Max cells of N(0, 1), and what Huffman's code may add.
  const double entropy[] = {0, 1, 1.911, 2.825, 3.765};
  for (int bits = 2; bits <= 4; ++bits) {
    for (const std::size_t d : {384u, 50u}) {
      const Rows rows = quantized(d, bits, 4000);
      const Bytes packed = pack_rows(rows.layout, rows.bytes.data(), rows.n);
      const double factors = 32.0;
      const double per_coordinate =
          (static_cast<double>(packed.size()) * 8 / static_cast<double>(rows.n) - factors) /
          static_cast<double>(d);
      EXPECT_LT(per_coordinate, entropy[bits] * 1.012) << bits << " bits, d = " << d;
    }
  }
}

TEST(PackedRows, NeverLargerThanSaid) {
  GroupScratch scratch;
  Rows rows{{64, 4, 40}, 1000, random_bytes(40000, 5)};
  const Bytes packed = pack_group(rows.layout, rows.bytes.data(), rows.n, scratch);
  EXPECT_LE(packed.size(), most_group_bytes(rows.layout, rows.n));
  EXPECT_GE(packed.size(), least_group_bytes(rows.layout, rows.n));
  std::fill(rows.bytes.begin(), rows.bytes.end(), 0);
  EXPECT_GE(pack_group(rows.layout, rows.bytes.data(), rows.n, scratch).size(),
            least_group_bytes(rows.layout, rows.n));
}

TEST(PackedRows, EveryFlippedBitIsSeen) {
  const Rows rows = quantized(20, 3, 40);
  const Bytes packed = pack_rows(rows.layout, rows.bytes.data(), rows.n);
  for (std::size_t bit = 0; bit < 8 * packed.size(); ++bit) {
    Bytes damaged = packed;
    damaged[bit / 8] = static_cast<std::uint8_t>(damaged[bit / 8] ^ 1u << (bit % 8));
    const Bytes out = unpacked(rows, damaged);
    ASSERT_TRUE(out.empty() || out == rows.bytes) << bit;  // zstd has bits without meaning
  }
}

TEST(PackedRows, EveryTruncationIsSeen) {
  const Rows rows = quantized(64, 4, 100);
  const Bytes packed = pack_rows(rows.layout, rows.bytes.data(), rows.n);
  for (std::size_t size = 0; size < packed.size(); ++size) {
    ASSERT_TRUE(
        unpacked(rows, Bytes(packed.begin(), packed.begin() + static_cast<long>(size))).empty());
  }
  Bytes longer = packed;
  longer.push_back(0);
  EXPECT_TRUE(unpacked(rows, longer).empty());
}

// The bytes of a writer without a coder, from the document alone: every reader takes them.
TEST(PackedRows, StoredStreamsAreRead) {
  const RowLayout layout{4, 2, 5};  // 1 byte of codes, a float
  const Bytes rows = {0x1b, 1, 2, 3, 4, 0xe4, 5, 6, 7, 8};
  Bytes group;
  const auto put32 = [](Bytes& to, std::uint32_t v) {
    for (int i = 0; i < 4; ++i) to.push_back(static_cast<std::uint8_t>(v >> (8 * i)));
  };
  // The checksum of docs/index_format.md of 10 bytes: words 0 and 1 go to lanes 0 and 1.
  const auto mix = [](std::uint64_t state, std::uint64_t word) {
    const std::uint64_t x = state ^ word;
    return ((x << 29) | (x >> 35)) * 0x9e3779b97f4a7c15u;
  };
  std::uint64_t lanes[4] = {1, 2, 3, 4};
  lanes[0] = mix(1, 0x0605e4040302011bu);
  lanes[1] = mix(2, 0x0807);
  std::uint64_t sum = 10;
  for (const std::uint64_t lane : lanes) sum = mix(sum, lane);
  for (int i = 0; i < 8; ++i) group.push_back(static_cast<std::uint8_t>(sum >> (8 * i)));
  const Bytes streams[] = {{0x1b, 0xe4}, {1, 5}, {2, 6}, {3, 7}, {4, 8}};
  for (const Bytes& stream : streams) {
    put32(group, 2);
    group.insert(group.end(), stream.begin(), stream.end());
  }
  Bytes packed;
  put32(packed, static_cast<std::uint32_t>(group.size()));
  packed.insert(packed.end(), group.begin(), group.end());
  Bytes out(rows.size());
  ASSERT_TRUE(unpack_rows(layout, packed.data(), packed.size(), 2, out.data()));
  EXPECT_EQ(out, rows);
}

}  // namespace
}  // namespace turboquant::packing
