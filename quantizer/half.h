// Half precision (IEEE 754 binary16), infinity and NaN included.
#pragma once

#include <cstdint>

namespace turboquant {

/// Exact.
float half_to_float(std::uint16_t half);
/// Nearest, ties to even; too large becomes infinity.
std::uint16_t float_to_half(float value);

}  // namespace turboquant
