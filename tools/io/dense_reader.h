// Readers of the formats whose rows lie at fixed distances in the file.
#pragma once

#include <memory>

#include "tools/io/byte_source.h"
#include "tools/io/vector_file.h"

namespace turboquant::io {

/// Each checks the header against the size of the source before anything is read by it, and
/// throws DataError.
std::unique_ptr<VectorReader> open_npy(std::unique_ptr<ByteSource> source);
std::unique_ptr<VectorReader> open_vecs(std::unique_ptr<ByteSource> source, Format format,
                                        Element element);
std::unique_ptr<VectorReader> open_bin(std::unique_ptr<ByteSource> source, Format format,
                                       Element element);

}  // namespace turboquant::io
