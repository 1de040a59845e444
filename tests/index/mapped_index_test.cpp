// Flat indexes whose codes stay in the file.
#include "index/mapped_index.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/IDSelector.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"

namespace turboquant {
namespace {

using test::clustered;
using test::expect_same;
using test::search;

constexpr int kD = 24;

class MappedIndexFile : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "mapped_index_test.tqi";
    index_ = index_factory(kD, GetParam(), faiss::METRIC_L2);
    const auto x = clustered(300, kD, 1);
    index_->add(300, x.data());
    write_index(*index_, path_);
  }
  void TearDown() override { std::remove(path_.c_str()); }

  void rewrite(std::size_t keep, std::size_t flip) const {
    std::ifstream in(path_, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    bytes.resize(bytes.size() - keep);
    if (flip > 0) bytes[bytes.size() - flip] = static_cast<char>(bytes[bytes.size() - flip] ^ 1);
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }

  std::string path_;
  std::unique_ptr<faiss::Index> index_;
};

TEST_P(MappedIndexFile, AnswersAsTheIndexThatWasWritten) {
  const auto queries = clustered(20, kD, 2);
  const auto mapped = map_flat_index(path_, true);
  EXPECT_EQ(mapped->ntotal, 300);
  EXPECT_EQ(mapped->d, kD);
  expect_same(search(*mapped, queries, 7), search(*index_, queries, 7));
  std::vector<float> a(kD), b(kD);
  mapped->reconstruct(299, a.data());
  index_->reconstruct(299, b.data());
  EXPECT_EQ(a, b);
  EXPECT_THROW(mapped->reconstruct(300, a.data()), faiss::FaissException);
  EXPECT_THROW(mapped->reconstruct(-1, a.data()), faiss::FaissException);
}

TEST_P(MappedIndexFile, IsReadOnly) {
  const auto mapped = map_flat_index(path_);
  EXPECT_THROW(mapped->add(1, std::vector<float>(kD).data()), faiss::FaissException);
  EXPECT_THROW(mapped->reset(), faiss::FaissException);
}

TEST_P(MappedIndexFile, ShortAndDamagedFilesAreRefused) {
  rewrite(0, 100);
  EXPECT_NO_THROW(map_flat_index(path_));
  EXPECT_THROW(map_flat_index(path_, true), faiss::FaissException);
  rewrite(1, 0);
  EXPECT_THROW(map_flat_index(path_), faiss::FaissException);
  rewrite(5000, 0);
  EXPECT_THROW(map_flat_index(path_), faiss::FaissException);
  std::ofstream(path_, std::ios::binary | std::ios::trunc).close();
  EXPECT_THROW(map_flat_index(path_), faiss::FaissException);
  EXPECT_THROW(map_flat_index(path_ + ".missing"), faiss::FaissException);
}

INSTANTIATE_TEST_SUITE_P(Names, MappedIndexFile,
                         testing::Values("TQ3", "TQ2qjl", "TQ4cos", "TQ3c"));

class SelectedIdMap : public testing::TestWithParam<const char*> {};

// FAISS refuses this before 1.7.4.
TEST_P(SelectedIdMap, SearchesOnlyWhatTheSelectorTakes) {
  const auto index = index_factory(kD, GetParam(), faiss::METRIC_L2);
  const auto x = clustered(300, kD, 1);
  std::vector<std::int64_t> ids(300);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = 1000 + 3 * static_cast<std::int64_t>(i);
  index->add_with_ids(300, x.data(), ids.data());
  const faiss::IDSelectorRange range(1300, 1400);
  faiss::SearchParameters params;
  params.sel = const_cast<faiss::IDSelectorRange*>(&range);
  const auto copy = clone_index(*index);
  for (const faiss::Index* each : {const_cast<const faiss::Index*>(index.get()),
                                   const_cast<const faiss::Index*>(copy.get())}) {
    const auto found = search(*each, x, 40, &params);
    for (std::size_t q = 0; q < 300; ++q) {
      for (std::size_t i = 0; i < 40; ++i) {
        const std::int64_t id = found.labels[q * 40 + i];
        if (i < 34) {  // 1300, 1303, ..., 1399
          EXPECT_TRUE(id >= 1300 && id < 1400) << id;
        } else {
          EXPECT_EQ(id, -1);
        }
      }
    }
    faiss::RangeSearchResult result(1);
    each->range_search(1, x.data(), 1e30F, &result, &params);
    EXPECT_EQ(result.lims[1], 34u);
  }
}

INSTANTIATE_TEST_SUITE_P(Maps, SelectedIdMap, testing::Values("IDMap,TQ3", "IDMap2,TQ3"));

}  // namespace
}  // namespace turboquant
