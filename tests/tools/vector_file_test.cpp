// Reading: well-formed files of every format, and every way in which one can be wrong.
#include "tools/io/vector_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "quantizer/half.h"
#include "tests/tools/test_files.h"
#include "tools/io/errors.h"

namespace turboquant::io {
namespace {

using testing::little_endian;

std::unique_ptr<VectorReader> open_bytes(const std::string& bytes, Format format) {
  return open_vectors(std::make_unique<MemorySource>(
                          std::vector<std::uint8_t>(bytes.begin(), bytes.end()), "some.file"),
                      format);
}

std::string npy(const std::string& dictionary, const std::string& payload, int version = 1) {
  std::string bytes = "\x93NUMPY";
  bytes += static_cast<char>(version);
  bytes += '\0';
  bytes += version == 1 ? little_endian(static_cast<std::uint16_t>(dictionary.size()))
                        : little_endian(static_cast<std::uint32_t>(dictionary.size()));
  return bytes + dictionary + payload;
}

std::string dictionary(const std::string& descr, const std::string& shape,
                       const std::string& fortran = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape +
         ", }   \n";
}

const std::string kSixFloats = little_endian(1.F, 2.F, 3.F, 4.F, 5.F, 6.F);

std::vector<float> read_all(VectorReader& reader) {
  std::vector<float> x(reader.rows() * reader.dimension());
  reader.read(0, reader.rows(), x.data());
  return x;
}

TEST(Npy, AllVersionsAndSpellings) {
  const std::vector<float> expected = {1, 2, 3, 4, 5, 6};
  for (const int version : {1, 2, 3}) {
    for (const std::string& text :
         {dictionary("<f4", "(2, 3)"),
          std::string("{\"shape\":(2,3,),\"fortran_order\":False,\"descr\":\"<f4\"}"),
          std::string("{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L)}\n")}) {
      const auto reader = open_bytes(npy(text, kSixFloats, version), Format::kNpy);
      EXPECT_EQ(reader->rows(), 2U);
      EXPECT_EQ(reader->dimension(), 3U);
      EXPECT_EQ(read_all(*reader), expected);
    }
  }
}

TEST(Npy, EveryElementType) {
  const auto check = [](const std::string& descr, const std::string& payload) {
    const auto reader = open_bytes(npy(dictionary(descr, "(1, 2)"), payload), Format::kNpy);
    EXPECT_EQ(read_all(*reader), (std::vector<float>{1, 3})) << descr;
  };
  check("<f2", little_endian(std::uint16_t{0x3c00}, std::uint16_t{0x4200}));
  check("<f4", little_endian(1.F, 3.F));
  check("<f8", little_endian(1.0, 3.0));
  check("|i1", little_endian(std::int8_t{1}, std::int8_t{3}));
  check("|u1", little_endian(std::uint8_t{1}, std::uint8_t{3}));
  check("<i4", little_endian(1, 3));
  check("<u4", little_endian(1U, 3U));
  check("<i8", little_endian(std::int64_t{1}, std::int64_t{3}));
  check("<u8", little_endian(std::uint64_t{1}, std::uint64_t{3}));
}

TEST(Npy, OneAxisIsAColumn) {
  // Fortran and C order are the same then, and NumPy may say either.
  for (const char* fortran : {"False", "True"}) {
    const auto reader =
        open_bytes(npy(dictionary("<f4", "(6,)", fortran), kSixFloats), Format::kNpy);
    EXPECT_EQ(reader->rows(), 6U);
    EXPECT_EQ(reader->dimension(), 1U);
  }
}

TEST(Npy, ZeroRows) {
  const auto reader = open_bytes(npy(dictionary("<f4", "(0, 7)"), ""), Format::kNpy);
  EXPECT_EQ(reader->rows(), 0U);
  EXPECT_EQ(reader->dimension(), 7U);
  reader->read(0, 0, nullptr);
}

TEST(Npy, Refusals) {
  const auto refused = [](const std::string& bytes, const std::string& reason) {
    EXPECT_FAILS(open_bytes(bytes, Format::kNpy), DataError, "some.file", reason);
  };
  refused("", "the file ends before");
  refused("\x93NUMP", "the file ends before");
  refused("PK\x03\x04 this is a zip", "not a .npy file");
  refused(npy(dictionary("<f4", "(2, 3)"), kSixFloats, 4), "version 4");
  refused(npy(dictionary("<f4", "(2, 3)"), kSixFloats, 0), "version 0");
  refused(npy(dictionary(">f4", "(2, 3)"), kSixFloats), "big-endian");
  refused(npy(dictionary("<c8", "(2, 3)"), kSixFloats), "'<c8'");
  refused(npy(dictionary("|O", "(2, 3)"), kSixFloats), "'|O'");
  refused(npy(dictionary("f4", "(2, 3)"), kSixFloats), "'f4'");
  refused(npy(dictionary("", "(2, 3)"), kSixFloats), "''");
  refused(npy(dictionary("<f4", "(2, 3)", "True"), kSixFloats), "Fortran order");
  refused(npy(dictionary("<f4", "(2, 3)", "Maybe"), kSixFloats), "Maybe");
  refused(npy(dictionary("<f4", "(1, 2, 3)"), kSixFloats), "3 axes");
  refused(npy(dictionary("<f4", "()"), kSixFloats), "0 axes");
  refused(npy(dictionary("<f4", "(2, -3)"), kSixFloats), "shape");
  refused(npy(dictionary("<f4", "(2 x 3)"), kSixFloats), "shape");
  refused(npy(dictionary("<f4", "6"), kSixFloats), "shape");
  refused(npy(dictionary("<f4", "(2, 0)"), ""), "dimension is 0");
  refused(npy(dictionary("<f4", "(2, 4)"), kSixFloats), "truncated");
  refused(npy(dictionary("<f4", "(2, 2)"), kSixFloats), "trailing");
  refused(npy(dictionary("<f4", "(2, 3)"), kSixFloats).substr(0, 40), "the header");
  refused(npy("{'descr': '<f4', 'shape': (2, 3)}", kSixFloats), "lacks 'fortran_order'");
  refused(npy("{'descr': '<f4', 'descr': '<f4'}", kSixFloats), "twice");
  refused(npy("{'descr': [('a', '<f4')], }", kSixFloats), "records");
  refused(npy("{'descr': '<f4", kSixFloats), "unfinished");
  refused(npy(dictionary("<f4", "(2, 3)") + "more", kSixFloats), "behind");
  refused(npy("", kSixFloats), "lacks '{'");
  refused(npy(std::string(70'000, ' '), "", 2), "too long");
}

TEST(Npy, HeadersBeyond64BitsAreRefused) {
  const auto refused = [](const std::string& shape, const std::string& reason) {
    EXPECT_FAILS(open_bytes(npy(dictionary("<f4", shape), kSixFloats), Format::kNpy), DataError,
                 reason);
  };
  refused("(99999999999999999999999, 3)", "longer than 64 bits");
  refused("(6148914691236517206, 3)", "64 bits can count");  // rows * dimension wraps to 2
  refused("(4611686018427387904, 1)", "64 bits can count");  // * 4 wraps to 0
  refused("(1537228672809129303, 3)", "64 bits can count");  // * 4 wraps to 20
  refused("(18446744073709551615, 1)", "64 bits can count");
  refused("(1, 4294967296)", "truncated");
  EXPECT_FAILS(open_bytes(npy(dictionary("<f4", "(0, 4294967296)"), ""), Format::kNpy), DataError,
               "above 2^31");
}

TEST(Vecs, RowsWithTheirDimension) {
  const std::string bytes = little_endian(3, 1.F, 2.F, 3.F, 3, 4.F, 5.F, 6.F);
  const auto reader = open_bytes(bytes, Format::kFvecs);
  EXPECT_EQ(reader->rows(), 2U);
  EXPECT_EQ(reader->dimension(), 3U);
  EXPECT_EQ(read_all(*reader), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  float last[3];
  reader->read(1, 1, last);
  EXPECT_EQ(last[0], 4);

  const std::string small = little_endian(2, std::uint8_t{7}, std::uint8_t{255});
  EXPECT_EQ(read_all(*open_bytes(small, Format::kBvecs)), (std::vector<float>{7, 255}));
  std::int64_t id = 0;
  open_bytes(little_endian(1, -5), Format::kIvecs)->read_integers(0, 1, &id);
  EXPECT_EQ(id, -5);
}

TEST(Vecs, Refusals) {
  const auto refused = [](const std::string& bytes, const std::string& reason) {
    EXPECT_FAILS(open_bytes(bytes, Format::kFvecs), DataError, "some.file", reason);
  };
  refused("", "empty");
  refused("\x01\x02", "the file ends before");
  refused(little_endian(0), "dimension is 0");
  refused(little_endian(-1, 1.F), "dimension is -1");
  refused(little_endian(2, 1.F), "row 0");
  refused(little_endian(2, 1.F, 2.F, 2, 3.F), "row 1");
  refused(little_endian(std::numeric_limits<std::int32_t>::max(), 1.F), "row 0");
}

TEST(Vecs, ARowOfAnotherDimensionIsNamed) {
  std::string bytes;
  for (int row = 0; row < 40; ++row) bytes += little_endian(row == 33 ? 3 : 2, 1.F, 2.F);
  const auto reader = open_bytes(bytes, Format::kFvecs);
  std::vector<float> x(80);
  reader->read(0, 33, x.data());
  EXPECT_FAILS(reader->read(0, 40, x.data()), DataError, "some.file", "row 33",
               "its dimension is 3", "row 0 is 2");
}

TEST(Bin, EveryElementType) {
  const std::string shape = little_endian(1U, 2U);
  EXPECT_EQ(read_all(*open_bytes(shape + little_endian(1.5F, -2.F), Format::kFbin)),
            (std::vector<float>{1.5F, -2}));
  EXPECT_EQ(read_all(*open_bytes(shape + "\x01\xff", Format::kU8bin)),
            (std::vector<float>{1, 255}));
  EXPECT_EQ(read_all(*open_bytes(shape + "\x01\xff", Format::kI8bin)), (std::vector<float>{1, -1}));
  EXPECT_EQ(read_all(*open_bytes(shape + little_endian(7, -7), Format::kIbin)),
            (std::vector<float>{7, -7}));
}

TEST(Bin, ZeroRows) {
  const auto reader = open_bytes(little_endian(0U, 5U), Format::kFbin);
  EXPECT_EQ(reader->rows(), 0U);
  EXPECT_EQ(reader->dimension(), 5U);
}

TEST(Bin, GroundTruthMayCarryDistances) {
  const std::string bytes = little_endian(1U, 2U, 4, 9, 0.5F, 0.25F);
  const auto reader = open_bytes(bytes, Format::kIbin);
  std::int64_t ids[2];
  reader->read_integers(0, 1, ids);
  EXPECT_EQ(ids[0], 4);
  EXPECT_EQ(ids[1], 9);
  EXPECT_FAILS(open_bytes(bytes, Format::kFbin), DataError, "trailing");
  EXPECT_FAILS(open_bytes(bytes.substr(0, bytes.size() - 1), Format::kIbin), DataError, "trailing");
}

TEST(Bin, Refusals) {
  const auto refused = [](const std::string& bytes, const std::string& reason) {
    EXPECT_FAILS(open_bytes(bytes, Format::kFbin), DataError, "some.file", reason);
  };
  refused("", "the file ends before");
  refused(little_endian(1U), "the file ends before");
  refused(little_endian(1U, 0U), "dimension is 0");
  refused(little_endian(2U, 2U, 1.F, 2.F, 3.F), "truncated");
  refused(little_endian(1U, 2U, 1.F, 2.F, 3.F), "trailing");
  refused(little_endian(0xffffffffU, 0x7fffffffU, 1.F), "64 bits can count");
  refused(little_endian(0x80000000U, 0x80000000U, 1.F), "64 bits can count");  // wraps to 0
  refused(little_endian(0x40000000U, 0x40000000U, 1.F), "truncated");
  refused(little_endian(0U, 0x80000000U), "above 2^31");
}

TEST(VectorReader, ReadsRowRangesAcrossItsBuffer) {
  // 3,000 rows of 200 halves: more than one conversion buffer.
  constexpr std::size_t kRows = 3000;
  constexpr std::size_t kDimension = 200;
  std::string payload;
  for (std::size_t i = 0; i < kRows; ++i) {
    for (std::size_t j = 0; j < kDimension; ++j) {
      payload += little_endian(float_to_half(static_cast<float>(i % 2000)));
    }
  }
  const auto reader = open_bytes(npy(dictionary("<f2", "(3000, 200)"), payload), Format::kNpy);
  std::vector<float> x(kRows * kDimension);
  reader->read(0, kRows, x.data());
  for (std::size_t i = 0; i < kRows; ++i) {
    ASSERT_EQ(x[i * kDimension], i % 2000);
    ASSERT_EQ(x[i * kDimension + kDimension - 1], i % 2000);
  }
  reader->read(1234, 2, x.data());
  EXPECT_EQ(x[0], 1234);
  EXPECT_EQ(x[kDimension], 1235);
  EXPECT_THROW(reader->read(2999, 2, x.data()), std::out_of_range);
  EXPECT_THROW(reader->read(std::numeric_limits<std::uint64_t>::max(), 2, x.data()),
               std::out_of_range);
}

TEST(VectorReader, IntegersAndFloatsAreKeptApart) {
  std::int64_t id = 0;
  EXPECT_FAILS(open_bytes(little_endian(1U, 1U, 2.F), Format::kFbin)->read_integers(0, 1, &id),
               DataError, "some.file", "floats");
  const std::string large =
      npy(dictionary("<u8", "(3, 1)"),
          little_endian(std::uint64_t{1}, std::uint64_t{2}, ~std::uint64_t{0}));
  std::int64_t ids[3];
  EXPECT_FAILS(open_bytes(large, Format::kNpy)->read_integers(0, 3, ids), DataError, "row 2",
               "above 2^63");
}

TEST(ReadFinite, NamesTheRow) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(50 * 3, 1.F);
    x[41 * 3 + 2] = bad;
    const auto reader = open_bytes(testing::fbin_bytes(50, 3, x), Format::kFbin);
    std::vector<float> out(x.size());
    read_finite(*reader, 0, 41, out.data());
    read_finite(*reader, 42, 8, out.data());
    EXPECT_FAILS(read_finite(*reader, 10, 40, out.data()), DataError, "some.file", "row 41",
                 "value 2", std::isnan(bad) ? "NaN" : "infinite");
  }
  std::vector<float> extreme = {std::numeric_limits<float>::max(), -3e38F, 1e-45F, 0.F, -0.F, 1.F};
  require_finite("x", 0, 2, 3, extreme.data());
}

class VectorFiles : public testing::FolderTest {};

TEST_F(VectorFiles, FormatByExtensionAndByWord) {
  testing::write_bytes(path("a.fbin"), testing::fbin_bytes(1, 2, {1, 2}));
  testing::write_bytes(path("a.data"), testing::fbin_bytes(1, 2, {1, 2}));
  EXPECT_EQ(open_vectors(path("a.fbin"))->rows(), 1U);
  EXPECT_EQ(open_vectors(path("a.data"), Format::kFbin)->rows(), 1U);
  EXPECT_FAILS(open_vectors(path("a.data")), UsageError, "a.data", "--format");
  EXPECT_FAILS(guess_format("folder.npy/file"), UsageError, "--format");
  EXPECT_EQ(guess_format("x.h5"), Format::kHdf5);
  EXPECT_FAILS(open_vectors(path("none.npy")), IoError, "none.npy", "No such file");
  EXPECT_FAILS(open_vectors(path("."), Format::kNpy), IoError, "not a regular file");
}

TEST_F(VectorFiles, AFileThatShrinksIsNoticed) {
  testing::write_bytes(path("a.fbin"), testing::fbin_bytes(4, 2, std::vector<float>(8)));
  const auto reader = open_vectors(path("a.fbin"));
  std::filesystem::resize_file(path("a.fbin"), 20);
  float x[8];
  EXPECT_FAILS(reader->read(0, 4, x), DataError, "a.fbin", "rows 0 to 3", "shorter");
}

TEST(ExampleData, IsAsDescribed) {
  const auto base = open_vectors(testing::example("base.npy"));
  EXPECT_EQ(base->rows(), 5000U);
  EXPECT_EQ(base->dimension(), 384U);
  EXPECT_EQ(base->element(), Element::kF2);
  std::vector<float> row(384);
  read_finite(*base, 4999, 1, row.data());
  double norm = 0;
  for (const float v : row) norm += double{v} * double{v};
  EXPECT_NEAR(norm, 1.0, 1e-3);
}

}  // namespace
}  // namespace turboquant::io
