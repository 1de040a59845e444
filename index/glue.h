// What stands between a caller of FAISS's functions and FAISS. Each takes the FAISS function to
// call, because with the linker's --wrap the name faiss::read_index leads back here.
#pragma once

#include <faiss/Index.h>
#include <faiss/impl/io.h>

#include <functional>
#include <memory>
#include <string>

namespace turboquant::glue {

using Factory = std::function<std::unique_ptr<faiss::Index>(const std::string& description)>;
std::unique_ptr<faiss::Index> build(const std::string& description, const Factory& faiss_factory);

/// Calls faiss_write with the tree itself, or with a stand-in in which carriers take the place of
/// TurboQuant indexes. The tree is not touched: it may be searched meanwhile.
/// pack: as IndexWriteOptions::pack.
using Write = std::function<void(const faiss::Index* index)>;
void write(const faiss::Index* index, const Write& faiss_write, bool pack = false);

/// Reads from the stream: a flat TurboQuant index with our own reader, anything else with
/// faiss_read, whose carriers are then replaced.
using Read = std::function<std::unique_ptr<faiss::Index>()>;
std::unique_ptr<faiss::Index> read(faiss::IOReader* reader, const Read& faiss_read);

/// A deep copy of a tree that contains a TurboQuant index.
std::unique_ptr<faiss::Index> clone(const faiss::Index& index);

}  // namespace turboquant::glue
