// The kept index files: written the same today, and read without a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/fuzz/index_file_fuzz.h"
#include "tests/fuzz/index_seeds.h"
#include "tests/index/index_test_util.h"

namespace turboquant {
namespace {

const std::filesystem::path kCorpus = TQ_INDEX_CORPUS;

std::vector<std::uint8_t> load(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(IndexCorpus, SeedsAreWrittenTheSameToday) {
  for (const auto& [name, bytes] : test::make_index_seeds()) {
    EXPECT_EQ(load(kCorpus / name), bytes) << name;
  }
}

TEST(IndexCorpus, KeptFlatFilesAreReadAsWhatTheyAre) {
  int files = 0;
  for (const char* name : test::kFlatSeeds) {
    for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
      const bool l2 = metric == faiss::METRIC_L2;
      const auto bytes = load(kCorpus / (std::string("flat_") + name + (l2 ? "_l2" : "_ip")));
      const auto read = read_flat_index(bytes.data(), bytes.size());
      EXPECT_EQ(index_name(read->options()), name);
      IndexTurboQuant made(10, parse_index_name(name), metric);
      const auto x = test::seed_rows(3, 10);
      made.add(3, x.data());
      test::expect_same(test::search(*read, x, 3), test::search(made, x, 3));
      ++files;
    }
  }
  EXPECT_EQ(files, 28);
}

TEST(IndexCorpus, KeptPackedFilesAreReadAsWhatTheyAre) {
  int files = 0;
  for (const auto& [name, today] : test::make_packed_seeds()) {
    const auto kept = load(kCorpus / name);
    if (name.rfind("packed_payload", 0) == 0) continue;
    const auto a = read_flat_index(kept.data(), kept.size());
    const auto b = read_flat_index(today.data(), today.size());
    ASSERT_EQ(a->ntotal, b->ntotal) << name;
    EXPECT_TRUE(std::equal(a->codes.begin(), a->codes.end(), b->codes.begin())) << name;
    ++files;
  }
  EXPECT_EQ(files, 8);
}

// Its codes are of another trellis, as an earlier program had it: same parameters, same sizes.
TEST(IndexCorpus, CodesOfAnotherTrellisAreRefused) {
  const auto bytes = load(kCorpus / "other_trellis_TQ3t");
  ASSERT_FALSE(bytes.empty());
  EXPECT_THAT(test::error_of([&] { read_flat_index(bytes.data(), bytes.size()); }),
              testing::HasSubstr("another rotation or level table"));
}

TEST(IndexCorpus, NoFileCrashesTheReader) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kCorpus)) {
    const auto bytes = load(entry.path());
    test::fuzz_index_file(bytes.data(), bytes.size());
    ++files;
  }
  EXPECT_EQ(files, 47);
}

}  // namespace
}  // namespace turboquant
