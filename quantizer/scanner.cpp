#include "quantizer/scanner.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "quantizer/block_scan.h"
#include "quantizer/parallel.h"
#include "quantizer/pruned_batch.h"
#include "quantizer/pruned_search.h"

namespace turboquant {
namespace {

void check(const Quantizer& quantizer, Metric metric, const CodeRows& rows) {
  if (metric == Metric::kL2 && !quantizer.options().with_norm) {
    throw std::invalid_argument("L2 search needs a quantizer with_norm");
  }
  if (rows.n > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("a scan takes at most 4294967295 rows, not " +
                                std::to_string(rows.n));
  }
}

// Runs the parts of the plan: part(number, rows from, to, query groups from, to).
template <typename Part>
void run_plan(const ScanPlan& plan, std::size_t groups, std::size_t n, const Part& part) {
  run_parts(plan.query_parts * plan.row_parts, [&](std::size_t p) {
    const std::size_t of_queries = p / plan.row_parts;
    const std::size_t of_rows = p % plan.row_parts;
    part(p, n * of_rows / plan.row_parts, n * (of_rows + 1) / plan.row_parts,
         groups * of_queries / plan.query_parts, groups * (of_queries + 1) / plan.query_parts);
  });
}

class RangeSink final : public ScanSink {
 public:
  RangeSink(Metric metric, float radius, std::vector<std::vector<RangeHit>>& hits)
      : metric_(metric), radius_(radius), hits_(hits) {}

  float bound(std::size_t /*q*/) const override { return radius_; }
  bool offer(std::size_t q, float score, std::uint32_t row) override {
    const bool better = metric_ == Metric::kInnerProduct ? score > radius_ : score < radius_;
    if (better) hits_[q].push_back({row, score});
    return false;
  }

 private:
  Metric metric_;
  float radius_;
  std::vector<std::vector<RangeHit>>& hits_;
};

}  // namespace

namespace {

// The k best of one query's candidates, part(0) to part(parts - 1), merged into the first. Returns
// their keys.
template <typename Part>
const std::vector<std::uint64_t>& write_best(Metric metric, std::size_t parts, const Part& part,
                                             std::size_t k, float* scores, std::int64_t* ids) {
  TopK& best = part(0);
  for (std::size_t i = 1; i < parts; ++i) {
    for (const std::uint64_t key : part(i).sorted()) best.offer(key);
  }
  const std::vector<std::uint64_t>& sorted = best.sorted();
  for (std::size_t j = 0; j < k; ++j) {
    const bool found = j < sorted.size();
    scores[j] = found ? key_score(metric, sorted[j]) : worst_score(metric);
    ids[j] = found ? static_cast<std::int64_t>(key_row(sorted[j])) : -1;
  }
  return sorted;
}

bool search_pruned(const ScanQueries& queries, std::size_t q, const CodeRows& rows,
                   const Pruning& pruning, std::size_t parts, std::size_t k, float* scores,
                   std::int64_t* ids) {
  std::vector<TopK> best(parts, TopK(k));
  if (!pruned_search(queries, q, rows, *pruning.plane, pruning.confidence, k, best)) return false;
  write_best(
      queries.metric(), parts, [&](std::size_t i) -> TopK& { return best[i]; }, k, scores, ids);
  return true;
}

void search_pruned_batch(const Quantizer& quantizer, const ScanQueries& queries,
                         const ScanPlan& plan, const float* vectors, const CodeRows& rows,
                         const Pruning& pruning, std::size_t k, float* scores, std::int64_t* ids) {
  const PrunedBatch batch(queries, rows, *pruning.plane, pruning.confidence, k);
  const std::size_t parts = plan.row_parts;
  std::vector<std::vector<TopK>> best(parts, std::vector<TopK>(queries.size(), TopK(k)));
  std::vector<std::vector<std::uint64_t>> certain(
      parts, std::vector<std::uint64_t>(queries.size(), std::numeric_limits<std::uint64_t>::max()));
  run_plan(plan, queries.groups(), rows.n,
           [&](std::size_t p, std::size_t begin, std::size_t end, std::size_t first_group,
               std::size_t last_group) {
             batch.scan(begin, end, first_group, last_group, best[p % parts], certain[p % parts]);
           });
  std::vector<std::uint8_t> misled(queries.size());
#pragma omp parallel for schedule(static) if (queries.size() * k > 20000)
  for (std::size_t q = 0; q < queries.size(); ++q) {
    const std::vector<std::uint64_t>& found = write_best(
        queries.metric(), parts, [&](std::size_t i) -> TopK& { return best[i][q]; }, k,
        scores + q * k, ids + q * k);
    std::uint64_t limit = std::numeric_limits<std::uint64_t>::max();
    for (const std::vector<std::uint64_t>& part : certain) limit = std::min(limit, part[q]);
    misled[q] = found.size() < k || found[k - 1] > limit ? 1 : 0;
  }
  for (std::size_t q = 0; q < queries.size(); ++q) {
    if (misled[q] == 0) continue;
    search_topk(quantizer, queries.metric(), vectors + q * quantizer.dimension(), 1, rows, k,
                scores + q * k, ids + q * k);
  }
}

}  // namespace

bool can_prune(const Quantizer& quantizer, std::size_t nq, std::size_t n, std::size_t k) {
  constexpr std::size_t kFewest = 16384;  // rows from which two passes beat one
  const bool supported = nq <= ScanQueries::kFew ? SignPlane::supports(quantizer.options())
                                                 : SignPlane::supports_many(quantizer.options());
  return supported && n >= kFewest && k <= n / 32;
}

void search_topk(const Quantizer& quantizer, Metric metric, const float* queries, std::size_t nq,
                 const CodeRows& rows, std::size_t k, float* scores, std::int64_t* ids,
                 const Pruning& pruning) {
  check(quantizer, metric, rows);
  if (nq == 0 || k == 0) return;
  const ScanQueries prepared(quantizer.impl(), metric, queries, nq);
  const ScanPlan plan(prepared, rows.n);
  if (pruning.plane != nullptr && rows.mask == nullptr && can_prune(quantizer, nq, rows.n, k)) {
    if (!prepared.few()) {
      search_pruned_batch(quantizer, prepared, plan, queries, rows, pruning, k, scores, ids);
      return;
    }
    const std::size_t d = quantizer.dimension();
    for (std::size_t q = 0; q < nq; ++q) {
      if (!search_pruned(prepared, q, rows, pruning, plan.row_parts, k, scores + q * k,
                         ids + q * k)) {
        search_topk(quantizer, metric, queries + q * d, 1, rows, k, scores + q * k, ids + q * k);
      }
    }
    return;
  }
  const std::size_t held = std::min(k, rows.n);
  std::vector<std::vector<TopK>> best(plan.row_parts, std::vector<TopK>(nq, TopK(held)));
  run_plan(plan, prepared.groups(), rows.n,
           [&](std::size_t p, std::size_t begin, std::size_t end, std::size_t first_group,
               std::size_t last_group) {
             TopKSink sink(metric, best[p % plan.row_parts]);
             scan_block(prepared, rows, begin, end, first_group, last_group, sink);
           });
#pragma omp parallel for schedule(static) if (nq * held > 20000)
  for (std::size_t q = 0; q < nq; ++q) {
    write_best(
        metric, best.size(), [&](std::size_t i) -> TopK& { return best[i][q]; }, k, scores + q * k,
        ids + q * k);
  }
}

std::vector<std::vector<RangeHit>> search_range(const Quantizer& quantizer, Metric metric,
                                                const float* queries, std::size_t nq,
                                                const CodeRows& rows, float radius) {
  check(quantizer, metric, rows);
  if (nq == 0) return {};
  const ScanQueries prepared(quantizer.impl(), metric, queries, nq);
  const ScanPlan plan(prepared, rows.n);
  std::vector<std::vector<std::vector<RangeHit>>> found(plan.row_parts,
                                                        std::vector<std::vector<RangeHit>>(nq));
  run_plan(plan, prepared.groups(), rows.n,
           [&](std::size_t p, std::size_t begin, std::size_t end, std::size_t first_group,
               std::size_t last_group) {
             RangeSink sink(metric, radius, found[p % plan.row_parts]);
             scan_block(prepared, rows, begin, end, first_group, last_group, sink);
           });
  // Parts of the rows follow one another, and each was scanned in order.
  for (std::size_t i = 1; i < found.size(); ++i) {
    for (std::size_t q = 0; q < nq; ++q) {
      found[0][q].insert(found[0][q].end(), found[i][q].begin(), found[i][q].end());
    }
  }
  return std::move(found[0]);
}

namespace {

// A graph's rows lie anywhere: all cache lines of one are asked for at once.
void prefetch_row(const Quantizer::Impl& impl, const std::uint8_t* row) {
  const std::size_t size = impl.code_size();
  for (std::size_t at = 0; at < size; at += 64) __builtin_prefetch(row + at);
  __builtin_prefetch(row + size - 1);
}

}  // namespace

struct QueryScorer::State {
  State(const Quantizer& q, Metric m)
      : quantizer(q), metric(m), prepared(q.impl(), 1), scratch(q.impl()) {}

  float finish(float product, const std::uint8_t* row) const {
    if (metric == Metric::kInnerProduct) return product;
    return squared_distance(prepared.norms_squared[0], quantizer.impl().norm_squared(row), product);
  }

  Quantizer quantizer;
  Metric metric;
  PreparedQueries prepared;
  PreparedQueries::Scratch scratch;
};

QueryScorer::QueryScorer(const Quantizer& quantizer, Metric metric) {
  check(quantizer, metric, {});
  state_ = std::make_unique<State>(quantizer, metric);
}
QueryScorer::~QueryScorer() = default;
QueryScorer::QueryScorer(QueryScorer&&) noexcept = default;
QueryScorer& QueryScorer::operator=(QueryScorer&&) noexcept = default;

void QueryScorer::set_query(const float* query) {
  if (!state_->prepared.set(0, query, state_->scratch)) {
    throw std::invalid_argument("query 0 holds NaN or infinity");
  }
}

float QueryScorer::score(const std::uint8_t* code) const {
  const PreparedQueries& prepared = state_->prepared;
  const Quantizer::Impl& impl = prepared.impl();
  prefetch_row(impl, code);
  float product;
  if (impl.two_parts() || impl.centred()) {
    prepared.products(0, code, nullptr, 1, &product);
  } else {
    std::int32_t dot;
    impl.dot_rows(code, nullptr, 1, impl.levels, prepared.levels.view(0, impl.padded), &dot);
    product = scaled_product(dot, impl.scale(code), prepared.levels.scales[0]);
  }
  return state_->finish(product, code);
}

void QueryScorer::score_rows(const std::uint8_t* codes, const std::uint32_t* rows, std::size_t n,
                             float* out) const {
  state_->prepared.products(0, codes, rows, n, out);
  if (state_->metric == Metric::kInnerProduct) return;
  const std::size_t size = state_->quantizer.code_size();
  for (std::size_t j = 0; j < n; ++j) {
    out[j] = state_->finish(out[j], codes + size * (rows != nullptr ? rows[j] : j));
  }
}

float QueryScorer::symmetric(const std::uint8_t* a, const std::uint8_t* b) const {
  const Quantizer::Impl& impl = state_->quantizer.impl();
  prefetch_row(impl, b);
  float product = 0;
  if (impl.two_parts()) {
    // No integer form: reconstruct one side and score it as a query would be.
    std::vector<float> x(impl.options.dimension);
    state_->quantizer.dequantize(a, 1, x.data());
    state_->quantizer.inner_products(x.data(), 1, b, 1, &product);
  } else {
    // The levels of one row are an int8 query whose scale is the row's.
    // Graphs are built of these products, so vectors of common lengths need no memory of the heap.
    constexpr std::size_t kOnStack = 4096;
    alignas(64) std::int8_t on_stack[kOnStack];
    AlignedVector<std::int8_t> on_heap(impl.padded > kOnStack ? impl.padded : 0);
    std::int8_t* levels = on_heap.empty() ? on_stack : on_heap.data();
    const std::size_t d = impl.options.dimension;
    impl.decode(a, impl.levels, levels);
    std::fill(levels + d, levels + impl.padded, std::int8_t{0});
    const std::int32_t sum = std::accumulate(levels, levels + d, std::int32_t{0});
    std::int32_t dot = 0;
    impl.dot_rows(b, nullptr, 1, impl.levels, {levels, sum}, &dot);
    product = scaled_product(dot, impl.scale(b), impl.scale(a));
    if (impl.centred()) {
      product += (impl.centre_product(a) + impl.centre_product(b)) - impl.centre_norm_squared;
    }
  }
  if (state_->metric == Metric::kInnerProduct) return product;
  return squared_distance(impl.norm_squared(a), impl.norm_squared(b), product);
}

}  // namespace turboquant
