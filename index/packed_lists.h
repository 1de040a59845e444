// Inverted lists with packed codes, in index files (docs/index_format.md).
#pragma once

#include <faiss/impl/io.h>
#include <faiss/invlists/InvertedLists.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "index/checked_reader.h"
#include "packing/rows.h"

namespace turboquant {

void write_packed_lists(faiss::IOWriter* writer, const packing::RowLayout& layout,
                        const faiss::InvertedLists& lists);

/// `lists` lists of `count` rows together. Everything is checked but the floats in the codes.
std::unique_ptr<faiss::ArrayInvertedLists> read_packed_lists(CheckedReader& reader,
                                                             const packing::RowLayout& layout,
                                                             std::size_t lists,
                                                             std::uint64_t count);

/// Refuses sizes that do not add up to count.
void require_list_sizes(const CheckedReader& reader, const std::vector<std::uint64_t>& sizes,
                        std::uint64_t count);

}  // namespace turboquant
