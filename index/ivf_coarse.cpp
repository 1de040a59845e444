#include "index/ivf_coarse.h"

#include <faiss/IndexFlat.h>

#include <algorithm>
#include <cmath>
#include <typeinfo>
#include <vector>

#include "index/checks.h"
#include "kernels/kernel_table.h"
#include "quantizer/top_k.h"

namespace turboquant {
namespace {

constexpr std::int64_t kFew = 20;  // from here on FAISS multiplies matrices

// The centroids [nlist][d] of a plain flat quantizer of the index's metric; else null.
const float* flat_centroids(const IndexIVFTurboQuant& index) {
  const faiss::Index& coarse = *index.quantizer;
  if (typeid(coarse) != typeid(faiss::IndexFlat) && typeid(coarse) != typeid(faiss::IndexFlatL2) &&
      typeid(coarse) != typeid(faiss::IndexFlatIP)) {
    return nullptr;
  }
  if (coarse.metric_type != index.metric_type || coarse.d != index.d ||
      coarse.ntotal != static_cast<std::int64_t>(index.nlist)) {
    return nullptr;
  }
  return static_cast<const faiss::IndexFlat&>(coarse).get_xb();
}

void nearest(Metric metric, const float* query, const float* centroids, std::size_t n,
             std::size_t d, std::size_t nprobe, std::int64_t* lists) {
  const kernels::KernelTable& kernel = kernels::active();
  std::vector<float> difference(d);
  TopK best(nprobe);
  for (std::size_t i = 0; i < n; ++i) {
    const float* c = centroids + i * d;
    float score;
    if (metric == Metric::kInnerProduct) {
      score = kernel.dot(query, c, d);
    } else {
      for (std::size_t j = 0; j < d; ++j) difference[j] = query[j] - c[j];
      score = kernel.dot(difference.data(), difference.data(), d);
    }
    if (std::isnan(score)) continue;  // overflow on both sides
    best.offer(candidate_key(metric, score, static_cast<std::uint32_t>(i)));
  }
  const std::vector<std::uint64_t>& keys = best.sorted();
  for (std::size_t p = 0; p < nprobe; ++p) {
    lists[p] = p < keys.size() ? static_cast<std::int64_t>(key_row(keys[p])) : -1;
  }
}

}  // namespace

void nearest_lists(const IndexIVFTurboQuant& index, std::int64_t n, const float* x,
                   std::int64_t nprobe, std::int64_t* lists,
                   const faiss::SearchParameters* quantizer_params) {
  const float* centroids =
      n < kFew && quantizer_params == nullptr ? flat_centroids(index) : nullptr;
  if (centroids == nullptr) {
    std::vector<float> distances(static_cast<std::size_t>(n * nprobe));
    index.quantizer->search(n, x, nprobe, distances.data(), lists,
                            const_cast<faiss::SearchParameters*>(quantizer_params));
    return;
  }
  const auto d = static_cast<std::size_t>(index.d);
  const Metric metric = to_metric(index.metric_type);
  [[maybe_unused]] const bool parallel = n > 1 && index.nlist * d > 50000;
#pragma omp parallel for schedule(static) if (parallel)
  for (std::int64_t q = 0; q < n; ++q) {
    nearest(metric, x + static_cast<std::size_t>(q) * d, centroids, index.nlist, d,
            static_cast<std::size_t>(nprobe), lists + q * nprobe);
  }
}

}  // namespace turboquant
