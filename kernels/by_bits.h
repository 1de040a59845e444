// From a number of bits at run time to one at compile time. Internal linkage, one copy per backend.
#pragma once

#include <type_traits>

namespace turboquant::kernels {
namespace {

/// f(std::integral_constant<int, bits>()), bits 1 to 4.
template <typename Function>
inline void by_bits(int bits, const Function& f) {
  switch (bits) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    default:
      return f(std::integral_constant<int, 4>());
  }
}

}  // namespace
}  // namespace turboquant::kernels
