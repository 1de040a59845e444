#include "tests/fuzz/storage_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  turboquant::test::fuzz_storage(data, size);
  return 0;
}
