// `convert`: a file of vectors in another format.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tools/commands/progress.h"
#include "tools/io/vector_file.h"

namespace turboquant::tools {

struct ConvertOptions {
  std::string input;
  std::optional<io::Format> format;
  std::string dataset = io::kTrainDataset;
  std::string output;
  std::optional<io::Format> output_format;
  std::optional<io::Element> element;  ///< of a .npy output; otherwise that of the input
  std::uint64_t first = 0;
  std::optional<std::uint64_t> rows;  ///< at most so many
};

/// Rows written. Integers become floats where the output holds floats; floats never become
/// integers. Throws io::UsageError, io::DataError (naming a row that does not fit), io::IoError,
/// io::Interrupted.
std::uint64_t convert_vectors(const ConvertOptions& options, Progress& progress);

}  // namespace turboquant::tools
