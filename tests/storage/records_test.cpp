// Values of the database: what encoders write, decoders read; anything else is refused.
#include "storage/records.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>

#include "packing/streams.h"
#include "quantizer/half.h"
#include "storage/coding.h"
#include "storage/log_check.h"
#include "tests/fuzz/storage_fuzz.h"

namespace turboquant::storage {
namespace {

// Every cut, and any byte more, is refused.
template <class Decode>
void expect_exact(const std::string& bytes, const Decode& decode) {
  EXPECT_TRUE(decode(bytes));
  for (std::size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(decode(bytes.substr(0, n))) << n;
  EXPECT_FALSE(decode(bytes + '\0'));
}

TEST(Coding, CrcIsCrc32c) {
  EXPECT_EQ(0xe3069283u, crc32c("123456789"));
  EXPECT_EQ(0u, crc32c(""));
  EXPECT_EQ(crc32c("123456789"), crc32c("56789", crc32c("1234")));
}

TEST(Coding, ASealBindsKeyAndValue) {
  std::string value = "value";
  seal("key", value);
  std::string_view body = value;
  EXPECT_TRUE(unseal("key", body));
  EXPECT_EQ("value", body);
  body = value;
  EXPECT_FALSE(unseal("kez", body));
  for (std::size_t bit = 0; bit < 8 * value.size(); ++bit) {
    std::string flipped = value;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    body = flipped;
    EXPECT_FALSE(unseal("key", body)) << bit;
  }
  body = "abc";
  EXPECT_FALSE(unseal("key", body));
}

TEST(Coding, KeysSortAsTheirNumbersAndIdsDo) {
  EXPECT_LT(row_key(1, 255), row_key(1, 256));
  EXPECT_LT(row_key(1, ~std::uint64_t{0}), row_key(2, 0));
  EXPECT_LT(block_key(3, 7, 1), block_key(3, 8, 0));
  const std::vector<RecordId> sorted = {std::uint64_t{0},  std::uint64_t{256},
                                        ~std::uint64_t{0}, std::string("\0", 1),
                                        std::string("7"),  std::string("7\0", 2)};
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    RecordId back;
    std::string key;
    put_id_key(key, sorted[i]);
    ASSERT_TRUE(parse_id_key(key, back));
    EXPECT_EQ(sorted[i], back);
    if (i > 0) {
      EXPECT_LT(sorted[i - 1], sorted[i]);
      EXPECT_LT(id_key(1, sorted[i - 1]), id_key(1, sorted[i]));
    }
  }
  RecordId id;
  for (const std::string& bad : {std::string(), std::string("\1", 1), std::string("\2a"),
                                 std::string("\0short", 6), std::string(kMaxIdBytes + 2, '\1')}) {
    EXPECT_FALSE(parse_id_key(bad, id));
  }
}

TEST(Records, CollectionsRoundTrip) {
  CollectionRecord record;
  record.cid = 77;
  record.options.dimension = 384;
  record.options.metric = DistanceMetric::kL2;
  record.options.originals = Originals::kFp16;
  record.options.factory = "TQ3qjl";
  record.options.seed = 5;
  record.options.shard = 3;
  record.options.fields = {{"a", FieldType::kBool}, {"b", FieldType::kStringList}};
  record.fingerprint = 0x0123456789abcdef;
  expect_exact(encode_collection(record), [](const std::string& bytes) {
    CollectionRecord back;
    return decode_collection(bytes, back);
  });
  CollectionRecord back;
  ASSERT_TRUE(decode_collection(encode_collection(record), back));
  EXPECT_EQ(encode_collection(record), encode_collection(back));
  record.options.pack_codes = true;
  ASSERT_TRUE(decode_collection(encode_collection(record), back));
  EXPECT_TRUE(back.options.pack_codes);
  EXPECT_EQ(kPackedVersion, back.version);
  record.options.pack_codes = false;
  record.version = kPackedVersion + 1;
  EXPECT_FALSE(decode_collection(encode_collection(record), back));
  EXPECT_EQ(kPackedVersion + 1, back.version);
}

TEST(Records, MetadataRoundTrip) {
  const Metadata metadata = {{"a", true},
                             {"b", std::numeric_limits<std::int64_t>::min()},
                             {"c", -0.0},
                             {"d", std::string("x\0y", 3)},
                             {"e", std::vector<std::string>{"", "z"}}};
  expect_exact(encode_metadata(metadata), [&](const std::string& bytes) {
    Metadata back;
    return decode_metadata(bytes, back) && back == metadata;
  });
  Metadata back;
  std::string twice;
  put(twice, std::uint16_t{2});
  for (int i = 0; i < 2; ++i) twice += encode_metadata({{"a", true}}).substr(2);
  EXPECT_FALSE(decode_metadata(twice, back));
}

TEST(Records, IndexedValuesHaveTheTypesOfTheirFields) {
  const std::vector<FieldSchema> fields = {{"a", FieldType::kBool}, {"b", FieldType::kInt64}};
  IndexedValues back;
  const IndexedValues good = {{std::uint16_t{0}, true}, {std::uint16_t{1}, std::int64_t{3}}};
  expect_exact(encode_indexed(good), [&](const std::string& bytes) {
    return decode_indexed(bytes, fields, back) && back == good;
  });
  EXPECT_FALSE(decode_indexed(encode_indexed({{std::uint16_t{1}, true}}), fields, back));
  EXPECT_FALSE(decode_indexed(encode_indexed({{std::uint16_t{2}, true}}), fields, back));
  EXPECT_FALSE(decode_indexed(encode_indexed({{std::uint16_t{0}, true}, {std::uint16_t{0}, true}}),
                              fields, back));
}

TEST(Records, PackedBlocks) {
  const packing::RowLayout layout{24, 4, 16};
  std::string codes(kBlockRows * layout.code_size, '\0');
  std::mt19937 random(1);
  for (char& c : codes) c = static_cast<char>(random() % 100);
  std::vector<RecordId> ids;
  for (std::uint64_t i = 0; i < kBlockRows; ++i) ids.emplace_back(i);
  const std::string block = encode_block(codes, ids, &layout);
  const std::string plain = encode_block(codes, ids);
  if (packing::can_code()) {
    EXPECT_LT(block.size(), plain.size());
  }
  BlockRecord record;
  ASSERT_TRUE(decode_block(block, layout.code_size, record, &layout));
  EXPECT_EQ(record.codes, codes);
  EXPECT_EQ(record.ids, ids);
  EXPECT_FALSE(decode_block(plain, layout.code_size, record, &layout));
  EXPECT_FALSE(decode_block(block, layout.code_size, record));
  EXPECT_FALSE(decode_block(block + "x", layout.code_size, record, &layout));
  for (std::size_t n = 0; n < block.size(); n += 97) {
    EXPECT_FALSE(decode_block(block.substr(0, n), layout.code_size, record, &layout)) << n;
  }
  std::string damaged = block;
  damaged[200] = static_cast<char>(damaged[200] ^ 1);
  EXPECT_FALSE(decode_block(damaged, layout.code_size, record, &layout));
}

TEST(Records, RowsBlocksAndOperationsAreExact) {
  const std::string code = "0123456789";
  expect_exact(encode_row(std::string("id"), code), [&](const std::string& bytes) {
    RowRecord row;
    return decode_row(bytes, code.size(), row) && row.code == code;
  });
  std::string block;
  put(block, kBlockRows);
  put(block, std::uint32_t{1});
  block.append(kBlockRows, 'c');
  for (std::uint64_t i = 0; i < kBlockRows; ++i) put_id(block, i);
  BlockRecord record;
  EXPECT_TRUE(decode_block(block, 1, record));
  EXPECT_EQ(RecordId(std::uint64_t{4095}), record.ids.back());
  EXPECT_FALSE(decode_block(block, 2, record));
  EXPECT_FALSE(decode_block(block + "x", 1, record));
  EXPECT_FALSE(decode_block(block.substr(0, block.size() - 1), 1, record));
  expect_exact(encode_operation({9, 3, 8, {1, 2, 3, false}}), [](const std::string& bytes) {
    OperationRecord operation;
    return decode_operation(bytes, operation) && operation.result.deleted == 3;
  });
}

TEST(FuzzCorpus, Runs) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(TQ_STORAGE_CORPUS)) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string data((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
    test::fuzz_storage(reinterpret_cast<const std::uint8_t*>(data.data()), data.size());
    ++files;
  }
  EXPECT_GT(files, 10);
}

TEST(FuzzCorpus, SeedOfAPackedBlockIsOne) {
  std::ifstream file(TQ_STORAGE_CORPUS "/block_packed", std::ios::binary);
  const std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  ASSERT_FALSE(data.empty());
  const packing::RowLayout layout{10, 1, 6};
  BlockRecord record;
  ASSERT_TRUE(decode_block(std::string_view(data).substr(1), layout.code_size, record, &layout));
  EXPECT_EQ(record.codes, std::string(kBlockRows * layout.code_size, '\0'));
}

// The same properties on random bytes, for those who have no fuzzer at hand.
TEST(FuzzCorpus, HoldsOnRandomBytes) {
  std::mt19937 random(52);
  for (int i = 0; i < 20'000; ++i) {
    std::string data(random() % 300, '\0');
    for (char& byte : data) byte = static_cast<char>(random() % (i % 2 == 0 ? 8 : 256));
    if (!data.empty() && i % 3 != 0) data[0] = 9;  // filters
    test::fuzz_storage(reinterpret_cast<const std::uint8_t*>(data.data()), data.size());
  }
}

TEST(LogCheck, TellsADamagedHeaderFromATornEnd) {
  const auto record = [](const std::string& payload) {
    std::uint32_t crc = crc32c("\1" + payload);
    crc = ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
    std::string bytes;
    put(bytes, crc);
    put(bytes, static_cast<std::uint16_t>(payload.size()));
    return bytes + "\1" + payload;
  };
  const std::string log = record("first") + record("second") + record("third one");
  EXPECT_FALSE(has_damaged_header(log));
  for (std::size_t n = 0; n < log.size(); ++n) EXPECT_FALSE(has_damaged_header(log.substr(0, n)));
  EXPECT_FALSE(has_damaged_header(log + std::string(100, '\0')));
  for (const std::size_t at : {std::size_t{4}, log.size() - 9 - 3}) {
    std::string hurt = log;
    hurt[at + 1] = static_cast<char>(hurt[at + 1] ^ 0x40);
    EXPECT_TRUE(has_damaged_header(hurt)) << at;
    hurt = log;
    hurt[at + 2] = 5;
    EXPECT_TRUE(has_damaged_header(hurt)) << at;
  }
}

TEST(Half, RoundTripsAllHalvesAndRoundsToNearestEven) {
  for (std::uint32_t half = 0; half < 65536; ++half) {
    const float value = half_to_float(static_cast<std::uint16_t>(half));
    if (std::isnan(value)) continue;
    ASSERT_EQ(half, float_to_half(value)) << half;
  }
  std::mt19937 random(51);
  for (int i = 0; i < 200'000; ++i) {
    const float value = std::ldexp(static_cast<float>(random()) / 4294967296.0F + 0.5F,
                                   static_cast<int>(random() % 44) - 27);
    if (value >= 65520.0F) continue;  // becomes infinity, see below
    const std::uint16_t half = float_to_half(value);
    const double error = std::fabs(static_cast<double>(half_to_float(half)) - value);
    // No neighbour is nearer; of two equally near ones the even is taken.
    for (const int step : {-1, 1}) {
      const auto other = static_cast<std::uint16_t>(half + step);
      if ((half == 0 && step < 0) || other >= 0x7c00) continue;
      const double distance = std::fabs(static_cast<double>(half_to_float(other)) - value);
      ASSERT_LE(error, distance);
      if (error == distance) {
        ASSERT_EQ(0, half % 2);
      }
    }
  }
  EXPECT_EQ(0x7bff, float_to_half(65519.0F));
  EXPECT_EQ(0x7c00, float_to_half(65520.0F));
}

}  // namespace
}  // namespace turboquant::storage
