// The header of a .npy file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tools/io/byte_source.h"
#include "tools/io/element.h"

namespace turboquant::io {

struct NpyHeader {
  Element element = Element::kF4;
  std::uint64_t rows = 0;
  std::uint64_t dimension = 1;  ///< 1 when the array has one axis
  std::uint64_t header_bytes = 0;
};

/// Throws DataError for anything but a little-endian C-order array of one or two axes of a known
/// element type. Does not compare the shape with the size of the source.
NpyHeader read_npy_header(const ByteSource& source);

/// Bytes to put before the elements, a multiple of 64, version 1.0.
std::string make_npy_header(Element element, std::uint64_t rows, std::uint64_t dimension);

}  // namespace turboquant::io
