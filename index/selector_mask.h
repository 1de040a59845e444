// FAISS's id selectors as the row masks that quantizer/scanner.h takes.
#pragma once

#include <faiss/impl/IDSelector.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace turboquant {

/// Words of a mask over n rows: bit i % 64 of word i / 64 tells whether row i is selected; bits
/// past n are 0. FAISS's own selector classes are evaluated without one call per row.
std::vector<std::uint64_t> selector_mask(const faiss::IDSelector& selector, std::size_t n);

}  // namespace turboquant
