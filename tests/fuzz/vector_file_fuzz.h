// What the fuzz targets of the vector file readers do with one input.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "tools/io/errors.h"
#include "tools/io/vector_file.h"

namespace turboquant::testing {

/// Opens the bytes as a file of the format and reads some rows both ways. Anything but a DataError
/// is a finding, and so is a row that reads differently alone and among others.
inline void fuzz_vector_file(const std::uint8_t* data, std::size_t size, io::Format format) {
  try {
    const auto reader = io::open_vectors(
        std::make_unique<io::MemorySource>(std::vector<std::uint8_t>(data, data + size)), format);
    // The header was checked against the size, so all rows together cannot be larger.
    const std::uint64_t rows = std::min<std::uint64_t>(reader->rows(), 64);
    const std::size_t d = reader->dimension();
    if (rows == 0) return;
    std::vector<float> all(rows * d);
    reader->read(reader->rows() - rows, rows, all.data());
    std::vector<float> last(d);
    reader->read(reader->rows() - 1, 1, last.data());
    const auto same = [](float a, float b) { return a == b || (a != a && b != b); };
    if (!std::equal(last.begin(), last.end(), all.end() - static_cast<std::ptrdiff_t>(d), same)) {
      std::abort();
    }
    std::vector<std::int64_t> integers(d);
    reader->read_integers(0, 1, integers.data());
    io::read_finite(*reader, 0, rows, all.data());
  } catch (const io::DataError&) {
    return;
  }
}

}  // namespace turboquant::testing
