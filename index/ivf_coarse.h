// Which lists of an IndexIVFTurboQuant queries visit.
#pragma once

#include <faiss/Index.h>

#include <cstdint>

#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {

/// lists[n][nprobe]: those of the nearest centroids, nearest first, -1 where the coarse quantizer
/// found none. With a flat coarse quantizer our kernels find them, whose speed does not depend on
/// how FAISS was compiled and whose answer does not on how many queries there are; all else is
/// FAISS's.
void nearest_lists(const IndexIVFTurboQuant& index, std::int64_t n, const float* x,
                   std::int64_t nprobe, std::int64_t* lists,
                   const faiss::SearchParameters* quantizer_params);

}  // namespace turboquant
