// A random orthogonal matrix in O(d log d): rounds of random signs and fast Walsh-Hadamard
// transforms, without padding d. Part of the byte format: the same seed gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernel_table.h"
#include "quantizer/aligned.h"

namespace turboquant {

class Rotation {
 public:
  /// Bumped when the same seed would give another matrix.
  static constexpr std::uint32_t kVersion = 1;

  /// d from 1 to 65,536. If d is a power of two, 2 rounds over all coordinates; else 4 rounds,
  /// over the first and the last p coordinates in turn, p the largest power of two below d.
  Rotation(std::size_t d, std::uint64_t seed);

  std::size_t dimension() const { return d_; }
  std::size_t window() const { return window_; }
  std::size_t rounds() const { return rounds_; }
  /// [rounds][window]: what each coordinate of a round's window is multiplied by.
  const float* factors() const { return factors_.data(); }

  /// y = R y, y of d floats.
  void apply(const kernels::KernelTable& kernels, float* y) const;

  /// y = R^T y.
  void apply_inverse(const kernels::KernelTable& kernels, float* y) const;

 private:
  std::size_t offset(std::size_t round) const { return round % 2 == 0 ? 0 : d_ - window_; }

  std::size_t d_;
  std::size_t window_;            // p
  std::size_t rounds_;            // 2 or 4
  AlignedVector<float> factors_;  // [rounds][window], random sign / sqrt(window)
};

/// The generator of every random bit here (SplitMix64 of a counter): word i of stream `seed`.
std::uint64_t random_word(std::uint64_t seed, std::uint64_t i);

}  // namespace turboquant
