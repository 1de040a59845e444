#include "index/ivf_coarse.h"

#include <memory>
#include <vector>

#include "index/centroid_table.h"
#include "index/checks.h"
#include "quantizer/nearest_points.h"

namespace turboquant {
namespace {

constexpr std::int64_t kFew =
    20;  // as many take less time than to see that the centroids are known

}  // namespace

void nearest_lists(const IndexIVFTurboQuant& index, std::int64_t n, const float* x,
                   std::int64_t nprobe, std::int64_t* lists,
                   const faiss::SearchParameters* quantizer_params) {
  const float* centroids = quantizer_params == nullptr ? flat_centroids(index) : nullptr;
  const auto d = static_cast<std::size_t>(index.d);
  const auto probes = static_cast<std::size_t>(nprobe);
  const Metric metric = to_metric(index.metric_type);
  if (centroids != nullptr && n >= kFew) {
    for (int attempt = 0; attempt < 2; ++attempt) {
      const std::shared_ptr<const CentroidTable> table = index.centroids().get(index);
      const NearestPoints* nearest = table->nearest(centroids);
      if (nearest == nullptr) continue;  // the quantizer was changed, or holds too many
      nearest->search(centroids, x, static_cast<std::size_t>(n), probes, lists);
      return;
    }
    centroids = nullptr;
  }
  if (centroids == nullptr) {
    std::vector<float> distances(static_cast<std::size_t>(n * nprobe));
    index.quantizer->search(n, x, nprobe, distances.data(), lists,
                            const_cast<faiss::SearchParameters*>(quantizer_params));
    return;
  }
  const kernels::KernelTable& kernels = index.codec().impl().kernels;
  [[maybe_unused]] const bool parallel = n > 1 && index.nlist * d > 50000;
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t q = 0; q < n; ++q) {
    NearestPoints::scan(kernels, metric, centroids, index.nlist, d,
                        x + static_cast<std::size_t>(q) * d, probes, lists + q * nprobe);
  }
}

}  // namespace turboquant
