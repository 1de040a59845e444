#include "index/ivf_lists.h"

#include <cmath>
#include <numeric>
#include <typeinfo>

namespace turboquant {
namespace {

template <class Vector>
auto reserve(Vector& vector, std::size_t n, int) -> decltype(vector.reserve(n)) {
  vector.reserve(n);
}
// From 1.11 on, perhaps a view of memory that is not its own.
template <class Vector>
auto reserve(Vector& vector, std::size_t n, long) -> decltype(vector.owned_data.reserve(n)) {
  if (!vector.is_owned) return;
  vector.owned_data.reserve(n);
  vector.resize(vector.size());  // looks where its data are now
}

}  // namespace

void reserve_rows(faiss::InvertedLists& lists, const std::int64_t* numbers, std::size_t n) {
  if (typeid(lists) != typeid(faiss::ArrayInvertedLists)) return;
  auto& arrays = static_cast<faiss::ArrayInvertedLists&>(lists);
  std::vector<std::size_t> added(lists.nlist);
  for (std::size_t i = 0; i < n; ++i) {
    const std::int64_t list = numbers[i];
    if (list >= 0 && list < static_cast<std::int64_t>(lists.nlist)) {
      ++added[static_cast<std::size_t>(list)];
    }
  }
  for (std::size_t list = 0; list < lists.nlist; ++list) {
    const std::size_t size = lists.list_size(list);
    if (added[list] == 0 || added[list] < size / 4) continue;
    reserve(arrays.codes[list], (size + added[list]) * lists.code_size, 0);
    reserve(arrays.ids[list], size + added[list], 0);
  }
}

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
