// Folders, bytes and data for the tests of the tools.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

namespace turboquant::testing {

/// A folder of its own for every test, removed at the end.
class FolderTest : public ::testing::Test {
 protected:
  FolderTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "turboquant-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    folder_ = pattern;
  }
  ~FolderTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  /// Names in the folder, sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      found.push_back(entry.path().filename().string());
    }
    std::sort(found.begin(), found.end());
    return found;
  }

 private:
  std::filesystem::path folder_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

template <typename... T>
std::string little_endian(T... values) {
  std::string bytes;
  (bytes.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
  return bytes;
}

/// Standard normal values.
inline std::vector<float> random_floats(std::size_t n, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& value : x) value = normal(generator);
  return x;
}

inline std::string fbin_bytes(std::uint32_t rows, std::uint32_t dimension,
                              const std::vector<float>& x) {
  std::string bytes = little_endian(rows, dimension);
  bytes.append(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(float));
  return bytes;
}

/// The data that comes with the repository.
inline std::string example(const std::string& name) {
  return std::string(TURBOQUANT_EXAMPLE_DATA) + "/" + name;
}

/// Runs a statement that must throw Exception with a message containing every part.
#define EXPECT_FAILS(statement, Exception, ...)                             \
  try {                                                                     \
    statement;                                                              \
    ADD_FAILURE() << "no exception: " #statement;                           \
  } catch (const Exception& error) {                                        \
    for (const std::string& part : std::vector<std::string>{__VA_ARGS__}) { \
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)    \
          << "'" << error.what() << "' lacks '" << part << "'";             \
    }                                                                       \
  }

}  // namespace turboquant::testing
