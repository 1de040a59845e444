// The tables of the trellis codes: part of the byte format. quantizer/derive_trellis.cpp derives
// them.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace turboquant {

/// Levels of a trellis code of 1 to 4 bits a coordinate.
const kernels::TrellisTable& trellis_table(int bits);

/// What a level is multiplied by to approximate a N(0, 1) coordinate with the smallest squared
/// error.
double trellis_step(int bits);

}  // namespace turboquant
