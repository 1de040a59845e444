#include "index/ivf_search.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "index/checks.h"
#include "index/ivf_visits.h"
#include "quantizer/top_k.h"

namespace turboquant {
namespace {

constexpr std::size_t kBatchBytes = std::size_t{64} << 20;  // what a batch of queries may take

// An option of newer versions: max_codes is then at least k, and reached by whole lists.
template <class Params>
auto ensures_full(const Params& params, int) -> decltype(bool(params.ensure_topk_full)) {
  return params.ensure_topk_full;
}
template <class Params>
bool ensures_full(const Params&, long) {
  return false;
}
// Lists that are read by an iterator alone came with 1.8.
template <class Lists>
auto iterates(const Lists& lists, int) -> decltype(bool(lists.use_iterator)) {
  return lists.use_iterator;
}
template <class Lists>
bool iterates(const Lists&, long) {
  return false;
}
// A later version's range searches end after so many lists without a result.
template <class Params>
auto ends_early(const Params& params, int) -> decltype(params.max_empty_result_buckets > 0) {
  return params.max_empty_result_buckets > 0;
}
template <class Params>
bool ends_early(const Params&, long) {
  return false;
}

// Some versions of FAISS find this out where no exception may pass.
void check_mode(int mode) {
  if (mode < 0 || mode > 3) fail("there is no parallel_mode " + std::to_string(mode));
}

IvfVisits::Options options_of(const IndexIVFTurboQuant& index, std::size_t k, bool store_pairs,
                              const faiss::IVFSearchParameters* params) {
  IvfVisits::Options options;
  options.store_pairs = store_pairs;
  options.selector = params != nullptr ? params->sel : nullptr;
  options.max_codes = params != nullptr ? params->max_codes : index.max_codes;
  options.whole_lists = params != nullptr && ensures_full(*params, 0);
  if (options.max_codes != 0 && options.whole_lists) {
    options.max_codes = std::max(options.max_codes, k);
  }
  return options;
}

// Lists that are read twice, for the queries to which they are nearest and for the others, pay
// where bounds save much: of many candidates, and where few queries share a list. Measured.
bool nearest_lists_first(const IndexIVFTurboQuant& index, const IvfProbes& batch, std::size_t k) {
  const auto nprobe = static_cast<std::size_t>(batch.nprobe);
  return k * nprobe > 256 || static_cast<std::size_t>(batch.n) * nprobe < 2 * index.nlist;
}

// work(first query, batch) for batches that take so much memory a query.
template <class Work>
void in_batches(const IvfProbes& probes, std::size_t d, std::size_t bytes_per_query,
                const Work& work) {
  const auto most =
      static_cast<std::int64_t>(std::max<std::size_t>(kBatchBytes / bytes_per_query, 16));
  for (std::int64_t first = 0; first < probes.n; first += most) {
    faiss::InterruptCallback::check();
    const auto at = static_cast<std::size_t>(first);
    const IvfProbes batch{std::min(most, probes.n - first), probes.x + at * d,
                          probes.lists + at * static_cast<std::size_t>(probes.nprobe),
                          probes.nprobe};
    translate_errors([&] { work(at, batch); });
  }
}

// The best candidates of one query, to which several threads may add.
struct Best {
  explicit Best(std::size_t k) : keys(k) {}
  std::mutex mutex;
  BestKeys<WideKey> keys;
  // Rows with a worse score are not among the k best.
  std::atomic<std::uint32_t> bound{std::numeric_limits<std::uint32_t>::max()};
};

// Collects what the visits of one task find and hands it on in pieces.
class BestSink final : public VisitSink {
 public:
  BestSink(Metric metric, std::vector<std::unique_ptr<Best>>& best)
      : metric_(metric), best_(best) {}

  void start(const IvfVisit* visits, std::size_t n, std::int64_t list, const std::int64_t* ids,
             std::size_t first_row) override {
    VisitSink::start(visits, n, list, ids, first_row);
    if (finds_.size() < n) finds_.resize(n);
    for (std::size_t v = 0; v < n; ++v) {
      finds_[v].best = best_[visits[v].query].get();
      finds_[v].bound = finds_[v].best->bound.load(std::memory_order_relaxed);
    }
  }

  float bound(std::size_t v) const override {
    const std::uint32_t bits = finds_[v].bound;
    return bits == kNoBound ? std::numeric_limits<float>::quiet_NaN() : bits_score(metric_, bits);
  }

  bool offer(std::size_t v, float score, std::uint32_t row) override {
    Finds& visit = finds_[v];
    const std::uint32_t bits = score_bits(metric_, score);
    if (bits > visit.bound) return false;
    if (ids_ != nullptr) __builtin_prefetch(ids_ + first_row_ + row);  // asked for by hand_on
    visit.found.push_back({bits, row});
    return visit.found.size() >= kPiece && hand_on(visit);
  }

  void finish() override {
    for (std::size_t v = 0; v < n_; ++v) hand_on(finds_[v]);
  }

  std::size_t updates() const { return updates_; }

 private:
  static constexpr std::size_t kPiece = 32;
  static constexpr std::uint32_t kNoBound = std::numeric_limits<std::uint32_t>::max();

  struct Found {
    std::uint32_t bits;  // of the score, as keys have them
    std::uint32_t row;
  };
  struct Finds {  // of a visit
    Best* best = nullptr;
    std::uint32_t bound = kNoBound;  // of best, perhaps as it was some time ago
    std::vector<Found> found;
  };

  // Returns whether the bound moved.
  bool hand_on(Finds& visit) {
    if (visit.found.empty()) return false;
    Best& best = *visit.best;
    const std::lock_guard<std::mutex> lock(best.mutex);
    bool moved = false;
    for (const Found& found : visit.found) {
      if (found.bits > score_bits(best.keys.limit())) continue;
      moved = best.keys.offer(wide_key(found.bits, label(found.row))) || moved;
      ++updates_;
    }
    visit.found.clear();
    const std::uint32_t bound = score_bits(best.keys.limit());
    if (moved) best.bound.store(bound, std::memory_order_relaxed);
    moved = bound != visit.bound;  // by others, too
    visit.bound = bound;
    return moved;
  }

  const Metric metric_;
  std::vector<std::unique_ptr<Best>>& best_;
  std::size_t updates_ = 0;
  std::vector<Finds> finds_;
};

void write_best(Metric metric, std::vector<std::unique_ptr<Best>>& best, std::size_t k,
                float* distances, std::int64_t* labels) {
#pragma omp parallel for schedule(static) if (best.size() * k > 2000)
  for (std::size_t q = 0; q < best.size(); ++q) {
    write_results(metric, best[q]->keys.sorted(), k, distances + q * k, labels + q * k);
    best[q].reset();  // to free them takes time as well
  }
}

// Everything better than a radius that the visits of one thread find.
class RangeSink final : public VisitSink {
 public:
  struct Hit {
    std::int64_t label;
    float score;
  };
  // Hits of one visit, in order of rows.
  struct Piece {
    std::uint64_t query;  // of the whole search
    std::uint32_t rank;
    std::size_t first_row;
    std::vector<Hit> hits;
  };

  RangeSink(Metric metric, float radius)
      : largest_(metric == Metric::kInnerProduct), radius_(radius) {}

  void start_batch(std::uint64_t first_query) { first_query_ = first_query; }

  void start(const IvfVisit* visits, std::size_t n, std::int64_t list, const std::int64_t* ids,
             std::size_t first_row) override {
    VisitSink::start(visits, n, list, ids, first_row);
    found_.resize(std::max(found_.size(), n));
  }

  float bound(std::size_t /*v*/) const override { return radius_; }

  bool offer(std::size_t v, float score, std::uint32_t row) override {
    if (largest_ ? !(score > radius_) : !(score < radius_)) return false;
    found_[v].push_back({label(row), score});
    return false;
  }

  void finish() override {
    for (std::size_t v = 0; v < n_; ++v) {
      if (found_[v].empty()) continue;
      pieces_.push_back({first_query_ + visits_[v].query, visits_[v].rank, first_row_, found_[v]});
      found_[v].clear();
    }
  }

  const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  const bool largest_;
  const float radius_;
  std::uint64_t first_query_ = 0;
  std::vector<std::vector<Hit>> found_;  // of each visit
  std::vector<Piece> pieces_;
};

// Results of a query in the order of its lists, and of rows in each.
void write_ranges(const std::vector<RangeSink>& sinks, faiss::RangeSearchResult& result) {
  std::vector<const RangeSink::Piece*> pieces;
  std::fill_n(result.lims, result.nq + 1, std::size_t{0});
  for (const RangeSink& sink : sinks) {
    for (const RangeSink::Piece& piece : sink.pieces()) {
      pieces.push_back(&piece);
      result.lims[piece.query] += piece.hits.size();
    }
  }
  std::sort(pieces.begin(), pieces.end(), [](const auto* a, const auto* b) {
    if (a->query != b->query) return a->query < b->query;
    return a->rank != b->rank ? a->rank < b->rank : a->first_row < b->first_row;
  });
  result.do_allocation();  // turns counts into offsets
  std::size_t at = 0;
  for (const RangeSink::Piece* piece : pieces) {
    for (const RangeSink::Hit& hit : piece->hits) {
      result.labels[at] = hit.label;
      result.distances[at++] = hit.score;
    }
  }
}

}  // namespace

bool can_search_lists(const IndexIVFTurboQuant& index, bool store_pairs,
                      const faiss::IVFSearchParameters* params) {
  if (index.invlists == nullptr || !index.is_trained || iterates(*index.invlists, 0)) return false;
  const int mode = index.parallel_mode & ~index.PARALLEL_MODE_NO_HEAP_INIT;
  check_mode(mode);
  if (mode != index.parallel_mode) return false;
  return !(store_pairs && params != nullptr && params->sel != nullptr);
}

bool can_range_search_lists(const IndexIVFTurboQuant& index,
                            const faiss::IVFSearchParameters* params) {
  if (index.invlists == nullptr || !index.is_trained || iterates(*index.invlists, 0)) return false;
  check_mode(index.parallel_mode & ~index.PARALLEL_MODE_NO_HEAP_INIT);
  return params == nullptr || !ends_early(*params, 0);
}

void search_lists(const IndexIVFTurboQuant& index, const IvfProbes& probes, std::int64_t k,
                  float* distances, std::int64_t* labels, bool store_pairs,
                  const faiss::IVFSearchParameters* params, faiss::IndexIVFStats& stats) {
  const auto wanted = static_cast<std::size_t>(k);
  const Metric metric = to_metric(index.metric_type);
  IvfVisits visits(index, options_of(index, wanted, store_pairs, params));
  const std::size_t bytes = visits.bytes_per_query(static_cast<std::size_t>(probes.nprobe)) +
                            32 * (wanted + std::max<std::size_t>(wanted, 32)) / 2;
  std::vector<std::unique_ptr<Best>> best;
  std::vector<BestSink> sinks(IvfVisits::threads(), BestSink(metric, best));
  in_batches(probes, index.codec().dimension(), bytes, [&](std::size_t at, const IvfProbes& batch) {
    visits.take(batch, nearest_lists_first(index, batch, wanted));
    best.clear();
    for (std::int64_t q = 0; q < batch.n; ++q) best.push_back(std::make_unique<Best>(wanted));
    visits.scan([&](std::size_t thread) -> VisitSink& { return sinks[thread]; });
    write_best(metric, best, wanted, distances + at * wanted, labels + at * wanted);
  });
  stats.nq += static_cast<std::size_t>(probes.n);
  visits.add_to(stats);
  for (const BestSink& sink : sinks) stats.nheap_updates += sink.updates();
}

void range_search_lists(const IndexIVFTurboQuant& index, const IvfProbes& probes, float radius,
                        faiss::RangeSearchResult& result, const faiss::IVFSearchParameters* params,
                        faiss::IndexIVFStats& stats) {
  IvfVisits::Options options;
  options.selector = params != nullptr ? params->sel : nullptr;
  IvfVisits visits(index, options);
  std::vector<RangeSink> sinks(IvfVisits::threads(),
                               RangeSink(to_metric(index.metric_type), radius));
  in_batches(probes, index.codec().dimension(),
             visits.bytes_per_query(static_cast<std::size_t>(probes.nprobe)),
             [&](std::size_t at, const IvfProbes& batch) {
               visits.take(batch, false);
               visits.scan([&](std::size_t thread) -> VisitSink& {
                 sinks[thread].start_batch(at);
                 return sinks[thread];
               });
             });
  write_ranges(sinks, result);
  stats.nq += static_cast<std::size_t>(probes.n);
  visits.add_to(stats);
}

}  // namespace turboquant
