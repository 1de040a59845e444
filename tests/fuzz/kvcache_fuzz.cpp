// Random calls of the KV cache's C API beside a model; any difference ends the program.
#include <cstdio>
#include <cstdlib>

#include "tests/kvcache/random_calls.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string wrong = turboquant::kv::test::random_calls(data, size);
  if (wrong.empty()) return 0;
  std::fprintf(stderr, "%s\n", wrong.c_str());
  std::abort();
}
