// The fingerprint of docs/index_format.md.
#pragma once

#include <cstdint>

#include "packing/checksum.h"
#include "turboquant/quantizer.h"

namespace turboquant {

/// Of one known vector's code: equal for codecs that make the same codes.
std::uint64_t code_fingerprint(const Quantizer& codec);

}  // namespace turboquant
