// Searches of IndexRefine around a TurboQuant index. FAISS's own scores rows one by one with what
// instructions it was compiled for, and waits for each row to come from memory.
#pragma once

#include <faiss/IndexRefine.h>

#include <cstdint>
#include <memory>

#include "turboquant/faiss_compat.h"

namespace turboquant {

/// As faiss::IndexRefine::search, but equal distances are ordered by the smaller id, and parameters
/// that are not IndexRefineSearchParameters go to the base index.
void search_refined(const faiss::IndexRefine& index, std::int64_t n, const float* x, std::int64_t k,
                    float* distances, std::int64_t* labels, const faiss::SearchParameters* params);

/// Refine: faiss::IndexRefine or IndexRefineFlat. To FAISS, an index of that class.
template <class Refine>
struct Refining : Refine {
  explicit Refining(const Refine& index) : Refine(index) {}

  void search(std::int64_t n, const float* x, std::int64_t k, float* distances,
              std::int64_t* labels, const faiss::SearchParameters* params) const override {
    search_refined(*this, n, x, k, distances, labels, params);
  }
};

/// The index itself, or its Refining counterpart when it refines a tree with a TurboQuant index.
std::unique_ptr<faiss::Index> with_refining(std::unique_ptr<faiss::Index> index);

}  // namespace turboquant
