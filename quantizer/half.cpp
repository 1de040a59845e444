#include "quantizer/half.h"

#include <cstring>

namespace turboquant {

float half_to_float(std::uint16_t half) {
  // Exponent and mantissa move to float's place, 112 exponent steps too low; the product with 2^112
  // puts that right, subnormals included. Infinity and NaN keep an all-ones exponent.
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t magnitude = (half & 0x7fffU) << 13;
  float value;
  std::memcpy(&value, &magnitude, sizeof value);
  value *= 0x1p112F;
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits |= magnitude >= 0x0f800000U ? 0x7f800000U : 0U;
  bits |= sign;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint16_t float_to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return sign | 0x7e00U;   // NaN
  if (magnitude >= 0x477ff000U) return sign | 0x7c00U;  // 65,520 and more round to infinity
  if (magnitude < 0x38800000U) {                        // below 2^-14: a multiple of 2^-24
    float small;
    std::memcpy(&small, &magnitude, sizeof small);
    // Adding 0.5 makes the unit in the last place 2^-24, so the addition itself rounds to even.
    small += 0.5F;
    std::uint32_t rounded;
    std::memcpy(&rounded, &small, sizeof rounded);
    return static_cast<std::uint16_t>(sign | (rounded - 0x3f000000U));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1U;
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000U + 0xfffU + odd) >> 13));
}

}  // namespace turboquant
