// What scans of the lists of an IndexIVFTurboQuant share: how a query is prepared for a list, and
// which of a list's rows a search looks at.
#pragma once

#include <faiss/IndexIVF.h>
#include <faiss/impl/IDSelector.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "index/centroid_table.h"
#include "quantizer/list_scan.h"
#include "quantizer/prepared_queries.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {

/// ids[j]; lists mapped from a file are not aligned.
inline std::int64_t id_at(const std::int64_t* ids, std::size_t j) {
  std::int64_t id;
  std::memcpy(&id, ids + j, sizeof id);
  return id;
}

inline std::int64_t pair_of(std::int64_t list, std::size_t offset) {
  return static_cast<std::int64_t>(faiss::lo_build(static_cast<std::uint64_t>(list), offset));
}

/// Bits of the rows j < n whose id_of(j) is selected, as CodeRows::mask; returns their number.
template <typename IdOf>
std::size_t selected_rows(const faiss::IDSelector& selector, std::size_t n, const IdOf& id_of,
                          std::vector<std::uint64_t>& mask) {
  std::size_t count = 0;
  mask.assign((n + 63) / 64, 0);
  for (std::size_t j = 0; j < n; ++j) {
    if (!selector.is_member(id_of(j))) continue;
    mask[j / 64] |= std::uint64_t{1} << (j % 64);
    ++count;
  }
  return count;
}

/// Makes room for a row in each of lists[n] (-1: none), exactly so much where lists grow by a
/// quarter or more: FAISS would let them grow to twice what they need.
void reserve_rows(faiss::InvertedLists& lists, const std::int64_t* numbers, std::size_t n);

/// The centroid of one list and what products and distances to its rows need of it.
///
/// With residuals, a row holds x - c. Then |q - x|^2 = |(q - c) - (x - c)|^2, for which q - c is
/// prepared from the rotations of q and c, and <q, x> = <q, c> + <q, x - c>. FAISS offers <q, c>,
/// but its bits depend on how many queries BLAS got at once.
class ListCentroid {
 public:
  explicit ListCentroid(const IndexIVFTurboQuant& index);

  /// Nothing needs to be set without residuals.
  void set(std::int64_t list);

  /// Whether queries must be prepared for each list: L2 with residuals.
  bool prepares() const { return prepares_; }

  /// Makes q - c number `slot`. False where it overflows.
  bool prepare(const float* query, const UnitRotation& rotation, PreparedQueries& prepared,
               std::size_t slot, PreparedQueries::Scratch& scratch) const {
    return prepared.set_difference(slot, query, rotation, centroid_.data(), *rotation_, scratch);
  }

  /// What is added to products with rows; 0 unless residuals have an inner product.
  float offset(const float* query) const;

 private:
  const IndexIVFTurboQuant& index_;
  const bool prepares_;
  const std::shared_ptr<const CentroidTable> table_;  // null unless prepares_ and trained
  std::vector<float> centroid_;
  const UnitRotation* rotation_ = nullptr;  // of the centroid: the table's, or own_
  UnitRotation own_;
};

}  // namespace turboquant
