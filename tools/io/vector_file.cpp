#include "tools/io/vector_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "tools/io/dense_reader.h"
#include "tools/io/errors.h"
#include "tools/io/hdf5_reader.h"

namespace turboquant::io {
namespace {

// Conversions go through a buffer of about this many bytes.
constexpr std::size_t kScratchBytes = 1U << 20;

struct FormatName {
  const char* name;
  Format format;
};

// The first name of a format is the one that format_name gives.
constexpr std::array<FormatName, 12> kFormats = {{
    {"npy", Format::kNpy},
    {"fvecs", Format::kFvecs},
    {"bvecs", Format::kBvecs},
    {"ivecs", Format::kIvecs},
    {"fbin", Format::kFbin},
    {"u8bin", Format::kU8bin},
    {"i8bin", Format::kI8bin},
    {"ibin", Format::kIbin},
    {"hdf5", Format::kHdf5},
    {"h5", Format::kHdf5},
    {"hdf", Format::kHdf5},
    {"he5", Format::kHdf5},
}};

}  // namespace

std::string format_name(Format format) {
  for (const FormatName& entry : kFormats) {
    if (entry.format == format) return entry.name;
  }
  throw std::logic_error("format without a name");
}

std::optional<Format> parse_format(const std::string& name) {
  for (const FormatName& entry : kFormats) {
    if (name == entry.name) return entry.format;
  }
  return std::nullopt;
}

Format guess_format(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  const std::size_t dot = path.find_last_of('.');
  if (dot != std::string::npos && (slash == std::string::npos || dot > slash)) {
    if (const auto format = parse_format(path.substr(dot + 1))) return *format;
  }
  throw UsageError(path + ": the extension names no known format; say which with --format (npy, " +
                   "fvecs, bvecs, ivecs, fbin, u8bin, i8bin, ibin or hdf5)");
}

void VectorReader::set_shape(Element element, std::uint64_t rows, std::uint64_t dimension) {
  if (dimension == 0) throw DataError(name_ + ": its dimension is 0");
  if (dimension > static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max())) {
    throw DataError(name_ + ": dimension " + std::to_string(dimension) + " is above 2^31 - 1");
  }
  element_ = element;
  rows_ = rows;
  dimension_ = static_cast<std::size_t>(dimension);
}

template <typename Convert>
void VectorReader::read_converted(std::uint64_t first, std::size_t n, Convert convert) {
  const std::size_t row_bytes = dimension_ * element_size(element_);
  const std::size_t chunk = std::max<std::size_t>(1, kScratchBytes / row_bytes);
  for (std::size_t done = 0; done < n;) {
    const std::size_t rows = std::min(chunk, n - done);
    scratch_.resize(std::max(scratch_.size(), rows * row_bytes));
    read_elements(first + done, rows, scratch_.data());
    convert(done, rows);
    done += rows;
  }
}

void VectorReader::read(std::uint64_t first, std::size_t n, float* x) {
  if (first > rows_ || n > rows_ - first) throw std::out_of_range(name_ + ": rows out of range");
  if (n == 0) return;
  if (element_ == Element::kF4) {
    read_elements(first, n, x);
    return;
  }
  read_converted(first, n, [&](std::size_t done, std::size_t rows) {
    to_floats(element_, scratch_.data(), rows * dimension_, x + done * dimension_);
  });
}

void VectorReader::read_integers(std::uint64_t first, std::size_t n, std::int64_t* x) {
  if (first > rows_ || n > rows_ - first) throw std::out_of_range(name_ + ": rows out of range");
  if (is_float(element_)) {
    throw DataError(name_ + ": holds floats (" + element_name(element_) +
                    ") where integers are needed");
  }
  if (n == 0) return;
  read_converted(first, n, [&](std::size_t done, std::size_t rows) {
    const std::size_t count = rows * dimension_;
    const std::size_t bad = to_integers(element_, scratch_.data(), count, x + done * dimension_);
    if (bad < count) {
      throw DataError(name_ + ": row " + std::to_string(first + done + bad / dimension_) +
                      ": an integer above 2^63 - 1");
    }
  });
}

std::unique_ptr<VectorReader> open_vectors(std::unique_ptr<ByteSource> source, Format format) {
  switch (format) {
    case Format::kNpy:
      return open_npy(std::move(source));
    case Format::kFvecs:
      return open_vecs(std::move(source), format, Element::kF4);
    case Format::kBvecs:
      return open_vecs(std::move(source), format, Element::kU1);
    case Format::kIvecs:
      return open_vecs(std::move(source), format, Element::kI4);
    case Format::kFbin:
      return open_bin(std::move(source), format, Element::kF4);
    case Format::kU8bin:
      return open_bin(std::move(source), format, Element::kU1);
    case Format::kI8bin:
      return open_bin(std::move(source), format, Element::kI1);
    case Format::kIbin:
      return open_bin(std::move(source), format, Element::kI4);
    case Format::kHdf5:
      break;
  }
  throw std::logic_error("HDF5 files are opened by name");
}

std::unique_ptr<VectorReader> open_vectors(const std::string& path, std::optional<Format> format,
                                           const std::string& dataset) {
  const Format known = format ? *format : guess_format(path);
  if (known == Format::kHdf5) return open_hdf5(path, dataset);
  return open_vectors(open_file(path), known);
}

void require_finite(const std::string& name, std::uint64_t first, std::size_t n,
                    std::size_t dimension, const float* x) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (std::size_t i = 0; i < n; ++i) {
    const float* row = x + i * dimension;
    bool finite = true;  // no early exit, so that the loop vectorizes
    for (std::size_t j = 0; j < dimension; ++j) finite &= std::fabs(row[j]) <= kLargest;
    if (finite) continue;
    const float* bad =
        std::find_if(row, row + dimension, [](float v) { return !std::isfinite(v); });
    throw DataError(name + ": row " + std::to_string(first + i) + ": value " +
                    std::to_string(bad - row) +
                    (std::isnan(*bad) ? " is NaN" : " is infinite or too large for float32"));
  }
}

void read_finite(VectorReader& reader, std::uint64_t first, std::size_t n, float* x) {
  reader.read(first, n, x);
  require_finite(reader.name(), first, n, reader.dimension(), x);
}

}  // namespace turboquant::io
