// Rows of trellis codes from rotated vectors: the best path of each, as KernelTable::trellis_encode
// finds it. Bytes are those of docs/code_format.md.
#pragma once

#include <cstddef>

#include "kernels/cuda/codec.h"

namespace turboquant::cuda {

/// Rotated vectors, of the device.
struct RotatedPointers {
  float* y;       // [n][d]
  double* norms;  // [n] what the length was, of what is left without the centre
};

class TrellisEncoder {
 public:
  /// table: of the host.
  TrellisEncoder(const RowLayout& layout, const kernels::TrellisTable& table);

  /// Vectors that may be encoded at a time, and the working memory of the device for so many.
  std::size_t most_vectors() const;
  std::size_t work_bytes(std::size_t n) const;

  /// Codes and scales of n vectors, at most most_vectors().
  void encode(const RotatedPointers& rotated, std::size_t n, const RowPointers& rows, void* work,
              int device, StreamPointer stream) const;

 private:
  std::size_t steps() const;

  RowLayout layout_;
  kernels::TrellisTable table_;
};

}  // namespace turboquant::cuda
