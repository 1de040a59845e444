// The integer levels, the step between them in units of N(0, 1), and the thresholds: part of the
// byte format. quantizer/derive_levels.cpp derives them.
#pragma once

#include "kernels/kernel_table.h"

namespace turboquant {

/// Levels and thresholds of a code of 1 to 4 bits. Code 0 is the most negative level; the top bit
/// of a code is the sign.
const kernels::CodeTable& level_table(int bits);

/// What a level is multiplied by to approximate a N(0, 1) coordinate with the smallest squared
/// error (Lloyd-Max over the integers).
double level_step(int bits);

/// The two readings of a b-bit kQjl code: its low b - 1 bits are a level of level_table(b - 1)
/// (0 when b is 1), its top bit is the sign of the projected residual.
kernels::CodeTable qjl_level_table(int bits);
kernels::CodeTable qjl_sign_table(int bits);

}  // namespace turboquant
