// The backend that the environment forces is the one that runs.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kernels/kernel_table.h"

namespace turboquant::kernels {
namespace {

// active() is decided once a process, so each case runs in a child.
void report_active() {
  const std::string name = active().name;
  std::fprintf(stderr, "active=%s.", name.c_str());
  std::exit(0);
}

TEST(Dispatch, ForcedBackendRuns) {
  for (const char* const* name = available(); *name != nullptr; ++name) {
    setenv("TURBOQUANT_FORCE_ISA", *name, 1);
    EXPECT_EXIT(report_active(), testing::ExitedWithCode(0),
                std::string("active=") + *name + "\\.");
  }
  unsetenv("TURBOQUANT_FORCE_ISA");
}

TEST(Dispatch, BestBackendRunsByDefault) {
  unsetenv("TURBOQUANT_FORCE_ISA");
  EXPECT_EXIT(report_active(), testing::ExitedWithCode(0),
              std::string("active=") + available()[0] + "\\.");
}

TEST(Dispatch, UnknownNameIsAnError) {
  setenv("TURBOQUANT_FORCE_ISA", "sse9", 1);
  EXPECT_EXIT(
      {
        try {
          active();
          std::exit(1);
        } catch (const std::runtime_error& error) {
          std::fprintf(stderr, "%s", error.what());
          std::exit(0);
        }
      },
      testing::ExitedWithCode(0), "sse9: available here are .*scalar");
  unsetenv("TURBOQUANT_FORCE_ISA");
}

TEST(Dispatch, ScalarIsAlwaysThere) {
  ASSERT_NE(find("scalar"), nullptr);
  EXPECT_STREQ(find("scalar")->name, "scalar");
  EXPECT_EQ(find("none"), nullptr);
}

TEST(Dispatch, NamesMatchTables) {
  for (const char* const* name = available(); *name != nullptr; ++name) {
    ASSERT_NE(find(*name), nullptr);
    EXPECT_STREQ(find(*name)->name, *name);
  }
}

}  // namespace
}  // namespace turboquant::kernels
