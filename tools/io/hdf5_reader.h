// HDF5 files as ann-benchmarks publishes them: datasets train, test, neighbors, distances.
#pragma once

#include <memory>
#include <string>

#include "tools/io/vector_file.h"

namespace turboquant::io {

/// Any float or integer dataset of two axes, of either byte order, chunked or compressed.
std::unique_ptr<VectorReader> open_hdf5(const std::string& path, const std::string& dataset);

}  // namespace turboquant::io
