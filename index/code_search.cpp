#include "index/code_search.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>

#include <string>
#include <vector>

#include "index/checks.h"
#include "index/selector_mask.h"
#include "quantizer/scanner.h"
#include "turboquant/index_signs.h"

namespace turboquant {
namespace {

/// The queries as the codes want them: as given, or a normalized copy.
class PreparedQueries {
 public:
  PreparedQueries(const float* x, std::int64_t n, std::size_t d, bool normalize) : rows_(x) {
    if (!normalize) return;
    unit_.resize(static_cast<std::size_t>(n) * d);
    normalize_rows(x, n, d, "query", unit_.data());
    rows_ = unit_.data();
  }
  const float* rows() const { return rows_; }

 private:
  const float* rows_;
  std::vector<float> unit_;
};

/// All rows of the index, or those that the selector of the parameters takes.
class SelectedRows {
 public:
  SelectedRows(const CodeView& view, const faiss::SearchParameters* params) {
    rows_.codes = view.codes;
    rows_.n = static_cast<std::size_t>(view.ntotal);
    if (params == nullptr || params->sel == nullptr) return;
    mask_ = selector_mask(*params->sel, rows_.n);
    if (rows_.n > 0) rows_.mask = mask_.data();
  }
  const CodeRows& get() const { return rows_; }

 private:
  CodeRows rows_;
  std::vector<std::uint64_t> mask_;
};

}  // namespace

void search_codes(const CodeView& view, std::int64_t n, const float* x, std::int64_t k,
                  float* distances, std::int64_t* labels, const faiss::SearchParameters* params,
                  float prune_confidence, const IndexSigns* signs) {
  if (n < 0) fail("cannot search " + std::to_string(n) + " queries");
  if (k < 1) fail("k must be 1 or more, not " + std::to_string(k));
  if (prune_confidence != 0 && !(prune_confidence > 0.5f && prune_confidence < 1)) {
    fail("prune_confidence must be 0 or between 1/2 and 1, not " +
         std::to_string(prune_confidence));
  }
  if (n == 0) return;
  const PreparedQueries queries(x, n, view.codec.dimension(), view.normalize);
  const SelectedRows rows(view, params);
  const auto nq = static_cast<std::size_t>(n);
  const auto wanted = static_cast<std::size_t>(k);
  translate_errors([&] {
    Pruning pruning;
    if (prune_confidence != 0 && signs != nullptr && rows.get().mask == nullptr &&
        can_prune(view.codec, nq, rows.get().n, wanted)) {
      pruning = {&signs->get(view.codec, view.codes, rows.get().n), prune_confidence};
    }
    search_topk(view.codec, to_metric(view.metric), queries.rows(), nq, rows.get(), wanted,
                distances, labels, pruning);
  });
}

void range_search_codes(const CodeView& view, std::int64_t n, const float* x, float radius,
                        faiss::RangeSearchResult* result, const faiss::SearchParameters* params) {
  if (n < 0) fail("cannot search " + std::to_string(n) + " queries");
  if (result == nullptr || static_cast<std::int64_t>(result->nq) != n) {
    fail("the range search result must be made for " + std::to_string(n) + " queries");
  }
  const PreparedQueries queries(x, n, view.codec.dimension(), view.normalize);
  const SelectedRows rows(view, params);
  const auto hits = translate_errors([&] {
    return search_range(view.codec, to_metric(view.metric), queries.rows(),
                        static_cast<std::size_t>(n), rows.get(), radius);
  });
  for (std::size_t i = 0; i < hits.size(); ++i) result->lims[i] = hits[i].size();
  result->do_allocation();  // turns counts into offsets
  for (std::size_t i = 0; i < hits.size(); ++i) {
    std::size_t at = result->lims[i];
    for (const RangeHit& hit : hits[i]) {
      result->labels[at] = hit.id;
      result->distances[at++] = hit.score;
    }
  }
}

}  // namespace turboquant
