// Index files with packed codes: the same index comes back, and what cannot work says so.
#include <faiss/IndexIDMap.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/io.h>
#include <faiss/index_io.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "index/carrier.h"
#include "index/checksum.h"
#include "index/payload.h"
#include "packing/streams.h"
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

constexpr int kD = 32;

Bytes bytes_of(const faiss::Index& index, bool pack) {
  faiss::VectorIOWriter writer;
  turboquant::write_index(index, &writer, {pack});
  return writer.data;
}

std::unique_ptr<faiss::Index> read(const Bytes& bytes, int io_flags = 0) {
  faiss::VectorIOReader reader;
  reader.data = bytes;
  return turboquant::read_index(&reader, io_flags);
}

std::unique_ptr<faiss::Index> filled(const std::string& text, std::size_t n,
                                     faiss::MetricType metric = faiss::METRIC_L2) {
  auto index = index_factory(kD, text, metric);
  test::fill(*index, clustered(n, kD, 1));
  return index;
}

std::size_t payload_at(const Bytes& file) {
  const auto at = std::search(file.begin(), file.end(), kPayloadMagic, kPayloadMagic + 8);
  return static_cast<std::size_t>(at - file.begin());
}

// A stream that knows neither its size nor how to seek.
struct Pipe : faiss::IOReader {
  explicit Pipe(Bytes bytes) : data(std::move(bytes)) {}
  std::size_t operator()(void* to, std::size_t size, std::size_t n) override {
    const std::size_t items = std::min(n, (data.size() - at) / size);
    if (items > 0) std::memcpy(to, data.data() + at, size * items);
    at += size * items;
    return items;
  }
  Bytes data;
  std::size_t at = 0;
};

TEST(PackedFile, EveryIndexComesBackTheSame) {
  const auto queries = clustered(20, kD, 2);
  const std::vector<std::string> strings = {"TQ1",
                                            "TQ2",
                                            "TQ3",
                                            "TQ4",
                                            "TQ3t",
                                            "IVF16,TQ2t",
                                            "TQ3qjl",
                                            "TQ3mse",
                                            "TQ3cos",
                                            "TQ3ccos",
                                            "IDMap2,TQ3",
                                            "L2norm,TQ3",
                                            "TQ2,Refine(TQ4)",
                                            "HNSW8,TQ3",
                                            "IVF16,TQ4",
                                            "IVF16(TQ3),Flat"};
  for (const std::string& text : strings) {
    for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
      const auto index = filled(text, 500, metric);
      const Bytes packed = bytes_of(*index, true);
      const auto found = read(packed);
      ASSERT_EQ(test::type_of(*found), test::type_of(*index)) << text;
      expect_same(search(*found, queries, 10), search(*index, queries, 10));
      // What was read is written without packing as the index that was packed.
      if (text.find("HNSW") == std::string::npos && text.find("NSG") == std::string::npos) {
        EXPECT_EQ(bytes_of(*found, false), bytes_of(*index, false)) << text;
      }
      Pipe pipe(packed);
      expect_same(search(*turboquant::read_index(&pipe), queries, 10), search(*index, queries, 10));
    }
  }
}

TEST(PackedFile, IsSmaller) {
  if (!packing::can_code()) GTEST_SKIP() << "built without zstd";
  for (const char* text : {"TQ2", "TQ3", "TQ4", "IDMap2,TQ4"}) {
    const auto index = filled(text, 4000);
    EXPECT_LT(static_cast<double>(bytes_of(*index, true).size()),
              0.98 * static_cast<double>(bytes_of(*index, false).size()))
        << text;
  }
}

TEST(PackedFile, OfManyBatches) {
  const auto x = clustered(100'000, kD, 1);
  for (const char* text : {"TQ4", "IVF16,TQ4"}) {
    const auto index = index_factory(kD, text, faiss::METRIC_L2);
    index->train(2000, x.data());
    for (std::int64_t i = 0; i < 12; ++i) index->add(100'000, x.data());  // 29 MB of codes
    const auto found = read(bytes_of(*index, true));
    EXPECT_EQ(bytes_of(*found, false), bytes_of(*index, false)) << text;
  }
}

TEST(PackedFile, EmptyIndexesRoundTrip) {
  for (const char* text : {"TQ3", "IDMap,TQ3", "IVF4,TQ3", "TQ3c"}) {
    const auto index = index_factory(kD, text, faiss::METRIC_L2);
    EXPECT_EQ(bytes_of(*read(bytes_of(*index, true)), false), bytes_of(*index, false)) << text;
  }
}

TEST(PackedFile, CannotBeMapped) {
  const std::string path = testing::TempDir() + "packed.tqi";
  write_index(*filled("TQ3", 100), path, {true});
  EXPECT_THAT(error_of([&] { map_flat_index(path); }), HasSubstr("packed and cannot be mapped"));
  EXPECT_EQ(turboquant::read_index(path)->ntotal, 100);
  write_index(*filled("IVF4,TQ3", 200), path, {true});
  EXPECT_THAT(error_of([&] { turboquant::read_index(path, faiss::IO_FLAG_MMAP); }),
              HasSubstr("lists are packed"));
  EXPECT_EQ(turboquant::read_index(path)->ntotal, 200);
  std::remove(path.c_str());
}

TEST(PackedFile, IsFormatTwo) {
  const Bytes file = bytes_of(*filled("TQ3", 10), true);
  const std::size_t at = payload_at(file);
  EXPECT_EQ(file[at + 8], 2);
  EXPECT_EQ(file[at + 21], 16);
}

TEST(PackedFile, EveryTruncationIsRefused) {
  for (const char* text : {"TQ3", "IDMap2,TQ2", "IVF2,TQ4"}) {
    const Bytes file = bytes_of(*filled(text, 90), true);
    const std::size_t first = text[0] == 'I' && text[1] == 'V' ? payload_at(file) : 0;
    for (std::size_t size = first; size < file.size(); ++size) {
      const Bytes shorter(file.begin(), file.begin() + static_cast<long>(size));
      EXPECT_THROW(read(shorter), faiss::FaissException) << text << " " << size;
    }
  }
}

// Unlike a plain inverted file, a packed one has checksums everywhere in its payload.
TEST(PackedFile, EveryFlippedBitOfThePayloadIsRefusedOrHarmless) {
  const auto queries = clustered(3, kD, 2);
  for (const char* text : {"TQ3", "IVF2,TQ3"}) {
    const auto index = filled(text, 90);
    const auto expected = search(*index, queries, 4);
    const Bytes file = bytes_of(*index, true);
    for (std::size_t bit = 8 * payload_at(file); bit < 8 * file.size(); ++bit) {
      Bytes flipped = file;
      flipped[bit / 8] = static_cast<std::uint8_t>(flipped[bit / 8] ^ 1U << (bit % 8));
      try {
        expect_same(search(*read(flipped), queries, 4), expected);
      } catch (const faiss::FaissException&) {
      }
    }
  }
}

TEST(PackedFile, HugeClaimsTakeNoMemory) {
  Bytes file = bytes_of(*filled("TQ3", 50), true);
  const std::size_t at = payload_at(file);
  const std::uint64_t count = std::uint64_t{1} << 35;
  std::memcpy(file.data() + 8, &count, 8);
  std::memcpy(file.data() + at + 40, &count, 8);
  const std::uint64_t sum = checksum(file.data() + at, 72);
  std::memcpy(file.data() + at + 72, &sum, 8);
  EXPECT_THAT(error_of([&] { read(file); }), HasSubstr("ends inside the packed codes"));
  Pipe pipe(file);
  EXPECT_THROW(turboquant::read_index(&pipe), faiss::FaissException);
}

}  // namespace
}  // namespace turboquant
