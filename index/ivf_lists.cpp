#include "index/ivf_lists.h"

#include <cmath>
#include <numeric>

namespace turboquant {

ListCentroid::ListCentroid(const IndexIVFTurboQuant& index)
    : index_(index),
      prepares_(index.by_residual && index.metric_type == faiss::METRIC_L2),
      table_(prepares_ && index.quantizer != nullptr &&
                     index.quantizer->ntotal == static_cast<std::int64_t>(index.nlist)
                 ? index.centroids().get(index)
                 : nullptr),
      centroid_(index.by_residual ? index.codec().dimension() : 0),
      own_(index.codec().impl()) {}

void ListCentroid::set(std::int64_t list) {
  if (!index_.by_residual) return;
  index_.quantizer->reconstruct(list, centroid_.data());
  if (!prepares_) return;
  rotation_ = table_ != nullptr ? table_->rotation(list, centroid_.data()) : nullptr;
  if (rotation_ != nullptr) return;
  own_.set(index_.codec().impl(), centroid_.data());
  rotation_ = &own_;
}

float ListCentroid::offset(const float* query) const {
  if (!index_.by_residual || prepares_) return 0;
  const float product =
      index_.codec().impl().kernels.dot(query, centroid_.data(), centroid_.size());
  if (std::isfinite(product)) return product;
  return saturate(std::inner_product(centroid_.begin(), centroid_.end(), query, double{0}));
}

}  // namespace turboquant
