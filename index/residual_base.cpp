#include "index/residual_base.h"

#include <faiss/IndexHNSW.h>
#include <faiss/IndexNSG.h>

#include "index/checks.h"
#include "turboquant/index_two_level.h"

namespace turboquant {

ResidualBase::ResidualBase(const faiss::Index& index) : index_(index) {
  if (const auto* ivf = dynamic_cast<const IndexIVFTurboQuant*>(&index)) {
    ivf_ = ivf;
    seed_ = ivf->options().seed;
    list_centres_ = ivf->by_residual && ivf->metric_type == faiss::METRIC_L2;
    return;
  }
  const faiss::Index* rows = &index;
  if (const auto* hnsw = dynamic_cast<const faiss::IndexHNSW*>(rows)) rows = hnsw->storage;
  if (const auto* nsg = dynamic_cast<const faiss::IndexNSG*>(rows)) rows = nsg->storage;
  if (rows == nullptr || rows->ntotal != index.ntotal)
    fail("the graph lacks the codes of its rows");
  take_codes(*rows);
}

void ResidualBase::take_codes(const faiss::Index& index) {
  if (const auto* two_level = dynamic_cast<const IndexTwoLevel*>(&index)) {
    seed_ = two_level->options().seed;
    normalize_ = two_level->options().normalize;
    centre_ = two_level->centre();
    return;
  }
  flat_ = dynamic_cast<const IndexTurboQuant*>(&index);
  if (flat_ == nullptr || flat_->options().residual) {
    fail(
        "Refine(+TQ...) refines TurboQuant codes: TQ<b>, TQ<b>r<f>, IVF<n>,TQ<b>, HNSW<m>,TQ<b> or "
        "NSG<m>,TQ<b>; transforms and maps of ids stand around it");
  }
  seed_ = flat_->options().seed;
  normalize_ = flat_->options().normalize;
  centre_ = flat_->centre();
}

void ResidualBase::reconstruct_rows(std::int64_t first, std::size_t n, float* x) const {
  const auto d = static_cast<std::size_t>(index_.d);
  if (flat_ != nullptr) {
    flat_->codec().dequantize(
        flat_->codes.data() + static_cast<std::size_t>(first) * flat_->code_size, n, x);
    return;
  }
  for (std::size_t i = 0; i < n; ++i) {
    index_.reconstruct(first + static_cast<std::int64_t>(i), x + i * d);
  }
}

}  // namespace turboquant
