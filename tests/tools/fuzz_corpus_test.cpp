// The seeds of the fuzz targets, and cut and flipped copies of them, without a fuzzer.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "tests/fuzz/vector_file_fuzz.h"
#include "tests/tools/test_files.h"

namespace turboquant::io {
namespace {

void try_bytes(const std::string& bytes, Format format) {
  testing::fuzz_vector_file(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(),
                            format);
}

TEST(FuzzCorpus, SeedsAndTheirNeighbours) {
  int seeds = 0;
  for (const Format format : {Format::kNpy, Format::kFvecs, Format::kFbin}) {
    const std::string folder = std::string(TURBOQUANT_FUZZ_CORPUS) + "/" + format_name(format);
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string bytes = testing::read_bytes(entry.path().string());
      try_bytes(bytes, format);
      for (std::size_t i = 0; i < bytes.size(); ++i) {
        try_bytes(bytes.substr(0, i), format);
        for (const int flip : {0x01, 0x10, 0x80, 0xff}) {
          std::string changed = bytes;
          changed[i] = static_cast<char>(changed[i] ^ flip);
          try_bytes(changed, format);
        }
      }
      ++seeds;
    }
  }
  EXPECT_GE(seeds, 20);
}

}  // namespace
}  // namespace turboquant::io
