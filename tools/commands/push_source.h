// The rows that `push` sends: vectors of a file, with ids and metadata from files beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tools/io/text_lines.h"
#include "tools/io/vector_file.h"
#include "turboquant/store.h"

namespace turboquant::tools {

struct PushInput {
  std::string vectors;
  std::optional<io::Format> format;
  std::string dataset;   ///< of an HDF5 file
  std::string ids;       ///< one integer a row; empty: row numbers
  std::string names;     ///< text with a line a row: names as ids
  std::string text;      ///< text with a line a row, stored as the field text_field
  std::string metadata;  ///< JSON lines, one object a row; may be compressed by gzip
  std::string text_field = "text";
  std::string id_field;  ///< take the id from this member of the JSON objects, out of the metadata
};

/// A row that cannot be stored, and why.
struct BadRow {
  std::uint64_t row = 0;
  std::string reason;
};

struct PushBatch {
  std::vector<RecordId> ids;
  std::vector<float> vectors;
  std::vector<Metadata> metadata;  ///< empty when there is none
  std::vector<BadRow> bad;         ///< rows that are not in the batch
};

class JsonLines;

class PushSource {
 public:
  /// Throws io::IoError, io::DataError, io::UsageError.
  explicit PushSource(const PushInput& input);
  ~PushSource();

  std::uint64_t rows() const { return vectors_->rows(); }
  std::size_t dimension() const { return vectors_->dimension(); }

  /// Rows first to first + n. Calls go forward. What the collection would refuse is in `bad`:
  /// vectors that are not finite, or all zero under cosine; ids and metadata that do not fit.
  PushBatch read(std::uint64_t first, std::size_t n, const CollectionOptions& collection);

 private:
  void read_row(std::uint64_t row, const float* x, const CollectionOptions& collection,
                PushBatch& batch);
  RecordId id_of(std::uint64_t row, Metadata& metadata) const;

  const PushInput input_;
  std::unique_ptr<io::VectorReader> vectors_;
  std::vector<std::int64_t> ids_;
  std::unique_ptr<io::TextLines> names_;
  std::unique_ptr<io::TextLines> text_;
  std::unique_ptr<JsonLines> metadata_;
};

}  // namespace turboquant::tools
