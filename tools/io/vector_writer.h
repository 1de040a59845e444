// Writes .npy, .fvecs/.bvecs/.ivecs and .fbin/.u8bin/.i8bin/.ibin, whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tools/io/atomic_file.h"
#include "tools/io/element.h"
#include "tools/io/vector_file.h"

namespace turboquant::io {

/// The element type that a format implies; `wanted` where it implies none (.npy). Throws UsageError
/// for HDF5, which is only read.
Element element_for(Format format, Element wanted);

class VectorWriter {
 public:
  /// element must be element_for(format, element). Throws UsageError when the format cannot hold
  /// so many rows.
  VectorWriter(const std::string& path, Format format, Element element, std::uint64_t rows,
               std::size_t dimension);

  Element element() const { return element_; }

  /// Appends x[n][dimension]; the element must be a float type.
  void append(const float* x, std::size_t n);
  /// Appends x[n][dimension]; the element must be an integer type. Throws DataError naming the row
  /// whose value does not fit.
  void append(const std::int64_t* x, std::size_t n);

  /// All rows must have been appended.
  void commit();

 private:
  template <typename Encode>
  void append_rows(std::size_t n, Encode encode);

  AtomicFile file_;
  Format format_;
  Element element_;
  std::uint64_t rows_;
  std::size_t dimension_;
  std::uint64_t appended_ = 0;
  std::vector<std::uint8_t> row_;
};

}  // namespace turboquant::io
