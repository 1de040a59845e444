// The API against proto/turboquant/v1/published.txtpb.
#include "tests/proto/compatibility.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>
#include <turboquant/v1/admin_service.pb.h>
#include <turboquant/v1/search_service.pb.h>
#include <turboquant/v1/types.pb.h>

#include <fstream>
#include <iterator>

namespace turboquant::proto_test {
namespace {

using google::protobuf::DescriptorProto;
using google::protobuf::FileDescriptorSet;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

FileDescriptorSet published() {
  std::ifstream file(TURBOQUANT_PUBLISHED_API);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  FileDescriptorSet set;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &set));
  EXPECT_EQ(set.file_size(), 3);
  return set;
}

FileDescriptorSet current() {
  FileDescriptorSet set;
  v1::RecordId::descriptor()->file()->CopyTo(set.add_file());
  v1::SearchRequest::descriptor()->file()->CopyTo(set.add_file());
  v1::CollectionInfo::descriptor()->file()->CopyTo(set.add_file());
  return set;
}

DescriptorProto* message(FileDescriptorSet& set, const std::string& name) {
  for (auto& file : *set.mutable_file()) {
    for (auto& one : *file.mutable_message_type()) {
      if (one.name() == name) return &one;
    }
  }
  return nullptr;
}

TEST(Api, PublishedFieldsAreUnchanged) {
  EXPECT_THAT(incompatible_changes(published(), current()), IsEmpty());
}

TEST(Api, NewFieldsArePublished) {
  // Not an incompatibility: the stored descriptor set is to be written again (proto/README.md).
  EXPECT_THAT(incompatible_changes(current(), published()), IsEmpty());
}

TEST(Compatibility, AdditionsAreAllowed) {
  FileDescriptorSet changed = current();
  auto* field = message(changed, "SearchRequest")->add_field();
  field->set_name("new");
  field->set_number(100);
  EXPECT_THAT(incompatible_changes(current(), changed), IsEmpty());
}

TEST(Compatibility, EachChangeIsFound) {
  FileDescriptorSet changed = current();
  DescriptorProto* request = message(changed, "SearchRequest");
  request->mutable_field(2)->set_name("count");
  EXPECT_THAT(incompatible_changes(current(), changed), ElementsAre(HasSubstr("k is now count")));

  changed = current();
  message(changed, "SearchRequest")
      ->mutable_field(2)
      ->set_type(google::protobuf::FieldDescriptorProto::TYPE_INT64);
  EXPECT_THAT(incompatible_changes(current(), changed), ElementsAre(HasSubstr("another type")));

  changed = current();
  message(changed, "RecordId")->mutable_field(0)->clear_oneof_index();
  EXPECT_THAT(incompatible_changes(current(), changed), ElementsAre(HasSubstr("another type")));

  changed = current();
  message(changed, "SearchRequest")->mutable_field()->DeleteSubrange(2, 1);
  EXPECT_THAT(incompatible_changes(current(), changed), ElementsAre(HasSubstr("not reserved")));

  request = message(changed, "SearchRequest");
  request->add_reserved_name("k");
  request->add_reserved_range()->set_start(3);
  request->mutable_reserved_range(0)->set_end(4);
  EXPECT_THAT(incompatible_changes(current(), changed), IsEmpty());

  changed = current();
  changed.mutable_file(2)->mutable_enum_type(0)->mutable_value(1)->set_name("METRIC_DOT");
  EXPECT_THAT(incompatible_changes(current(), changed), ElementsAre(HasSubstr("METRIC_DOT")));

  changed = current();
  changed.mutable_file(1)->mutable_service(0)->mutable_method(0)->set_server_streaming(true);
  EXPECT_THAT(incompatible_changes(current(), changed), ElementsAre(HasSubstr("signature")));

  changed = current();
  changed.mutable_file(1)->mutable_service(0)->mutable_method()->RemoveLast();
  EXPECT_THAT(incompatible_changes(current(), changed), ElementsAre(HasSubstr("GetInfo is gone")));

  changed = current();
  changed.mutable_file()->RemoveLast();
  EXPECT_FALSE(incompatible_changes(current(), changed).empty());
}

TEST(Api, EverythingHasAComment) {
  // Comments are not in the descriptors of a program, so the files are read.
  for (const char* name : {"types", "search_service", "admin_service"}) {
    std::ifstream file(std::string(TURBOQUANT_PROTO_FOLDER) + "/" + name + ".proto");
    std::string line;
    std::string before;
    for (int number = 1; std::getline(file, line); ++number) {
      const auto first = line.find_first_not_of(' ');
      const std::string text = first == std::string::npos ? "" : line.substr(first);
      const bool definition = text.rfind("rpc ", 0) == 0 || text.rfind("message ", 0) == 0 ||
                              text.rfind("enum ", 0) == 0 || text.rfind("service ", 0) == 0 ||
                              (first == 2 && text.find(" = ") != std::string::npos) ||
                              (first == 4 && text.find(" = ") != std::string::npos);
      if (definition && text.rfind("//", 0) != 0) {
        EXPECT_EQ(before.rfind("//", 0), 0U) << name << ".proto:" << number << ": " << line;
      }
      before = text;
    }
  }
}

}  // namespace
}  // namespace turboquant::proto_test
