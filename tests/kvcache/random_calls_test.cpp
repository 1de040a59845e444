// The C API under random calls of fixed seeds; tests/fuzz/kvcache_fuzz.cpp goes on from here.
#include "tests/kvcache/random_calls.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace turboquant::kv {
namespace {

TEST(RandomCalls, AgreeWithAModel) {
  for (std::uint32_t seed = 0; seed < 400; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::uint8_t> bytes(600);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    ASSERT_EQ(test::random_calls(bytes.data(), bytes.size()), "") << "seed " << seed;
  }
}

}  // namespace
}  // namespace turboquant::kv
