// What a refinement by residuals needs to know of the index that it refines: how its scores come
// about, and what its codes stand for.
#pragma once

#include <faiss/Index.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_turboquant.h"
#include "turboquant/quantizer.h"

namespace turboquant {

/// With x' what the base reconstructs of x, r = x - x' and q a query, the base's score of x is
///
///   inner product    <q, x> - <q - m, r>
///   squared L2       |q - x|^2 + 2 <q - m, r>
///
/// up to rounding of q: its codes are of x - m, and products with m and norms are exact. m is the
/// centre of all codes or, for L2, that of x's list.
class ResidualBase {
 public:
  /// Borrows the index. Throws faiss::FaissException where its scores are none of the above.
  explicit ResidualBase(const faiss::Index& index);

  std::uint64_t seed() const { return seed_; }

  /// Vectors and queries are scaled to length 1.
  bool normalizes() const { return normalize_; }

  /// The m[d] of all codes; empty when it is 0 or differs from list to list.
  const std::vector<float>& centre() const { return centre_; }

  /// Whether each row has an m of its own, which is its list's centroid.
  bool has_list_centres() const { return list_centres_; }

  /// Null unless the base is an inverted file.
  const IndexIVFTurboQuant* ivf() const { return ivf_; }

  /// x[n][d]: x' of the rows first to first + n - 1. Not of an inverted file.
  void reconstruct_rows(std::int64_t first, std::size_t n, float* x) const;

 private:
  void take_codes(const faiss::Index& index);

  const faiss::Index& index_;
  const IndexTurboQuant* flat_ = nullptr;
  const IndexIVFTurboQuant* ivf_ = nullptr;
  std::uint64_t seed_ = 0;
  bool normalize_ = false;
  bool list_centres_ = false;
  std::vector<float> centre_;
};

}  // namespace turboquant
