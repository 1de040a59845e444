// From a number of bits at run time to one at compile time. Internal linkage, one copy per backend.
#pragma once

namespace turboquant::kernels {
namespace {

template <int Number>
struct Bits {
  static constexpr int kValue = Number;
};

/// f(Bits<bits>()), bits 1 to 4.
template <typename Function>
inline void by_bits(int bits, const Function& f) {
  switch (bits) {
    case 1:
      return f(Bits<1>());
    case 2:
      return f(Bits<2>());
    case 3:
      return f(Bits<3>());
    default:
      return f(Bits<4>());
  }
}

}  // namespace
}  // namespace turboquant::kernels
