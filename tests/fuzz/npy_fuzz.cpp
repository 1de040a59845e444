#include "tests/fuzz/vector_file_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  turboquant::testing::fuzz_vector_file(data, size, turboquant::io::Format::kNpy);
  return 0;
}
