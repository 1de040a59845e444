#include "tools/io/ids_file.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/tools/test_files.h"
#include "tools/io/errors.h"
#include "tools/io/text_lines.h"
#include "tools/io/vector_writer.h"

namespace turboquant::io {
namespace {

using Ids = std::vector<std::int64_t>;

class IdsFile : public testing::FolderTest {
 protected:
  void write(const std::string& name, Element element, std::size_t dimension, const Ids& ids) {
    VectorWriter writer(path(name), guess_format(name), element, ids.size() / dimension, dimension);
    writer.append(ids.data(), ids.size() / dimension);
    writer.commit();
  }
};

TEST_F(IdsFile, EveryForm) {
  const Ids ids = {7, 0, 123456};
  write("a.npy", Element::kI8, 1, ids);
  write("b.npy", Element::kU8, 1, ids);
  write("a.ibin", Element::kI4, 1, ids);
  testing::write_bytes(path("a.txt"), "7\n0\n123456\n");
  testing::write_bytes(path("a.ids"), "7\r\n0\r\n123456");
  for (const char* name : {"a.npy", "b.npy", "a.ibin", "a.txt", "a.ids"}) {
    EXPECT_EQ(read_ids(path(name)), ids) << name;
  }
  testing::write_bytes(path("b.txt"), "-9223372036854775808\n9223372036854775807\n");
  EXPECT_EQ(read_ids(path("b.txt")), (Ids{INT64_MIN, INT64_MAX}));
}

TEST_F(IdsFile, Refusals) {
  testing::write_bytes(path("a.txt"), "1\n2\nthree\n");
  EXPECT_FAILS(read_ids(path("a.txt")), DataError, "a.txt", "row 2", "three");
  testing::write_bytes(path("b.txt"), "1\n9223372036854775808\n");
  EXPECT_FAILS(read_ids(path("b.txt")), DataError, "row 1", "64 bits");
  testing::write_bytes(path("c.txt"), "1\n\n2\n");
  EXPECT_FAILS(read_ids(path("c.txt")), DataError, "row 1");
  write("a.npy", Element::kI8, 2, {1, 2, 3, 4});
  EXPECT_FAILS(read_ids(path("a.npy")), DataError, "2 values a row");
  EXPECT_FAILS(read_ids(path("none.txt")), IoError, "none.txt");
}

class TextFile : public testing::FolderTest {};

TEST_F(TextFile, LinesByNumber) {
  const auto lines_of = [&](const std::string& text) {
    testing::write_bytes(path("t"), text);
    const TextLines lines(path("t"));
    std::vector<std::string> all;
    for (std::size_t i = 0; i < lines.size(); ++i) all.push_back(lines.line(i));
    return all;
  };
  using Lines = std::vector<std::string>;
  EXPECT_EQ(lines_of(""), Lines{});
  EXPECT_EQ(lines_of("a"), Lines{"a"});
  EXPECT_EQ(lines_of("a\n"), Lines{"a"});
  EXPECT_EQ(lines_of("\n"), Lines{""});
  EXPECT_EQ(lines_of("a\r\n\nb\n\nc"), (Lines{"a", "", "b", "", "c"}));
  EXPECT_EQ(TextLines(testing::example("base.txt")).size(), 5000U);
}

TEST_F(TextFile, LinesAcrossTheBuffer) {
  std::string text;
  for (int i = 0; i < 300'000; ++i) text += "line " + std::to_string(i) + "\n";
  testing::write_bytes(path("t"), text);
  const TextLines lines(path("t"));
  ASSERT_EQ(lines.size(), 300'000U);
  for (std::size_t i = 0; i < lines.size(); i += 7919) {
    EXPECT_EQ(lines.line(i), "line " + std::to_string(i));
  }
}

}  // namespace
}  // namespace turboquant::io
