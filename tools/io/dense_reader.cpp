#include "tools/io/dense_reader.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "tools/io/errors.h"
#include "tools/io/npy_header.h"

namespace turboquant::io {
namespace {

std::string rows_text(std::uint64_t first, std::size_t n) {
  if (n == 1) return "row " + std::to_string(first);
  return "rows " + std::to_string(first) + " to " + std::to_string(first + n - 1);
}

// rows * dimension * size, or a DataError: no file can be that long.
std::uint64_t payload_bytes(const std::string& name, std::uint64_t rows, std::uint64_t dimension,
                            std::uint64_t size) {
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(rows, dimension, &bytes) ||
      __builtin_mul_overflow(bytes, size, &bytes)) {
    throw DataError(name + ": its header says " + std::to_string(rows) + " rows of dimension " +
                    std::to_string(dimension) + ", more bytes than 64 bits can count");
  }
  return bytes;
}

void require_payload(const ByteSource& source, std::uint64_t header_bytes, std::uint64_t rows,
                     std::uint64_t dimension, std::uint64_t bytes) {
  const std::uint64_t have = source.size() - header_bytes;
  if (have == bytes) return;
  throw DataError(source.name() + ": its header says " + std::to_string(rows) +
                  " rows of dimension " + std::to_string(dimension) + ", which take " +
                  std::to_string(bytes) + " bytes, but " + std::to_string(have) + " follow it (" +
                  (have < bytes ? "truncated?" : "trailing bytes") + ")");
}

// Rows one after another behind a header: .npy and the .bin family.
class PackedReader final : public VectorReader {
 public:
  PackedReader(std::unique_ptr<ByteSource> source, Format format, Element element,
               std::uint64_t header_bytes, std::uint64_t rows, std::uint64_t dimension)
      : VectorReader(source->name(), format),
        source_(std::move(source)),
        header_bytes_(header_bytes) {
    set_shape(element, rows, dimension);
  }

 private:
  void read_elements(std::uint64_t first, std::size_t n, void* out) override {
    const std::size_t row_bytes = dimension() * element_size(element());
    source_->read_at(header_bytes_ + first * row_bytes, n * row_bytes, out, rows_text(first, n));
  }

  std::unique_ptr<ByteSource> source_;
  std::uint64_t header_bytes_;
};

// Each row behind its own dimension.
class VecsReader final : public VectorReader {
 public:
  VecsReader(std::unique_ptr<ByteSource> source, Format format, Element element, std::uint64_t rows,
             std::uint64_t dimension)
      : VectorReader(source->name(), format), source_(std::move(source)) {
    set_shape(element, rows, dimension);
  }

 private:
  void read_elements(std::uint64_t first, std::size_t n, void* out) override {
    constexpr std::size_t kHeader = sizeof(std::int32_t);
    constexpr std::size_t kBufferBytes = 1U << 20;
    const std::size_t row_bytes = dimension() * element_size(element());
    const std::size_t stride = row_bytes + kHeader;
    const std::size_t chunk = std::max<std::size_t>(1, kBufferBytes / stride);
    buffer_.resize(std::min(n, chunk) * stride);
    auto* to = static_cast<std::uint8_t*>(out);
    for (std::size_t done = 0; done < n;) {
      const std::size_t rows = std::min(chunk, n - done);
      source_->read_at((first + done) * stride, rows * stride, buffer_.data(),
                       rows_text(first + done, rows));
      for (std::size_t i = 0; i < rows; ++i, to += row_bytes) {
        const std::uint8_t* row = buffer_.data() + i * stride;
        std::int32_t stated = 0;
        std::memcpy(&stated, row, kHeader);
        if (stated < 0 || static_cast<std::size_t>(stated) != dimension()) {
          throw DataError(name() + ": row " + std::to_string(first + done + i) +
                          ": its dimension is " + std::to_string(stated) + ", that of row 0 is " +
                          std::to_string(dimension()));
        }
        std::memcpy(to, row + kHeader, row_bytes);
      }
      done += rows;
    }
  }

  std::unique_ptr<ByteSource> source_;
  std::vector<std::uint8_t> buffer_;
};

}  // namespace

std::unique_ptr<VectorReader> open_npy(std::unique_ptr<ByteSource> source) {
  const NpyHeader header = read_npy_header(*source);
  const std::uint64_t bytes =
      payload_bytes(source->name(), header.rows, header.dimension, element_size(header.element));
  require_payload(*source, header.header_bytes, header.rows, header.dimension, bytes);
  return std::make_unique<PackedReader>(std::move(source), Format::kNpy, header.element,
                                        header.header_bytes, header.rows, header.dimension);
}

std::unique_ptr<VectorReader> open_vecs(std::unique_ptr<ByteSource> source, Format format,
                                        Element element) {
  const std::uint64_t size = source->size();
  if (size == 0) throw DataError(source->name() + ": empty, so its dimension is unknown");
  std::int32_t dimension = 0;
  source->read_at(0, sizeof dimension, &dimension, "the dimension of row 0");
  if (dimension <= 0) {
    throw DataError(source->name() + ": row 0: its dimension is " + std::to_string(dimension));
  }
  const std::uint64_t stride =
      sizeof dimension + static_cast<std::uint64_t>(dimension) * element_size(element);
  if (size % stride != 0) {
    throw DataError(source->name() + ": row " + std::to_string(size / stride) +
                    ": the file ends inside it, if all rows have the dimension of row 0, " +
                    std::to_string(dimension));
  }
  return std::make_unique<VecsReader>(std::move(source), format, element, size / stride,
                                      static_cast<std::uint64_t>(dimension));
}

std::unique_ptr<VectorReader> open_bin(std::unique_ptr<ByteSource> source, Format format,
                                       Element element) {
  std::array<std::uint32_t, 2> shape{};
  source->read_at(0, sizeof shape, shape.data(), "the header of 8 bytes");
  const auto [rows, dimension] = shape;
  const std::uint64_t bytes = payload_bytes(source->name(), rows, dimension, element_size(element));
  // Ground truth in the manner of the big-ann benchmarks has distances behind the ids.
  const bool with_distances = format == Format::kIbin && bytes > 0 &&
                              (source->size() - sizeof shape) / 2 == bytes &&
                              (source->size() - sizeof shape) % 2 == 0;
  if (!with_distances) require_payload(*source, sizeof shape, rows, dimension, bytes);
  return std::make_unique<PackedReader>(std::move(source), format, element, sizeof shape, rows,
                                        dimension);
}

}  // namespace turboquant::io
