// Index files: the bytes of docs/index_format.md, and what happens to damaged ones.
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/io.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "index/checked_reader.h"
#include "index/checksum.h"
#include "index/payload.h"
#include "tests/index/faiss_leaks.h"
#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::error_of;
using test::expect_same;
using test::search;
using testing::HasSubstr;
using Bytes = std::vector<std::uint8_t>;

constexpr int kD = 19;
constexpr std::int64_t kN = 6;

// Where the parts of a flat file lie, from docs/index_format.md.
constexpr std::size_t kPayloadAt = 4 + 33 + 16 + 4 + 33 + 8 + 4 * kD + 9 + 4;
constexpr std::size_t kHeaderSize = 80;

Bytes bytes_of(const faiss::Index& index) {
  faiss::VectorIOWriter writer;
  turboquant::write_index(index, &writer);
  return writer.data;
}

std::unique_ptr<faiss::Index> read(const Bytes& bytes) {
  faiss::VectorIOReader reader;
  reader.data = bytes;
  return turboquant::read_index(&reader);
}

std::unique_ptr<faiss::Index> filled(const std::string& text,
                                     faiss::MetricType metric = faiss::METRIC_L2, int d = kD,
                                     std::int64_t n = kN) {
  auto index = index_factory(d, text, metric);
  test::fill(*index, clustered(static_cast<std::size_t>(n), static_cast<std::size_t>(d), 1));
  return index;
}

std::uint64_t word(const Bytes& bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, size);
  return value;
}

template <class T>
void put(Bytes& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

// Makes a changed header consistent again, so that a test reaches what lies behind the checksum.
void repair_header(Bytes& bytes, std::size_t at = kPayloadAt) {
  put(bytes, at + 72, checksum(bytes.data() + at, 72));
}

TEST(IndexFile, LayoutIsTheDocumentedOne) {
  const auto index = filled("TQ3", faiss::METRIC_L2);
  const auto& tq = dynamic_cast<const IndexTurboQuant&>(*index);
  const Bytes file = bytes_of(*index);
  const std::size_t codes = static_cast<std::size_t>(kN) * tq.code_size;
  ASSERT_EQ(file.size(), kPayloadAt + kHeaderSize + codes + 8);
  EXPECT_EQ(0, std::memcmp(file.data(), "IwFl", 4));
  EXPECT_EQ(0, std::memcmp(file.data() + kPayloadAt - 4, "ilTQTQINDEX\n", 12));
  EXPECT_EQ(word(file, kPayloadAt + 8, 4), 1U);    // version
  EXPECT_EQ(word(file, kPayloadAt + 12, 4), 80U);  // header size
  EXPECT_EQ(word(file, kPayloadAt + 16, 1), 0U);   // flat
  EXPECT_EQ(word(file, kPayloadAt + 17, 1), 3U);   // bits
  EXPECT_EQ(word(file, kPayloadAt + 18, 1), 0U);   // estimator
  EXPECT_EQ(word(file, kPayloadAt + 19, 1), 0U);   // projection
  EXPECT_EQ(word(file, kPayloadAt + 20, 1), 1U);   // L2
  EXPECT_EQ(word(file, kPayloadAt + 21, 3), 0U);   // flags, reserved
  EXPECT_EQ(word(file, kPayloadAt + 24, 4), static_cast<std::uint64_t>(kD));
  EXPECT_EQ(word(file, kPayloadAt + 28, 4), tq.code_size);
  EXPECT_EQ(word(file, kPayloadAt + 32, 8), QuantizerOptions::kDefaultSeed);
  EXPECT_EQ(word(file, kPayloadAt + 40, 8), static_cast<std::uint64_t>(kN));
  EXPECT_EQ(word(file, kPayloadAt + 48, 8), 1U);
  EXPECT_EQ(word(file, kPayloadAt + 64, 8), 0U);
  EXPECT_EQ(word(file, kPayloadAt + 72, 8), checksum(file.data() + kPayloadAt, 72));
  EXPECT_EQ(0, std::memcmp(file.data() + kPayloadAt + kHeaderSize, tq.codes.data(), codes));
  EXPECT_EQ(word(file, file.size() - 8, 8), checksum(tq.codes.data(), codes));
}

// The checksum, written again from its description.
TEST(IndexFile, Checksum) {
  for (std::size_t size = 0; size < 100; ++size) {
    Bytes bytes(size);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::uint8_t>(i * 37 + 1);
    const auto step = [](std::uint64_t a, std::uint64_t b) {
      return ((a ^ b) << 29 | (a ^ b) >> 35) * 0x9e3779b97f4a7c15u;
    };
    std::uint64_t lanes[4] = {1, 2, 3, 4};
    for (std::size_t i = 0; i * 8 < size; ++i) {
      std::uint64_t value = 0;
      for (std::size_t j = 0; j < 8 && i * 8 + j < size; ++j) {
        value |= std::uint64_t{bytes[i * 8 + j]} << (8 * j);
      }
      lanes[i % 4] = step(lanes[i % 4], value);
    }
    std::uint64_t expected = size;
    for (const std::uint64_t lane : lanes) expected = step(expected, lane);
    EXPECT_EQ(checksum(bytes.data(), size), expected);
    Checksum pieces;
    pieces.add(bytes.data(), size / 32 * 32);
    pieces.add(bytes.data() + size / 32 * 32, size % 32);
    EXPECT_EQ(pieces.value(), expected);
  }
}

TEST(IndexFile, ReadFromMemoryOrFileEqually) {
  for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
    const auto index = filled("TQ4", metric, 33, 50);
    const Bytes file = bytes_of(*index);
    const auto queries = clustered(5, 33, 2);
    const auto memory = read_flat_index(file.data(), file.size());
    expect_same(search(*memory, queries, 5), search(*index, queries, 5));
    Bytes longer = file;
    longer.push_back(0);
    EXPECT_THAT(error_of([&] { read_flat_index(longer.data(), longer.size()); }),
                HasSubstr("1 bytes follow"));
  }
}

// A stream that can neither seek nor tell its size: FAISS's reader, our hook, memory in steps.
struct Pipe : faiss::IOReader {
  explicit Pipe(const Bytes& b) : bytes(b) {}
  std::size_t operator()(void* to, std::size_t size, std::size_t n) override {
    const std::size_t items = std::min(n, (bytes.size() - at) / size);
    if (items > 0) std::memcpy(to, bytes.data() + at, items * size);
    at += items * size;
    return items;
  }
  const Bytes& bytes;
  std::size_t at = 0;
};

TEST(IndexFile, ReadFromAPipe) {
  for (const char* text : {"TQ3", "IVF4,TQ3", "IDMap,TQ2"}) {
    const auto index = filled(text, faiss::METRIC_L2, kD, 200);
    const Bytes file = bytes_of(*index);
    Pipe pipe(file);
    const auto found = turboquant::read_index(&pipe);
    EXPECT_EQ(pipe.at, file.size());
    const auto queries = clustered(5, kD, 2);
    expect_same(search(*found, queries, 3), search(*index, queries, 3));
  }
}

TEST(IndexFile, SeveralIndexesInOneFile) {
  const std::string path = testing::TempDir() + "several.index";
  const auto a = filled("TQ3");
  const auto b = filled("IDMap,TQ4");
  {
    faiss::FileIOWriter writer(path.c_str());
    turboquant::write_index(*a, &writer);
    turboquant::write_index(*b, &writer);
    turboquant::write_index(*a, &writer);
  }
  faiss::FileIOReader reader(path.c_str());
  const auto queries = clustered(5, kD, 2);
  for (const faiss::Index* expected : {a.get(), b.get(), a.get()}) {
    const auto found = turboquant::read_index(&reader);
    expect_same(search(*found, queries, 3), search(*expected, queries, 3));
  }
  std::remove(path.c_str());
}

#if TURBOQUANT_FAISS_VERSION >= 11100
TEST(IndexFile, ReadThroughMappedMemory) {
  const std::string path = testing::TempDir() + "mapped.index";
  for (const char* text : {"TQ3", "IDMap,TQ3", "L2norm,TQ3"}) {
    const auto index = filled(text, faiss::METRIC_L2, kD, 50);
    turboquant::write_index(*index, path);
    const auto found = turboquant::read_index(path, faiss::IO_FLAG_MMAP_IFC);
    const auto queries = clustered(5, kD, 2);
    expect_same(search(*found, queries, 3), search(*index, queries, 3));
  }
  std::remove(path.c_str());
}
#endif

TEST(IndexFile, EveryTruncationIsRefused) {
  for (const char* text : {"TQ3", "TQ2qjl", "IDMap2,TQ3", "TQ2,Refine(TQ4)", "L2norm,TQ1"}) {
    const Bytes file = bytes_of(*filled(text));
    for (std::size_t size = 0; size < file.size(); ++size) {
      const Bytes shorter(file.begin(), file.begin() + static_cast<long>(size));
      EXPECT_THROW(read(shorter), faiss::FaissException) << text << " " << size;
    }
  }
}

TEST(IndexFile, EveryTruncatedFileOnDiskIsRefused) {
  const std::string path = testing::TempDir() + "truncated.index";
  const Bytes file = bytes_of(*filled("TQ3"));
  for (std::size_t size = 0; size < file.size(); size += 13) {
    std::FILE* out = std::fopen(path.c_str(), "wb");
    ASSERT_EQ(std::fwrite(file.data(), 1, size, out), size);
    std::fclose(out);
    EXPECT_THROW(turboquant::read_index(path), faiss::FaissException) << size;
  }
  std::remove(path.c_str());
  EXPECT_THROW(turboquant::read_index(path), faiss::FaissException);
}

// A flipped bit is refused, or it is one that nothing reads: the two ignored integers of FAISS's
// headers, nprobe, and the zero vector.
TEST(IndexFile, EveryFlippedBitOfAFlatFile) {
  for (const char* text : {"TQ3", "TQ2qjl", "TQ4cos", "TQ3c"}) {
    const auto index = filled(text);
    const Bytes file = bytes_of(*index);
    const auto queries = clustered(3, kD, 2);
    const auto expected = search(*index, queries, 4);
    std::size_t read_well = 0;
    for (std::size_t bit = 0; bit < 8 * file.size(); ++bit) {
      Bytes flipped = file;
      flipped[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
      // FAISS's reader gets these, which name another class or dimension, and is not ours to test.
      const bool seen_by_faiss = bit / 8 < 8;
      try {
        const auto found =
            seen_by_faiss ? read_flat_index(flipped.data(), flipped.size()) : read(flipped);
        expect_same(search(*found, queries, 4), expected);
        ++read_well;
      } catch (const faiss::FaissException&) {
      }
    }
    EXPECT_EQ(read_well, 8U * (16 + 8 + 16 + 4 * kD)) << text;
  }
}

TEST(IndexFile, EveryFlippedBitOfThePayloadOfAnInvertedFile) {
  const auto index = filled("IVF2,TQ3", faiss::METRIC_L2, 8, 90);
  const Bytes file = bytes_of(*index);
  const auto magic = std::search(file.begin(), file.end(), kPayloadMagic, kPayloadMagic + 8);
  ASSERT_NE(magic, file.end());
  const auto queries = clustered(3, 8, 2);
  for (auto bit = 8 * static_cast<std::size_t>(magic - file.begin()); bit < 8 * file.size();
       ++bit) {
    Bytes flipped = file;
    flipped[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
    try {
      search(*read(flipped), queries, 4);  // codes and ids are FAISS's format, without checksum
    } catch (const faiss::FaissException&) {
    }
  }
}

TEST(IndexFile, RefusesWithASentence) {
  const Bytes file = bytes_of(*filled("TQ3"));
  const auto refuse = [&](std::size_t at, auto value) {
    Bytes changed = file;
    put(changed, kPayloadAt + at, value);
    repair_header(changed);
    return error_of([&] { read(changed); });
  };
  EXPECT_THAT(refuse(8, std::uint32_t{3}), HasSubstr("format 3 is unknown"));
  EXPECT_THAT(refuse(8, std::uint32_t{2}), HasSubstr("format 2 does not allow"));
  EXPECT_THAT(refuse(21, std::uint8_t{16}), HasSubstr("format 1 does not allow"));
  EXPECT_THAT(refuse(17, std::uint8_t{5}), HasSubstr("does not allow"));
  EXPECT_THAT(refuse(19, std::uint8_t{1}), HasSubstr("does not allow"));
  EXPECT_THAT(refuse(21, std::uint8_t{2}), HasSubstr("does not allow"));
  EXPECT_THAT(refuse(64, std::uint64_t{1}), HasSubstr("does not allow"));
  EXPECT_THAT(refuse(24, std::uint32_t{65537}), HasSubstr("dimension 65537"));
  EXPECT_THAT(refuse(24, std::uint32_t{30}), HasSubstr("parameters make"));
  EXPECT_THAT(refuse(28, std::uint32_t{99}), HasSubstr("codes of 99 bytes"));
  EXPECT_THAT(refuse(40, ~std::uint64_t{0}), HasSubstr("out of range"));
  EXPECT_THAT(refuse(40, std::uint64_t{1} << 40), HasSubstr("ends inside the codes"));
  EXPECT_THAT(refuse(40, std::uint64_t{5}), HasSubstr("checksum"));
  EXPECT_THAT(refuse(48, std::uint64_t{2}), HasSubstr("2 inverted lists"));
  EXPECT_THAT(refuse(32, std::uint64_t{7}), HasSubstr("another rotation or level table"));
  Bytes damaged = file;
  damaged[kPayloadAt + 40] ^= 1;
  EXPECT_THAT(error_of([&] { read(damaged); }), HasSubstr("header is damaged"));
  damaged = file;
  damaged[kPayloadAt + kHeaderSize + 3] ^= 1;
  EXPECT_THAT(error_of([&] { read(damaged); }), HasSubstr("codes are damaged"));
}

TEST(IndexFile, FactorsThatAreNotFiniteAreRefused) {
  const auto index = filled("TQ3");
  const auto& tq = dynamic_cast<const IndexTurboQuant&>(*index);
  Bytes file = bytes_of(*index);
  const std::size_t codes = kPayloadAt + kHeaderSize;
  put(file, codes + 3 * tq.code_size - 4, HUGE_VALF);
  put(file, file.size() - 8, checksum(file.data() + codes, kN * tq.code_size));
  EXPECT_THAT(error_of([&] { read(file); }), HasSubstr("factors of vector 2"));
}

TEST(IndexFile, HugeClaimsTakeNoMemory) {
  Bytes file = bytes_of(*filled("TQ3"));
  put(file, 8, std::int64_t{1} << 35);
  put(file, kPayloadAt + 40, std::uint64_t{1} << 35);
  repair_header(file);
  EXPECT_THAT(error_of([&] { read(file); }), HasSubstr("ends inside the codes"));
  Pipe pipe(file);  // its size is unknown: memory grows with what arrives
  EXPECT_THAT(error_of([&] { turboquant::read_index(&pipe); }), HasSubstr("ends inside the codes"));
}

TEST(IndexFile, EmptyIndexesRoundTrip) {
  for (const char* text : {"TQ3", "IDMap,TQ3", "IVF4,TQ3", "HNSW8,TQ3"}) {
    const auto index = index_factory(kD, text, faiss::METRIC_L2);
    const auto found = read(bytes_of(*index));
    EXPECT_EQ(found->ntotal, 0) << text;
    EXPECT_EQ(found->is_trained, index->is_trained) << text;
    EXPECT_TRUE(contains_turboquant(*found)) << text;
  }
}

TEST(IndexFile, SeedAndOptionsSurvive) {
  IndexOptions options = parse_index_name("TQ2qjlgcos");
  options.seed = 42;
  IndexTurboQuant index(kD, options, faiss::METRIC_INNER_PRODUCT);
  const auto x = clustered(4, kD, 1);
  index.add(4, x.data());
  const auto found = read(bytes_of(index));
  const auto& tq = dynamic_cast<const IndexTurboQuant&>(*found);
  EXPECT_EQ(index_name(tq.options()), "TQ2qjlgcos");
  EXPECT_EQ(tq.options().seed, 42U);
  EXPECT_EQ(tq.metric_type, faiss::METRIC_INNER_PRODUCT);
}

TEST(IndexFile, CentresSurvive) {
  const auto index = filled("TQ2c");
  const Bytes file = bytes_of(*index);
  EXPECT_EQ(file[kPayloadAt + 21], 4 | 8);
  const std::size_t plain = bytes_of(*filled("TQ2")).size();
  EXPECT_EQ(file.size(), plain + 4 * kN + 4 * kD + 8);
  const auto found = read(file);
  const auto& tq = dynamic_cast<const IndexTurboQuant&>(*found);
  EXPECT_EQ(tq.centre(), dynamic_cast<const IndexTurboQuant&>(*index).centre());
  const IndexTurboQuant empty(kD, parse_index_name("TQ2ccos"));
  const auto still_empty = read(bytes_of(empty));
  EXPECT_TRUE(dynamic_cast<const IndexTurboQuant&>(*still_empty).centre().empty());
  const auto x = clustered(4, kD, 1);
  still_empty->add(4, x.data());
  EXPECT_EQ(dynamic_cast<const IndexTurboQuant&>(*still_empty).centre().size(), kD);
}

TEST(IndexFile, AWriterThatFailsIsReported) {
  struct Full : faiss::IOWriter {
    std::size_t left;
    std::size_t operator()(const void*, std::size_t size, std::size_t n) override {
      if (size * n > left) return 0;
      left -= size * n;
      return n;
    }
  } full;
  const auto index = filled("TQ3");
  for (full.left = 0; full.left < kPayloadAt + kHeaderSize; ++full.left) {
    const std::size_t left = full.left;
    EXPECT_THROW(turboquant::write_index(*index, &full), faiss::FaissException);
    full.left = left;
  }
}

}  // namespace
}  // namespace turboquant
