// `build`: a file of vectors becomes an index file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "tools/commands/metric.h"
#include "tools/commands/progress.h"
#include "tools/io/vector_file.h"

namespace turboquant::tools {

struct BuildOptions {
  std::string input;
  std::optional<io::Format> format;
  std::string dataset = io::kTrainDataset;  ///< of an HDF5 input
  std::string factory;
  SearchMetric metric = SearchMetric::kInnerProduct;
  std::string output;
  std::string ids;                 ///< file with one id per row; empty: row numbers
  std::uint64_t memory_limit = 0;  ///< bytes of resident memory; 0: none
  std::size_t train_size = 0;      ///< rows to train on; 0: chosen by the kind of index
  std::size_t batch_rows = 0;      ///< rows read and added at a time; 0: chosen
  bool resume = false;             ///< keep checkpoints and go on from one
  double checkpoint_seconds = 60;
  bool pack = false;  ///< as IndexWriteOptions::pack
};

struct BuildReport {
  std::uint64_t rows = 0;
  std::uint64_t resumed_at = 0;  ///< rows that a checkpoint held already
  std::size_t dimension = 0;
  std::string description;
  std::uint64_t file_bytes = 0;
  double seconds = 0;
};

/// Throws io::UsageError, io::DataError, io::IoError, io::Interrupted, or what FAISS throws. Then
/// output is as it was before; with resume a checkpoint lies beside it.
BuildReport build_index(const BuildOptions& options, Progress& progress);

}  // namespace turboquant::tools
