// Searches of an IndexIVFTurboQuant list by list: each list that some query visits is read once for
// all of them.
#pragma once

#include <faiss/IndexIVF.h>

#include <cstdint>

#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {

/// The lists that each query visits.
struct IvfProbes {
  std::int64_t n = 0;                   ///< queries
  const float* x = nullptr;             ///< [n][d]
  const std::int64_t* lists = nullptr;  ///< [n][nprobe], -1 for none
  std::int64_t nprobe = 0;
};

/// Whether search_lists answers such a search; FAISS's own loop must otherwise. Throws when
/// the parallel_mode is unknown.
bool can_search_lists(const IndexIVFTurboQuant& index, bool store_pairs,
                      const faiss::IVFSearchParameters* params);

/// The same for range searches, where a selector is taken always.
bool can_range_search_lists(const IndexIVFTurboQuant& index,
                            const faiss::IVFSearchParameters* params);

/// As IndexIVF::search_preassigned. The k best rows of the lists of each query; equal distances are
/// ordered by the smaller label. They depend neither on the number of threads nor on the other
/// queries.
void search_lists(const IndexIVFTurboQuant& index, const IvfProbes& probes, std::int64_t k,
                  float* distances, std::int64_t* labels, bool store_pairs,
                  const faiss::IVFSearchParameters* params, faiss::IndexIVFStats& stats);

/// As IndexIVF::range_search_preassigned, which knows no max_codes. The results of a query come in
/// the order of its lists, and of rows in each. result: made for probes.n queries.
void range_search_lists(const IndexIVFTurboQuant& index, const IvfProbes& probes, float radius,
                        faiss::RangeSearchResult& result, const faiss::IVFSearchParameters* params,
                        faiss::IndexIVFStats& stats);

}  // namespace turboquant
