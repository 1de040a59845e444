// For tests that need a device.
#pragma once

#include <gtest/gtest.h>

#include "kernels/cuda/device.h"

/// Skips the test, with a message, where there is no device.
#define TQ_NEEDS_DEVICE()                                                                        \
  do {                                                                                           \
    if (turboquant::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device on this machine"; \
  } while (false)
