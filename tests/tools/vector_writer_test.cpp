#include "tools/io/vector_writer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/tools/test_files.h"
#include "tools/io/errors.h"

namespace turboquant::io {
namespace {

class Writer : public testing::FolderTest {
 protected:
  template <typename T>
  void write(const std::string& name, Format format, Element element, std::size_t dimension,
             const std::vector<T>& x) {
    const std::size_t rows = x.size() / dimension;
    VectorWriter writer(path(name), format, element, rows, dimension);
    const std::size_t half = rows / 2;
    writer.append(x.data(), half);
    writer.append(x.data() + half * dimension, rows - half);
    writer.commit();
  }
};

TEST_F(Writer, FloatFormatsComeBack) {
  const std::vector<float> x = testing::random_floats(31 * 13, 5);
  const auto check = [&](const std::string& name, Element element, float tolerance) {
    write(name, guess_format(name), element, 13, x);
    const auto reader = open_vectors(path(name));
    ASSERT_EQ(reader->rows(), 31U);
    ASSERT_EQ(reader->dimension(), 13U);
    ASSERT_EQ(reader->element(), element);
    std::vector<float> back(x.size());
    reader->read(0, 31, back.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_NEAR(back[i], x[i], tolerance * std::abs(x[i])) << name;
    }
  };
  check("a.npy", Element::kF4, 0);
  check("b.npy", Element::kF8, 0);
  check("c.npy", Element::kF2, 0x1p-11F);
  check("a.fvecs", Element::kF4, 0);
  check("a.fbin", Element::kF4, 0);
}

TEST_F(Writer, IntegerFormatsComeBack) {
  const auto check = [&](const std::string& name, Element element,
                         const std::vector<std::int64_t>& x) {
    write(name, guess_format(name), element, 3, x);
    const auto reader = open_vectors(path(name));
    ASSERT_EQ(reader->rows(), 2U);
    ASSERT_EQ(reader->element(), element);
    std::vector<std::int64_t> back(x.size());
    reader->read_integers(0, 2, back.data());
    EXPECT_EQ(back, x) << name;
  };
  check("a.bvecs", Element::kU1, {0, 1, 255, 7, 8, 9});
  check("a.u8bin", Element::kU1, {0, 1, 255, 7, 8, 9});
  check("a.i8bin", Element::kI1, {-128, 1, 127, 7, 8, 9});
  check("a.ivecs", Element::kI4, {-2147483648LL, 1, 2147483647, 7, 8, 9});
  check("a.ibin", Element::kI4, {-2147483648LL, 1, 2147483647, 7, 8, 9});
  check("a.npy", Element::kI8, {-(1LL << 62), 1, 1LL << 62, 7, 8, 9});
  check("b.npy", Element::kU1, {0, 1, 255, 7, 8, 9});
}

TEST_F(Writer, NpyHeaderIsAlignedAndExact) {
  write("a.npy", Format::kNpy, Element::kF4, 1, std::vector<float>{1.F});
  const std::string bytes = testing::read_bytes(path("a.npy"));
  ASSERT_EQ(bytes.size(), 128U + 4U);
  EXPECT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_EQ(bytes.substr(10, 60), "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), } ");
  EXPECT_EQ(bytes[127], '\n');
}

TEST_F(Writer, ZeroRows) {
  write("a.fbin", Format::kFbin, Element::kF4, 4, std::vector<float>{});
  EXPECT_EQ(open_vectors(path("a.fbin"))->rows(), 0U);
}

TEST_F(Writer, ValuesThatDoNotFitAreNamed) {
  VectorWriter writer(path("a.ibin"), Format::kIbin, Element::kI4, 3, 2);
  const std::vector<std::int64_t> ids = {1, 2, 3, 1LL << 40, 5, 6};
  EXPECT_FAILS(writer.append(ids.data(), 3), DataError, "a.ibin", "row 1", "1099511627776");
  EXPECT_EQ(names().size(), 1U);  // the temporary file
}

TEST_F(Writer, ShapesAreKept) {
  EXPECT_FAILS(VectorWriter(path("a.fbin"), Format::kFbin, Element::kF4, 1ULL << 32, 2), UsageError,
               "a.fbin", "32 bits");
  EXPECT_FAILS(element_for(Format::kHdf5, Element::kF4), UsageError, "HDF5");
  EXPECT_THROW(VectorWriter(path("a.fbin"), Format::kFbin, Element::kI4, 1, 1), std::logic_error);
  {
    VectorWriter writer(path("a.fbin"), Format::kFbin, Element::kF4, 2, 1);
    const float x[] = {1, 2, 3};
    EXPECT_THROW(writer.append(x, 3), std::logic_error);
    writer.append(x, 1);
    EXPECT_THROW(writer.commit(), std::logic_error);
  }
  EXPECT_TRUE(names().empty());
}

}  // namespace
}  // namespace turboquant::io
