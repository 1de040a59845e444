// What searches of an inverted file keep of its centroids: the rotations that distances to
// residuals need, and integers that find the nearest lists. Made when a search first asks for them.
#pragma once

#include <cstddef>
#include <memory>

namespace turboquant {

class CentroidTable;
struct IndexIVFTurboQuant;

/// Copies start empty. get and bytes may be called from several threads at once; drop and
/// assignment need the object to themselves.
class IndexCentroids {
 public:
  IndexCentroids();
  ~IndexCentroids();
  IndexCentroids(const IndexCentroids& other);
  IndexCentroids& operator=(const IndexCentroids& other);

  /// The table of the index's coarse quantizer. A table in which something was found to be out of
  /// date is made again.
  std::shared_ptr<const CentroidTable> get(const IndexIVFTurboQuant& index) const;

  /// Forgets everything.
  void drop();

  std::size_t bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace turboquant
