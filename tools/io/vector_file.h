// Files of vectors: one interface over .npy, .fvecs/.bvecs/.ivecs, .fbin/.u8bin/.i8bin/.ibin and
// the HDF5 files of ann-benchmarks. Memory use does not depend on the size of the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tools/io/byte_source.h"
#include "tools/io/element.h"

namespace turboquant::io {

enum class Format : std::uint8_t {
  kNpy,    ///< NumPy, versions 1 to 3, little endian, C order, one or two axes
  kFvecs,  ///< per row: int32 dimension, then values
  kBvecs,
  kIvecs,
  kFbin,  ///< uint32 rows, uint32 dimension, then values
  kU8bin,
  kI8bin,
  kIbin,  ///< may be followed by as many float32 distances, which are not read
  kHdf5,  ///< one dataset of two axes
};

std::string format_name(Format format);
/// "fvecs" and so on; nullopt when unknown.
std::optional<Format> parse_format(const std::string& name);
/// By the name's extension. Throws UsageError when that says nothing.
Format guess_format(const std::string& path);

/// Rows of equal dimension. Not thread-safe.
class VectorReader {
 public:
  virtual ~VectorReader() = default;
  VectorReader(const VectorReader&) = delete;
  VectorReader& operator=(const VectorReader&) = delete;

  const std::string& name() const { return name_; }
  Format format() const { return format_; }
  Element element() const { return element_; }
  std::uint64_t rows() const { return rows_; }
  /// At least 1 and at most 2^31 - 1. An .npy of one axis has dimension 1.
  std::size_t dimension() const { return dimension_; }

  /// x[n][dimension()] = rows first to first + n, which must exist. Integers become floats.
  void read(std::uint64_t first, std::size_t n, float* x);

  /// The same for files of integers; throws DataError for floats.
  void read_integers(std::uint64_t first, std::size_t n, std::int64_t* x);

 protected:
  VectorReader(std::string name, Format format) : name_(std::move(name)), format_(format) {}
  void set_shape(Element element, std::uint64_t rows, std::uint64_t dimension);

  /// out: n * dimension() packed elements.
  virtual void read_elements(std::uint64_t first, std::size_t n, void* out) = 0;

 private:
  template <typename Convert>
  void read_converted(std::uint64_t first, std::size_t n, Convert convert);

  std::string name_;
  Format format_;
  Element element_ = Element::kF4;
  std::uint64_t rows_ = 0;
  std::size_t dimension_ = 1;
  std::vector<std::uint8_t> scratch_;
};

/// The sets of an ann-benchmarks file.
inline constexpr const char* kTrainDataset = "train";
inline constexpr const char* kTestDataset = "test";
inline constexpr const char* kNeighborsDataset = "neighbors";

/// Opens by `format`, or by extension. `dataset` matters for HDF5 alone.
/// Throws UsageError (unknown format), IoError (cannot open), DataError (not such a file).
std::unique_ptr<VectorReader> open_vectors(const std::string& path,
                                           std::optional<Format> format = std::nullopt,
                                           const std::string& dataset = kTrainDataset);

/// For every format but HDF5.
std::unique_ptr<VectorReader> open_vectors(std::unique_ptr<ByteSource> source, Format format);

/// Throws DataError naming the first row of x[n][dimension] that holds NaN or infinity; row 0 of x
/// is row `first` of the file `name`.
void require_finite(const std::string& name, std::uint64_t first, std::size_t n,
                    std::size_t dimension, const float* x);

/// read() and require_finite().
void read_finite(VectorReader& reader, std::uint64_t first, std::size_t n, float* x);

}  // namespace turboquant::io
