// The tables that the backends define; dispatch.cpp picks among those that were built.
#pragma once

#include "kernels/kernel_table.h"

namespace turboquant::kernels {

namespace scalar {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx512vbmi {
extern const KernelTable kTable;
}
namespace amx {
extern const KernelTable kTable;
/// Asks the kernel for the tile registers. False when it refuses.
bool enable();
}  // namespace amx
namespace neon {
extern const KernelTable kTable;
}

}  // namespace turboquant::kernels
