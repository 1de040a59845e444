#include "tools/io/hdf5_reader.h"

#include <gtest/gtest.h>
#include <hdf5.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/tools/test_files.h"
#include "tools/io/errors.h"

namespace turboquant::io {
namespace {

class Hdf5 : public testing::FolderTest {
 protected:
  Hdf5() { file_ = H5Fcreate(path("a.hdf5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT); }

  // Writes memory of the type `memory` as `stored`, in compressed chunks if chunk > 0.
  void write(const char* name, const std::vector<hsize_t>& shape, hid_t stored, hid_t memory,
             const void* data, hsize_t chunk = 0) {
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    if (chunk > 0) {
      const std::vector<hsize_t> chunks(shape.size(), chunk);
      H5Pset_chunk(properties, static_cast<int>(shape.size()), chunks.data());
      H5Pset_deflate(properties, 4);
    }
    const hid_t set = H5Dcreate2(file_, name, stored, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    ASSERT_GE(set, 0);
    ASSERT_GE(H5Dwrite(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), 0);
    H5Dclose(set);
    H5Pclose(properties);
    H5Sclose(space);
  }

  std::string finish() {
    H5Fclose(file_);
    return path("a.hdf5");
  }

 private:
  hid_t file_;
};

TEST_F(Hdf5, TheSetsOfAnnBenchmarks) {
  const std::vector<float> train = testing::random_floats(100 * 7, 1);
  const std::vector<float> test = testing::random_floats(5 * 7, 2);
  const std::vector<std::int32_t> neighbors = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  write("train", {100, 7}, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, train.data());
  write("test", {5, 7}, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, test.data());
  write("neighbors", {5, 2}, H5T_STD_I32LE, H5T_NATIVE_INT32, neighbors.data());
  const std::string file = finish();

  const auto base = open_vectors(file);
  EXPECT_EQ(base->format(), Format::kHdf5);
  EXPECT_EQ(base->rows(), 100U);
  EXPECT_EQ(base->dimension(), 7U);
  std::vector<float> x(100 * 7);
  base->read(0, 100, x.data());
  EXPECT_EQ(x, train);
  base->read(98, 2, x.data());
  EXPECT_EQ(x[0], train[98 * 7]);

  EXPECT_EQ(open_vectors(file, std::nullopt, kTestDataset)->rows(), 5U);
  std::vector<std::int64_t> ids(10);
  open_vectors(file, std::nullopt, kNeighborsDataset)->read_integers(0, 5, ids.data());
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(ids.back(), 10);
}

TEST_F(Hdf5, BigEndianHalvesAndCompressedChunks) {
  const std::vector<float> values = {1, -2, 3, 0.5F, 7, 8};
  write("big", {3, 2}, H5T_IEEE_F64BE, H5T_NATIVE_FLOAT, values.data());
  write("chunked", {3, 2}, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, values.data(), 2);
  const hid_t half = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(half, 15, 10, 5, 0, 10);
  H5Tset_size(half, 2);
  H5Tset_ebias(half, 15);
  write("half", {3, 2}, half, H5T_NATIVE_FLOAT, values.data());
  write("bytes", {3, 2}, H5T_STD_I16BE, H5T_NATIVE_FLOAT, values.data());
  H5Tclose(half);
  const std::string file = finish();
  for (const char* name : {"big", "chunked", "half"}) {
    std::vector<float> x(6);
    open_hdf5(file, name)->read(0, 3, x.data());
    EXPECT_EQ(x, values) << name;
  }
  std::int64_t integers[6];
  open_hdf5(file, "bytes")->read_integers(0, 3, integers);
  EXPECT_EQ(integers[1], -2);
}

TEST_F(Hdf5, ZeroRows) {
  write("train", {0, 4}, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, nullptr);
  EXPECT_EQ(open_vectors(finish())->rows(), 0U);
}

TEST_F(Hdf5, Refusals) {
  const std::vector<float> values(8);
  write("cube", {2, 2, 2}, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, values.data());
  write("list", {8}, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, values.data());
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, 4);
  write("text", {4, 2}, text, text, values.data());
  H5Tclose(text);
  const std::string file = finish();
  EXPECT_FAILS(open_hdf5(file, "cube"), DataError, "a.hdf5", "'cube'", "3 axes");
  EXPECT_FAILS(open_hdf5(file, "list"), DataError, "1 axes");
  EXPECT_FAILS(open_hdf5(file, "text"), DataError, "neither floats nor integers");
  EXPECT_FAILS(open_hdf5(file, "train"), DataError, "a.hdf5", "'train'");
  testing::write_bytes(path("b.hdf5"), "not at all");
  EXPECT_FAILS(open_vectors(path("b.hdf5")), DataError, "b.hdf5", "not an HDF5 file");
  EXPECT_FAILS(open_vectors(path("c.hdf5")), IoError, "c.hdf5", "No such file");
}

TEST_F(Hdf5, ATruncatedFileFails) {
  const std::vector<float> values = testing::random_floats(1000 * 16, 3);
  write("train", {1000, 16}, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, values.data());
  const std::string file = finish();
  std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
  std::vector<float> x(values.size());
  EXPECT_FAILS(open_vectors(file)->read(0, 1000, x.data()), DataError, "a.hdf5");
}

}  // namespace
}  // namespace turboquant::io
