#include "index/ivf_lists.h"

#include <cmath>
#include <numeric>

namespace turboquant {

ListCentroid::ListCentroid(const IndexIVFTurboQuant& index)
    : index_(index),
      prepares_(index.by_residual && index.metric_type == faiss::METRIC_L2),
      centroid_(index.by_residual ? index.codec().dimension() : 0),
      rotation_(index.codec().impl()) {}

void ListCentroid::set(std::int64_t list) {
  if (!index_.by_residual) return;
  index_.quantizer->reconstruct(list, centroid_.data());
  if (prepares_) rotation_.set(index_.codec().impl(), centroid_.data());
}

float ListCentroid::offset(const float* query) const {
  if (!index_.by_residual || prepares_) return 0;
  const float product =
      index_.codec().impl().kernels.dot(query, centroid_.data(), centroid_.size());
  if (std::isfinite(product)) return product;
  return saturate(std::inner_product(centroid_.begin(), centroid_.end(), query, double{0}));
}

}  // namespace turboquant
