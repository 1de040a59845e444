#include "tools/io/ids_file.h"

#include <charconv>
#include <optional>

#include "tools/io/errors.h"
#include "tools/io/text_lines.h"
#include "tools/io/vector_file.h"

namespace turboquant::io {
namespace {

std::vector<std::int64_t> read_text_ids(const std::string& path) {
  const TextLines lines(path);
  std::vector<std::int64_t> ids(lines.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::string line = lines.line(i);
    const char* end = line.data() + line.size();
    const auto [stop, error] = std::from_chars(line.data(), end, ids[i]);
    if (error != std::errc() || stop != end) {
      throw DataError(path + ": row " + std::to_string(i) + ": '" + line.substr(0, 40) +
                      "' is not an integer of 64 bits");
    }
  }
  return ids;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::vector<std::int64_t> read_ids(const std::string& path) {
  if (!ends_with(path, ".npy") && !ends_with(path, ".ibin")) return read_text_ids(path);
  const auto reader = open_vectors(path);
  if (reader->dimension() != 1) {
    throw DataError(path + ": has " + std::to_string(reader->dimension()) +
                    " values a row; ids need one");
  }
  std::vector<std::int64_t> ids(reader->rows());
  reader->read_integers(0, ids.size(), ids.data());
  return ids;
}

}  // namespace turboquant::io
