#include "tests/fuzz/index_file_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  turboquant::test::fuzz_index_file(data, size);
  return 0;
}
