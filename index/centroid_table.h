// Rotations and integers of the centroids of an IndexIVFTurboQuant.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "quantizer/nearest_points.h"
#include "quantizer/prepared_queries.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {

/// The centroids [nlist][d] of a plain flat coarse quantizer of the index's metric; else null.
const float* flat_centroids(const IndexIVFTurboQuant& index);

/// Knows by checksums which centroids it was made of, because nobody tells when a user changes the
/// coarse quantizer.
class CentroidTable {
 public:
  /// Of what the index's searches have a use for. Throws what reconstruct throws.
  explicit CentroidTable(const IndexIVFTurboQuant& index);

  /// Whether its parts are those that the index would be given now, and nothing in it is known to
  /// be out of date.
  bool fits(const IndexIVFTurboQuant& index) const;

  /// The rotation of a list's centroid[d]; null when the table has none or had another centroid,
  /// and is then out of date.
  const UnitRotation* rotation(std::int64_t list, const float* centroid) const;

  /// Finds the nearest of flat_centroids; null when the table has no such part or had others, and
  /// is then out of date.
  const NearestPoints* nearest(const float* centroids) const;

  std::size_t bytes() const;

 private:
  bool same(std::size_t list, const float* centroid) const;

  Quantizer codec_;  // what rotations refer to
  const faiss::Index* quantizer_;
  std::size_t nlist_;
  bool rotates_;
  std::vector<std::uint64_t> checksums_;  // [nlist]
  std::vector<UnitRotation> rotations_;   // [nlist], if rotates_
  std::unique_ptr<NearestPoints> nearest_;
  mutable std::atomic<bool> stale_{false};
};

}  // namespace turboquant
