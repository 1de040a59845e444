#include "tools/io/vector_writer.h"

#include <array>
#include <limits>
#include <stdexcept>

#include "tools/io/errors.h"
#include "tools/io/npy_header.h"

namespace turboquant::io {
namespace {

bool is_vecs(Format format) {
  return format == Format::kFvecs || format == Format::kBvecs || format == Format::kIvecs;
}

}  // namespace

Element element_for(Format format, Element wanted) {
  switch (format) {
    case Format::kNpy:
      return wanted;
    case Format::kFvecs:
    case Format::kFbin:
      return Element::kF4;
    case Format::kBvecs:
    case Format::kU8bin:
      return Element::kU1;
    case Format::kI8bin:
      return Element::kI1;
    case Format::kIvecs:
    case Format::kIbin:
      return Element::kI4;
    case Format::kHdf5:
      break;
  }
  throw UsageError("HDF5 files can be read, not written");
}

VectorWriter::VectorWriter(const std::string& path, Format format, Element element,
                           std::uint64_t rows, std::size_t dimension)
    : file_(path), format_(format), element_(element), rows_(rows), dimension_(dimension) {
  if (element != element_for(format, element)) {
    throw std::logic_error("the format does not hold this element type");
  }
  if (format == Format::kNpy) {
    const std::string header = make_npy_header(element, rows, dimension);
    file_.write(header.data(), header.size());
  } else if (!is_vecs(format)) {
    if (rows > std::numeric_limits<std::uint32_t>::max()) {
      throw UsageError(path + ": " + format_name(format) + " counts its rows in 32 bits, " +
                       std::to_string(rows) + " are too many; use .npy");
    }
    const std::array<std::uint32_t, 2> shape = {static_cast<std::uint32_t>(rows),
                                                static_cast<std::uint32_t>(dimension)};
    file_.write(shape.data(), sizeof shape);
  }
}

template <typename Encode>
void VectorWriter::append_rows(std::size_t n, Encode encode) {
  if (n > rows_ - appended_) throw std::logic_error("more rows than the header says");
  row_.resize(dimension_ * element_size(element_));
  const auto dimension = static_cast<std::int32_t>(dimension_);
  for (std::size_t i = 0; i < n; ++i, ++appended_) {
    encode(i, row_.data());
    if (is_vecs(format_)) file_.write(&dimension, sizeof dimension);
    file_.write(row_.data(), row_.size());
  }
}

void VectorWriter::append(const float* x, std::size_t n) {
  append_rows(n, [&](std::size_t i, void* out) {
    from_floats(element_, x + i * dimension_, dimension_, out);
  });
}

void VectorWriter::append(const std::int64_t* x, std::size_t n) {
  append_rows(n, [&](std::size_t i, void* out) {
    const std::int64_t* row = x + i * dimension_;
    const std::size_t bad = from_integers(element_, row, dimension_, out);
    if (bad < dimension_) {
      throw DataError(file_.path() + ": row " + std::to_string(appended_) + ": " +
                      std::to_string(row[bad]) + " does not fit in " + element_name(element_) +
                      "; a .npy file can hold i8");
    }
  });
}

void VectorWriter::commit() {
  if (appended_ != rows_) throw std::logic_error("fewer rows than the header says");
  file_.commit();
}

}  // namespace turboquant::io
