// FAISS index files with our errors.
#pragma once

#include <faiss/Index.h>

#include <memory>
#include <string>

#include "turboquant/faiss_io.h"

namespace turboquant::tools {

/// Throws io::IoError when the file cannot be opened, io::DataError when it is not an index.
std::unique_ptr<faiss::Index> load_index(const std::string& path);

/// Written aside, synced and renamed. Throws io::IoError, io::Interrupted.
void save_index(const faiss::Index& index, const std::string& path,
                const IndexWriteOptions& options = {});

/// Throws io::UsageError when FAISS refuses the string.
std::unique_ptr<faiss::Index> make_index(int dimension, const std::string& factory,
                                         faiss::MetricType metric);

}  // namespace turboquant::tools
