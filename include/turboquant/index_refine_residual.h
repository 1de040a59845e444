// turboquant::IndexRefineResidual: a refining index that keeps TurboQuant codes of what the index
// inside left over (docs/residual_codes.md). The factory makes it of "IVF1024,TQ4,Refine(+TQ4)".
//
// A refined score is the score that the base index found and the product of the query with the
// residual's code, so a second look reads ceil(d * bits / 8) + 4 bytes of a candidate (4 more for
// L2) and estimates stay unbiased.
//
// To FAISS it is an IndexRefine: k_factor, IndexRefineSearchParameters and k_factor_rf mean the
// same. Equal distances are ordered by the smaller id; parameters that are not
// IndexRefineSearchParameters go to the base index. Results do not depend on the number of threads.
#pragma once

#include <faiss/IndexRefine.h>

#include <cstddef>
#include <cstdint>

#include "turboquant/faiss_compat.h"
#include "turboquant/index_turboquant.h"

namespace turboquant {

struct IndexRefineResidual : faiss::IndexRefine {
  /// base: IndexTurboQuant, IndexTwoLevel, IndexIVFTurboQuant, or an IndexHNSW or IndexNSG whose
  /// storage is one of the first two. residuals: of IndexOptions::residual and the base's dimension
  /// and metric, with another seed. Both hold equally many vectors. They are borrowed unless
  /// own_fields and own_refine_index are set.
  IndexRefineResidual(faiss::Index* base, IndexTurboQuant* residuals);

  /// Takes what an IndexRefine of such indexes owns; that one is then empty.
  explicit IndexRefineResidual(faiss::IndexRefine&& refine);

  const IndexTurboQuant& residuals() const;

  /// x: [n][d]; the rows get the ids ntotal to ntotal + n - 1.
  void add(std::int64_t n, const float* x) override;

  void search(std::int64_t n, const float* x, std::int64_t k, float* distances,
              std::int64_t* labels, const faiss::SearchParameters* params = nullptr) const override;

  /// Not offered: throws.
  void range_search(std::int64_t n, const float* x, float radius, faiss::RangeSearchResult* result,
                    const faiss::SearchParameters* params = nullptr) const override;

  /// Takes over another index of this kind, whose ids go up by ntotal, where the base can take over
  /// its base. add_id: 0 or ntotal.
  void check_compatible_for_merge(const faiss::Index& other) const override;
  void merge_from(faiss::Index& other, std::int64_t add_id = 0) override;

  /// The sum of both reconstructions. An inverted file needs a direct map for it, as always.
  void reconstruct(std::int64_t key, float* x) const override;

  /// A row's code is that of the base and then that of the residual.
  void sa_encode(std::int64_t n, const float* x, std::uint8_t* bytes) const override;
  void sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const override;
};

}  // namespace turboquant
