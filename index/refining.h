// Searches of IndexRefine around a TurboQuant index. FAISS's own scores rows one by one with what
// instructions it was compiled for, and waits for each row to come from memory.
#pragma once

#include <faiss/IndexRefine.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "turboquant/faiss_compat.h"

namespace turboquant {

/// Scores the candidates of one query at a time. Not thread-safe.
class SecondLook {
 public:
  virtual ~SecondLook() = default;
  /// labels[n]: candidates, of rows that the refining index has. scores[n]: those of the base
  /// index, which the refined ones replace.
  virtual void score(const float* query, const std::int64_t* labels, std::size_t n,
                     float* scores) = 0;
};

/// As faiss::IndexRefine::search, but equal distances are ordered by the smaller id, and parameters
/// that are not IndexRefineSearchParameters go to the base index. make_look: called once by each
/// thread.
void search_refined(const faiss::IndexRefine& index, std::int64_t n, const float* x, std::int64_t k,
                    float* distances, std::int64_t* labels, const faiss::SearchParameters* params,
                    const std::function<std::unique_ptr<SecondLook>()>& make_look);

/// The same with the exact scores of the refining index.
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

/// The index itself, or its counterpart of ours when it refines a tree with a TurboQuant index:
/// IndexRefineResidual when it does so by residuals, else Refining. Throws where residuals do not
/// fit their base.
std::unique_ptr<faiss::Index> with_refining(std::unique_ptr<faiss::Index> index);

}  // namespace turboquant
