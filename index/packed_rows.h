// Packed rows in index files (docs/packed_codes.md), a batch of groups at a time.
#pragma once

#include <faiss/impl/io.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "index/checked_reader.h"
#include "packing/rows.h"
#include "turboquant/quantizer.h"

namespace turboquant {

/// Throws when the writer takes fewer.
void write_bytes(faiss::IOWriter* writer, const void* data, std::size_t size);

packing::RowLayout row_layout(const Quantizer& codec);

/// How many rows to hand over at once: some groups for each thread.
std::size_t packed_batch_rows(const packing::RowLayout& layout);

/// rows: [n][code_size]. Only the last batch of a sequence may differ from packed_batch_rows.
void write_packed_rows(faiss::IOWriter* writer, const packing::RowLayout& layout,
                       const std::uint8_t* rows, std::size_t n);

/// Reads as many rows, of which a multiple of a group or all that are left; n > 0. scratch: memory
/// to use, worth keeping.
void read_packed_rows(CheckedReader& reader, const packing::RowLayout& layout, std::uint8_t* rows,
                      std::size_t n, std::vector<std::uint8_t>& scratch);

/// Refuses n rows that the rest of the stream cannot hold. False when the stream does not know.
bool require_packed_rows(CheckedReader& reader, const packing::RowLayout& layout, std::uint64_t n);

}  // namespace turboquant
