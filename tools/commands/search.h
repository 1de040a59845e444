// `search`: the neighbours of every query, to files or as a table to read.
#pragma once

#include <faiss/Index.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "tools/commands/progress.h"
#include "tools/io/vector_file.h"

namespace turboquant::tools {

struct SearchOptions {
  std::string index;
  std::string queries;
  std::optional<io::Format> format;
  std::size_t k = 10;
  std::string output;                  ///< ids: .ibin, .ivecs or .npy; empty: not written
  std::string distances;               ///< scores: .fbin, .fvecs or .npy; empty: not written
  std::string text;                    ///< line i describes row i of the base
  std::string query_text;              ///< line i describes query i
  std::optional<std::uint64_t> limit;  ///< only the first so many queries
  std::string parameters;  ///< of the search, as FAISS's ParameterSpace takes them: "nprobe=16"
};

struct SearchReport {
  std::uint64_t queries = 0;
  double seconds = 0;  ///< searching alone, not loading
};

/// Prints a table to out when options.text is given or no file is asked for.
/// Throws io::UsageError, io::DataError, io::IoError, io::Interrupted, or what FAISS throws.
SearchReport search_index(const SearchOptions& options, std::ostream& out, Progress& progress);

/// Throws io::UsageError when the index knows no such parameter.
void set_search_parameters(faiss::Index& index, const std::string& parameters);

/// Throws io::DataError when the queries do not fit the index.
void require_dimension(const io::VectorReader& queries, const faiss::Index& index);

}  // namespace turboquant::tools
