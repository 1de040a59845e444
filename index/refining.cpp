#include "index/refining.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>
#include <typeinfo>
#include <vector>

#include "index/checks.h"
#include "index/refine_rows.h"
#include "quantizer/parallel.h"
#include "quantizer/top_k.h"
#include "turboquant/faiss_io.h"

namespace turboquant {
namespace {

constexpr std::int64_t kAhead = 4;        // rows asked for before they are scored
constexpr std::size_t kTaskQueries = 16;  // that a thread takes at a time

struct Candidates {
  std::int64_t n = 0;                    // of each query
  const std::int64_t* labels = nullptr;  // -1 behind the last
};

void refine(RefineRows& rows, Metric metric, const float* query, const Candidates& of,
            std::int64_t ntotal, std::vector<WideKey>& keys) {
  keys.clear();
  rows.set_query(query);
  const std::int64_t* last =
      std::find_if(of.labels, of.labels + of.n, [](auto l) { return l < 0; });
  const std::int64_t n = last - of.labels;
  for (std::int64_t j = 0; j < n; ++j) {
    if (of.labels[j] >= ntotal) {
      fail("the refining index lacks row " + std::to_string(of.labels[j]));
    }
  }
  for (std::int64_t j = 0; j < std::min(kAhead, n); ++j) rows.fetch(of.labels[j]);
  for (std::int64_t j = 0; j < n; ++j) {
    if (j + kAhead < n) rows.fetch(of.labels[j + kAhead]);
    keys.push_back(wide_key(metric, rows.score(of.labels[j]), of.labels[j]));
  }
}

template <class Refine>
std::unique_ptr<faiss::Index> replace(Refine& index) {
  auto refining = std::make_unique<Refining<Refine>>(index);
  index.own_fields = index.own_refine_index = false;
  return refining;
}

}  // namespace

void search_refined(const faiss::IndexRefine& index, std::int64_t n, const float* x, std::int64_t k,
                    float* distances, std::int64_t* labels, const faiss::SearchParameters* params) {
  float factor = index.k_factor;
#ifdef TURBOQUANT_FAISS_HAS_REFINE_PARAMETERS
  if (const auto* own = dynamic_cast<const faiss::IndexRefineSearchParameters*>(params)) {
    factor = own->k_factor;
    params = own->base_index_params;
  }
#endif
  if (n < 0) fail("cannot search " + std::to_string(n) + " queries");
  if (k < 1) fail("k must be 1 or more, not " + std::to_string(k));
  if (!(factor >= 1)) fail("k_factor must be 1 or more, not " + std::to_string(factor));
  if (!index.is_trained) fail("the index is not trained");
  const auto all = static_cast<float>(std::max(index.ntotal, k));
  const auto wanted =
      std::max(k, static_cast<std::int64_t>(std::min(static_cast<float>(k) * factor, all)));
  if (n > 0 && wanted > std::numeric_limits<std::int64_t>::max() / n) fail("k is too large");

  std::vector<std::int64_t> found(static_cast<std::size_t>(n * wanted));
  std::vector<float> first(found.size());
  index.base_index->search(n, x, wanted, first.data(), found.data(), params);

  const Metric metric = to_metric(index.metric_type);
  const auto queries = static_cast<std::size_t>(n);
  const std::size_t tasks = (queries + kTaskQueries - 1) / kTaskQueries;
  std::atomic<std::size_t> next{0};
  run_parts(std::clamp<std::size_t>(tasks, 1, free_threads()), [&](std::size_t) {
    RefineRows rows(*index.refine_index);
    std::vector<WideKey> keys;
    for (std::size_t task = next++; task < tasks; task = next++) {
      const std::size_t end = std::min(queries, (task + 1) * kTaskQueries);
      for (std::size_t q = task * kTaskQueries; q < end; ++q) {
        const Candidates of{wanted, found.data() + q * static_cast<std::size_t>(wanted)};
        refine(rows, metric, x + q * static_cast<std::size_t>(index.d), of,
               index.refine_index->ntotal, keys);
        const auto most = static_cast<std::size_t>(k);
        const std::size_t kept = std::min(most, keys.size());
        std::partial_sort(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(kept),
                          keys.end());
        write_results(metric, keys, most, distances + q * most, labels + q * most);
      }
    }
  });
}

std::unique_ptr<faiss::Index> with_refining(std::unique_ptr<faiss::Index> index) {
  auto* refine = dynamic_cast<faiss::IndexRefine*>(index.get());
  if (refine == nullptr || refine->base_index == nullptr || refine->refine_index == nullptr ||
      !contains_turboquant(*refine->base_index)) {
    return index;
  }
  if (typeid(*refine) == typeid(faiss::IndexRefineFlat)) {
    return replace(static_cast<faiss::IndexRefineFlat&>(*refine));
  }
  if (typeid(*refine) == typeid(faiss::IndexRefine)) return replace(*refine);
  return index;
}

}  // namespace turboquant
