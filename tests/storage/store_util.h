// What the storage tests share: a folder of their own, records by seed, comparisons.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "turboquant/store.h"

namespace turboquant::test {

#define ASSERT_OK(expression)                            \
  do {                                                   \
    const auto& tq_result = (expression);                \
    ASSERT_TRUE(tq_result.ok()) << status_of(tq_result); \
  } while (false)
#define EXPECT_OK(expression)                            \
  do {                                                   \
    const auto& tq_result = (expression);                \
    EXPECT_TRUE(tq_result.ok()) << status_of(tq_result); \
  } while (false)

inline std::string status_of(const absl::Status& status) { return std::string(status.ToString()); }
template <class T>
std::string status_of(const absl::StatusOr<T>& result) {
  return std::string(result.status().ToString());
}

/// Where tests put their folders: in memory where there is enough, since no test here depends on
/// what a disk does and every one of them syncs often.
inline std::filesystem::path temp_root() {
  std::error_code error;
  const char* chosen = std::getenv("TMPDIR");
  const auto space = std::filesystem::space("/dev/shm", error);
  if (chosen == nullptr && !error && space.available > std::uintmax_t{2} << 30) return "/dev/shm";
  return std::filesystem::temp_directory_path();
}

/// An empty folder that goes away with this object.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (temp_root() / "tq_store_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::vector<float> random_vectors(std::size_t n, std::size_t d, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n * d);
  for (float& v : x) v = normal(random);
  return x;
}

inline std::vector<RecordId> number_ids(std::size_t n, std::uint64_t first = 0) {
  std::vector<RecordId> ids(n);
  for (std::size_t i = 0; i < n; ++i) ids[i] = first + i;
  return ids;
}

inline StoreOptions quiet_options() {
  StoreOptions options;
  options.background = false;
  return options;
}

inline WriteOptions with(Durability durability) {
  WriteOptions options;
  options.durability = durability;
  return options;
}

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  return bits;
}

/// The same ids, the same bits of scores, the same metadata and vectors.
inline void expect_same(const std::vector<Hits>& a, const std::vector<Hits>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t q = 0; q < a.size(); ++q) {
    ASSERT_EQ(a[q].size(), b[q].size()) << "query " << q;
    for (std::size_t i = 0; i < a[q].size(); ++i) {
      ASSERT_EQ(a[q][i].id, b[q][i].id) << "query " << q << " hit " << i;
      ASSERT_EQ(bits_of(a[q][i].score), bits_of(b[q][i].score)) << "query " << q << " hit " << i;
      ASSERT_EQ(a[q][i].metadata, b[q][i].metadata);
      ASSERT_EQ(a[q][i].vector, b[q][i].vector);
    }
  }
}

/// All records by scrolling in pages.
inline std::vector<Record> scroll_all(const Collection& collection, std::size_t page = 1000,
                                      const std::optional<Filter>& filter = {},
                                      const Parts& parts = {true, true}) {
  std::vector<Record> all;
  ScrollOptions options;
  options.limit = page;
  options.filter = filter;
  options.parts = parts;
  do {
    auto got = collection.scroll(options);
    EXPECT_OK(got);
    if (!got.ok()) return all;
    for (Record& record : got->records) all.push_back(std::move(record));
    options.cursor = got->cursor;
  } while (!options.cursor.empty());
  return all;
}

}  // namespace turboquant::test
