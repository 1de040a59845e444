#include "quantizer/rotation.h"

#include <cmath>

namespace turboquant {

std::uint64_t random_word(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

Rotation::Rotation(std::size_t d, std::uint64_t seed) : d_(d), window_(1) {
  while (window_ * 2 <= d) window_ *= 2;
  rounds_ = window_ == d ? 2 : 4;
  factors_.resize(rounds_ * window_);
  const auto size = static_cast<float>(1 / std::sqrt(static_cast<double>(window_)));
  for (std::size_t round = 0; round < rounds_; ++round) {
    for (std::size_t i = 0; i < window_; ++i) {
      // 1,024 words a round hold the signs of the largest window.
      const std::uint64_t word = random_word(seed, round * 1024 + i / 64);
      factors_[round * window_ + i] = (word >> (i % 64) & 1) != 0 ? size : -size;
    }
  }
}

void Rotation::apply(const kernels::KernelTable& kernels, float* y) const {
  for (std::size_t round = 0; round < rounds_; ++round) {
    float* part = y + offset(round);
    kernels.multiply(part, factors_.data() + round * window_, window_);
    kernels.fwht(part, window_);
  }
}

void Rotation::apply_inverse(const kernels::KernelTable& kernels, float* y) const {
  for (std::size_t round = rounds_; round-- > 0;) {
    float* part = y + offset(round);
    kernels.fwht(part, window_);
    kernels.multiply(part, factors_.data() + round * window_, window_);
  }
}

}  // namespace turboquant
