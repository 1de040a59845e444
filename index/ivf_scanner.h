// FAISS's way to scan the lists of an IndexIVFTurboQuant: one query, list after list.
#pragma once

#include <faiss/IndexIVF.h>

#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {

/// The caller owns the result. selector: may be null; borrowed, as is the index.
faiss::InvertedListScanner* make_list_scanner(const IndexIVFTurboQuant& index, bool store_pairs,
                                              const faiss::IDSelector* selector);

}  // namespace turboquant
