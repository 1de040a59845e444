// FAISS's factory, reader, writer and clone for trees of indexes that may hold TurboQuant ones.
//
// A program that links the CMake target turboquant::index gets the same from FAISS's own names
// (faiss::index_factory(d, "TQ3"), faiss::write_index, faiss::read_index, faiss::clone_index): the
// target carries linker options that route them through here. Where those options do not reach
// (another build system, a linker without --wrap), call these functions.
//
// All accept trees without TurboQuant indexes too and then do exactly what FAISS does. Failures are
// faiss::FaissException.
#pragma once

#include <faiss/MetricType.h>
#include <faiss/impl/io.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "turboquant/index_turboquant.h"

namespace turboquant {

/// FAISS's factory grammar, with any name that parse_index_name takes wherever a scalar quantizer
/// (SQ8) may stand: "TQ3", "IDMap2,TQ4", "OPQ8_32,IVF16,TQ4,RFlat", "HNSW16,TQ3",
/// "TQ2,Refine(TQ4)", and with +TQ<b> in a Refine, which keeps codes of what the index before it
/// left over (index_refine_residual.h): "IVF16,TQ4,Refine(+TQ4)". At most four different TurboQuant
/// names in one description.
std::unique_ptr<faiss::Index> index_factory(int d, const std::string& description,
                                            faiss::MetricType metric = faiss::METRIC_L2);

struct IndexWriteOptions {
  /// Store TurboQuant codes at about their entropy (docs/packed_codes.md): files are 4 to 6%
  /// smaller, load a little slower and cannot be mapped. Programs from before packing refuse them.
  bool pack = false;
};

/// Files are described in docs/index_format.md. They are readable by every supported FAISS version.
void write_index(const faiss::Index& index, const std::string& path,
                 const IndexWriteOptions& options = {});
void write_index(const faiss::Index& index, faiss::IOWriter* writer,
                 const IndexWriteOptions& options = {});

/// io_flags: FAISS's IO_FLAG_*. What we wrote is checked completely (sizes, parameters, checksums);
/// the wrappers around it are read by FAISS, so its own robustness applies to them.
std::unique_ptr<faiss::Index> read_index(const std::string& path, int io_flags = 0);
std::unique_ptr<faiss::Index> read_index(faiss::IOReader* reader, int io_flags = 0);

/// One flat TurboQuant index from the file bytes data[0, size). Involves no FAISS reader, allocates
/// no more than the bytes justify, and is safe on hostile input.
std::unique_ptr<IndexTurboQuant> read_flat_index(const std::uint8_t* data, std::size_t size);

/// A flat TurboQuant index whose codes stay in the file, mapped into memory and shared by all
/// processes that do so: opening takes no time and no memory of one's own. Read-only: add and reset
/// throw, and it cannot be written or cloned. check_codes reads the file once to verify the codes;
/// without it, only the header is checked. The file must not change while it is open.
std::unique_ptr<faiss::Index> map_flat_index(const std::string& path, bool check_codes = false);

/// A deep copy.
std::unique_ptr<faiss::Index> clone_index(const faiss::Index& index);

/// True when the index is a TurboQuant one or wraps one.
bool contains_turboquant(const faiss::Index& index);

}  // namespace turboquant
