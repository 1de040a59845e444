// For test programs that ctest runs once per backend: skips all tests when the processor lacks the
// backend that TURBOQUANT_FORCE_ISA names, and fails them when another one runs.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/kernel_table.h"

namespace turboquant {

class ForcedIsa : public testing::Environment {
 public:
  void SetUp() override {
    const char* forced = std::getenv("TURBOQUANT_FORCE_ISA");
    if (forced == nullptr || *forced == '\0') return;
    if (kernels::find(forced) == nullptr) GTEST_SKIP() << forced << " does not run here";
    ASSERT_STREQ(kernels::active().name, forced);
  }
};

inline testing::Environment* const kForcedIsa = testing::AddGlobalTestEnvironment(new ForcedIsa);

}  // namespace turboquant
