#include "index/refining.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "index/checks.h"
#include "index/index_tree.h"
#include "index/refine_rows.h"
#include "quantizer/parallel.h"
#include "quantizer/top_k.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_refine_residual.h"

namespace turboquant {
namespace {

constexpr std::size_t kAhead = 4;         // rows asked for before they are scored
constexpr std::size_t kTaskQueries = 16;  // that a thread takes at a time

class ExactLook : public SecondLook {
 public:
  explicit ExactLook(const faiss::Index& index) : rows_(index) {}

  void score(const float* query, const std::int64_t* labels, std::size_t n,
             float* scores) override {
    rows_.set_query(query);
    for (std::size_t j = 0; j < std::min(kAhead, n); ++j) rows_.fetch(labels[j]);
    for (std::size_t j = 0; j < n; ++j) {
      if (j + kAhead < n) rows_.fetch(labels[j + kAhead]);
      scores[j] = rows_.score(labels[j]);
    }
  }

 private:
  RefineRows rows_;
};

// How many candidates there are before the first -1.
std::size_t count_candidates(const std::int64_t* labels, std::int64_t most, std::int64_t ntotal) {
  std::int64_t n = 0;
  while (n < most && labels[n] >= 0) {
    if (labels[n] >= ntotal) {
      fail("the refining index lacks row " + std::to_string(labels[n]));
    }
    ++n;
  }
  return static_cast<std::size_t>(n);
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
  search_refined(index, n, x, k, distances, labels, params,
                 [&] { return std::make_unique<ExactLook>(*index.refine_index); });
}

void search_refined(const faiss::IndexRefine& index, std::int64_t n, const float* x, std::int64_t k,
                    float* distances, std::int64_t* labels, const faiss::SearchParameters* params,
                    const std::function<std::unique_ptr<SecondLook>()>& make_look) {
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
    const std::unique_ptr<SecondLook> look = make_look();
    std::vector<WideKey> keys;
    for (std::size_t task = next++; task < tasks; task = next++) {
      const std::size_t end = std::min(queries, (task + 1) * kTaskQueries);
      for (std::size_t q = task * kTaskQueries; q < end; ++q) {
        const std::int64_t* candidates = found.data() + q * static_cast<std::size_t>(wanted);
        float* scores = first.data() + q * static_cast<std::size_t>(wanted);
        const std::size_t count = count_candidates(candidates, wanted, index.refine_index->ntotal);
        look->score(x + q * static_cast<std::size_t>(index.d), candidates, count, scores);
        keys.clear();
        for (std::size_t j = 0; j < count; ++j) {
          keys.push_back(wide_key(metric, scores[j], candidates[j]));
        }
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
  if (refine != nullptr && is_residual(refine->refine_index)) {
    return std::make_unique<IndexRefineResidual>(std::move(*refine));
  }
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
