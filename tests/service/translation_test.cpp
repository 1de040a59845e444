// Messages and statuses there and back.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "service/convert.h"
#include "service/errors.h"

namespace turboquant::service_test {
namespace {

using service::from_proto;
using service::to_proto;

TEST(Status, CodeReasonAndSentenceSurviveTheWire) {
  const absl::Status sent =
      service::make_error(absl::StatusCode::kNotFound, "COLLECTION_NOT_FOUND", "there is no \"x\"");
  EXPECT_EQ(error_reason(sent), "COLLECTION_NOT_FOUND");  // the store's own function reads it
  const absl::Status received = service::from_wire(service::to_wire(sent));
  EXPECT_EQ(received.code(), sent.code());
  EXPECT_EQ(received.message(), sent.message());
  EXPECT_EQ(error_reason(received), "COLLECTION_NOT_FOUND");
  EXPECT_TRUE(service::from_wire(service::to_wire(absl::OkStatus())).ok());
  EXPECT_EQ(service::to_wire(absl::OkStatus()).details, "");
  EXPECT_LE(service::to_wire(absl::InternalError(std::string(100'000, 'x'))).message.size(), 2000U);
}

TEST(Status, DetailsThatCannotBeReadAreIgnored) {
  for (const std::string& details :
       {std::string("\xff\xff"), std::string(100, '\x1a'), std::string("\x1a\x02\x0a\x00", 4)}) {
    const absl::Status status = service::from_wire({5, "sentence", details});
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(error_reason(status), "");
  }
}

TEST(Convert, Metadata) {
  const Metadata metadata = {{"b", true},
                             {"i", std::int64_t{-5}},
                             {"d", 2.5},
                             {"s", std::string("text")},
                             {"l", std::vector<std::string>{"x", "y"}}};
  v1::Metadata message;
  to_proto(metadata, &message);
  EXPECT_EQ(*from_proto(message), metadata);
}

TEST(Convert, Filters) {
  FilterRange bounds;
  bounds.gte = std::int64_t{3};
  bounds.lt = std::int64_t{9};
  const Filter filter = Filter::all_of(
      {Filter::any_of({Filter::equal("a", true), Filter::one_of("b", {1.5, std::int64_t{2}})}),
       Filter::negate(Filter::exists("c")), Filter::range("d", bounds)});
  v1::Filter message;
  to_proto(filter, &message);
  const auto back = from_proto(message);
  ASSERT_TRUE(back.ok()) << back.status();
  v1::Filter again;
  to_proto(*back, &again);
  EXPECT_EQ(again.SerializeAsString(), message.SerializeAsString());
  EXPECT_EQ(back->children[2].bounds.gte, bounds.gte);
  EXPECT_FALSE(back->children[2].bounds.gt);
}

TEST(Convert, Options) {
  CollectionOptions options;
  options.dimension = 384;
  options.metric = DistanceMetric::kL2;
  options.factory = "TQ3";
  options.originals = Originals::kFp32;
  options.fields = {{"a", FieldType::kBool}, {"b", FieldType::kStringList}};
  options.seed = 7;
  options.shard = 3;
  options.pack_codes = true;
  v1::CollectionOptions message;
  to_proto(options, &message);
  const auto back = from_proto(message);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->metric, DistanceMetric::kL2);
  EXPECT_EQ(back->originals, Originals::kFp32);
  EXPECT_EQ(back->fields[1].type, FieldType::kStringList);
  EXPECT_EQ(back->seed, options.seed);
  EXPECT_EQ(back->shard, 3U);
  EXPECT_TRUE(back->pack_codes);
  message.clear_pack_codes();
  EXPECT_FALSE(from_proto(message)->pack_codes);
  WriteOptions write;
  for (const Durability level : {Durability::kMemory, Durability::kWal, Durability::kFsync}) {
    write.durability = level;
    v1::WriteOptions sent;
    to_proto(write, &sent);
    EXPECT_EQ(from_proto(sent)->durability, level);
  }
  EXPECT_EQ(from_proto(v1::WriteOptions())->durability, Durability::kFsync);
}

TEST(Convert, Collections) {
  CollectionInfo info;
  info.name = "words";
  info.options.dimension = 8;
  info.options.pack_codes = true;
  info.records = 1;
  info.dead_rows = 2;
  info.code_bytes = 3;
  info.memory_bytes = 4;
  info.version = 5;
  info.block_bytes = 6;
  v1::CollectionInfo message;
  to_proto(info, &message);
  const CollectionInfo back = from_proto(message);
  EXPECT_EQ(back.name, "words");
  EXPECT_TRUE(back.options.pack_codes);
  EXPECT_EQ(back.records, 1U);
  EXPECT_EQ(back.dead_rows, 2U);
  EXPECT_EQ(back.code_bytes, 3U);
  EXPECT_EQ(back.memory_bytes, 4U);
  EXPECT_EQ(back.version, 5U);
  EXPECT_EQ(back.block_bytes, 6U);
}

TEST(Convert, HalfPrecision) {
  const std::vector<std::pair<std::uint16_t, float>> known = {
      {0x0000, 0.0F},     {0x3c00, 1.0F},     {0xc000, -2.0F},       {0x7bff, 65504.0F},
      {0x0400, 0x1p-14F}, {0x0001, 0x1p-24F}, {0x83ff, -0x3ffp-24F}, {0x3555, 0x1.554p-2F}};
  v1::Vectors vectors;
  vectors.set_encoding(v1::VECTOR_ENCODING_F16LE);
  for (const auto& [bits, value] : known) {
    vectors.mutable_data()->push_back(static_cast<char>(bits & 0xff));
    vectors.mutable_data()->push_back(static_cast<char>(bits >> 8));
  }
  std::vector<float> scratch;
  const auto read = from_proto(vectors, known.size(), scratch);
  ASSERT_TRUE(read.ok());
  for (std::size_t i = 0; i < known.size(); ++i) EXPECT_EQ((*read)[i], known[i].second) << i;
  vectors.set_data(std::string("\x00\x7c\x00\x7e", 4));  // infinity, NaN
  const auto odd = from_proto(vectors, 2, scratch);
  EXPECT_TRUE(std::isinf((*odd)[0]));
  EXPECT_TRUE(std::isnan((*odd)[1]));
}

TEST(Convert, MatricesMustFit) {
  std::vector<float> scratch;
  v1::Vectors vectors;
  EXPECT_FALSE(from_proto(vectors, 4, scratch).ok());
  const std::vector<float> values = {1, 2, 3, 4, 5, 6, 7, 8};
  to_proto(absl::MakeConstSpan(values), &vectors);
  EXPECT_EQ(from_proto(vectors, 4, scratch)->size(), 8U);
  EXPECT_FALSE(from_proto(vectors, 3, scratch).ok());
}

}  // namespace
}  // namespace turboquant::service_test
