#include "index/checksum.h"

#include <vector>

namespace turboquant {

std::uint64_t code_fingerprint(const Quantizer& codec) {
  std::vector<float> x(codec.dimension());
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  for (float& value : x) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(static_cast<std::int32_t>(state >> 40) - 8388608) / 8388608.0F;
  }
  std::vector<std::uint8_t> code(codec.code_size());
  codec.quantize(x.data(), 1, code.data());
  return checksum(code.data(), code.size());
}

}  // namespace turboquant
