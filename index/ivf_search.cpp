#include "index/ivf_search.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "index/checks.h"
#include "index/ivf_lists.h"
#include "quantizer/parallel.h"
#include "quantizer/top_k.h"

namespace turboquant {
namespace {

constexpr std::size_t kBatchBytes = std::size_t{64} << 20;  // what a batch of queries may take
constexpr std::size_t kTaskRows = 16384;                    // a longer list is shared among threads

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

// What of one list a search looks at.
struct ListRows {
  std::int64_t list = 0;
  std::size_t begin = 0, end = 0;  // rows
  bool masked = false;             // then by mask, whose bit 0 is row `begin`
  std::vector<std::uint64_t> mask;

  // How many of the rows below `limit` are looked at.
  std::size_t selected_below(std::size_t limit) const {
    const std::size_t rows = std::clamp(limit, begin, end) - begin;
    if (!masked) return rows;
    std::size_t count = 0;
    for (std::size_t j = 0; j < rows; ++j) count += mask[j / 64] >> (j % 64) & 1;
    return count;
  }
};

// A query's visit to lists_[list].
struct Probe {
  std::uint32_t list;
  std::uint32_t query;
  std::size_t rows_end;
};

// Rows [begin, end) of one list for the probes [first, last).
struct Task {
  std::size_t first, last;
  std::size_t begin, end;
};

// The best candidates of one query, to which several threads may add.
struct Best {
  explicit Best(std::size_t k) : keys(k) {}
  std::mutex mutex;
  BestKeys<WideKey> keys;
  // Rows with a worse score are not among the k best.
  std::atomic<std::uint32_t> bound{std::numeric_limits<std::uint32_t>::max()};
};

// Collects what the visits of one task find and hands it on in pieces.
class VisitSink final : public ScanSink {
 public:
  VisitSink(Metric metric, std::vector<std::unique_ptr<Best>>& best)
      : metric_(metric), best_(best) {}

  // The visits that follow are those of these probes to rows from first_row on. ids: null for pairs
  // of list and offset.
  void start(const Probe* probes, std::size_t n, std::int64_t list, const std::int64_t* ids,
             std::size_t first_row) {
    probes_ = probes;
    list_ = list;
    ids_ = ids;
    first_row_ = first_row;
    found_.resize(std::max(found_.size(), n));
  }

  float bound(std::size_t v) const override {
    const std::uint32_t bits = best_[probes_[v].query]->bound.load(std::memory_order_relaxed);
    return bits == std::numeric_limits<std::uint32_t>::max()
               ? std::numeric_limits<float>::quiet_NaN()
               : bits_score(metric_, bits);
  }

  bool offer(std::size_t v, float score, std::uint32_t row) override {
    const std::size_t at = first_row_ + row;
    const std::int64_t label = ids_ != nullptr ? id_at(ids_, at) : pair_of(list_, at);
    const WideKey key = wide_key(metric_, score, label);
    if (score_bits(key) > best_[probes_[v].query]->bound.load(std::memory_order_relaxed)) {
      return false;
    }
    found_[v].push_back(key);
    return found_[v].size() >= kPiece && hand_on(v);
  }

  // Returns whether the bound moved.
  bool hand_on(std::size_t v) {
    std::vector<WideKey>& found = found_[v];
    if (found.empty()) return false;
    Best& best = *best_[probes_[v].query];
    const std::lock_guard<std::mutex> lock(best.mutex);
    bool moved = false;
    for (const WideKey key : found) moved = best.keys.offer(key) || moved;
    updates_ += found.size();
    found.clear();
    if (moved) best.bound.store(score_bits(best.keys.limit()), std::memory_order_relaxed);
    return moved;
  }

  std::size_t updates() const { return updates_; }

 private:
  static constexpr std::size_t kPiece = 32;

  const Metric metric_;
  std::vector<std::unique_ptr<Best>>& best_;
  const Probe* probes_ = nullptr;
  std::int64_t list_ = 0;
  const std::int64_t* ids_ = nullptr;
  std::size_t first_row_ = 0;
  std::size_t updates_ = 0;
  std::vector<std::vector<WideKey>> found_;  // of each visit
};

class Search {
 public:
  Search(const IndexIVFTurboQuant& index, std::int64_t k, bool store_pairs,
         const faiss::IVFSearchParameters* params)
      : index_(index),
        impl_(index.codec().impl()),
        metric_(to_metric(index.metric_type)),
        k_(static_cast<std::size_t>(k)),
        store_pairs_(store_pairs),
        max_codes_(params != nullptr ? params->max_codes : index.max_codes),
        full_(params != nullptr && ensures_full(*params, 0)),
        selector_(params != nullptr ? params->sel : nullptr),
        per_list_(index.by_residual && metric_ == Metric::kL2) {}

  // One batch of queries.
  void run(const IvfProbes& batch, float* distances, std::int64_t* labels) {
    collect_lists(batch);
    collect_probes(batch);
    prepare(batch);
    best_.clear();
    for (std::int64_t q = 0; q < batch.n; ++q) best_.push_back(std::make_unique<Best>(k_));
    make_tasks();
    scan(batch);
    write(batch, distances, labels);
  }

  void add_to(faiss::IndexIVFStats& stats, std::int64_t n) const {
    stats.nq += static_cast<std::size_t>(n);
    stats.nlist += visited_;
    stats.ndis += compared_;
    stats.nheap_updates += updates_;
  }

  // Memory of one query of a batch, roughly.
  std::size_t bytes_per_query(std::size_t nprobe) const {
    return 32 * (k_ + std::max<std::size_t>(k_, 32)) / 2 + nprobe * (sizeof(Probe) + 8) +
           impl_.padded * (per_list_ ? 4 : 1) + 256;
  }

 private:
  // lists_: those that some query visits, ascending, with the rows that the selector takes.
  void collect_lists(const IvfProbes& batch) {
    constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
    numbers_.assign(index_.nlist, kNone);
    lists_.clear();
    const auto pairs = static_cast<std::size_t>(batch.n * batch.nprobe);
    for (std::size_t i = 0; i < pairs; ++i) {
      const std::int64_t list = batch.lists[i];
      if (list < 0) continue;  // FAISS found fewer
      if (list >= static_cast<std::int64_t>(index_.nlist)) {
        fail("list " + std::to_string(list) + " of " + std::to_string(index_.nlist));
      }
      numbers_[static_cast<std::size_t>(list)] = 0;
    }
    for (std::size_t list = 0; list < index_.nlist; ++list) {
      if (numbers_[list] == kNone) continue;
      const std::size_t size = index_.invlists->list_size(list);
      if (size == 0) {
        numbers_[list] = kNone;
        continue;
      }
      if (size > std::numeric_limits<std::uint32_t>::max()) fail("a list is too long");
      numbers_[list] = static_cast<std::uint32_t>(lists_.size());
      ListRows rows;
      rows.list = static_cast<std::int64_t>(list);
      rows.end = size;
      lists_.push_back(std::move(rows));
    }
    if (selector_ == nullptr) return;
    const auto n = static_cast<std::int64_t>(lists_.size());
    const std::size_t threads = free_threads();
    std::atomic<std::int64_t> next{0};
    run_parts(std::min(threads, static_cast<std::size_t>(std::max<std::int64_t>(n, 1))),
              [&](std::size_t) {
                for (std::int64_t i = next++; i < n; i = next++) {
                  select(lists_[static_cast<std::size_t>(i)]);
                }
              });
  }

  void select(ListRows& rows) const {
    faiss::InvertedLists::ScopedIds scoped(index_.invlists, static_cast<std::size_t>(rows.list));
    const std::int64_t* ids = scoped.get();
    const auto* range = dynamic_cast<const faiss::IDSelectorRange*>(selector_);
    if (range != nullptr && range->assume_sorted) {
      range->find_sorted_ids_bounds(rows.end, ids, &rows.begin, &rows.end);
      rows.end = std::max(rows.begin, rows.end);
      return;
    }
    rows.masked = true;
    selected_rows(
        *selector_, rows.end, [&](std::size_t j) { return id_at(ids, j); }, rows.mask);
  }

  // probes_: ordered by list; but the first probe of each query comes before all others, because
  // the nearest list gives the best bound for the rest.
  void collect_probes(const IvfProbes& batch) {
    const std::size_t nprobe = static_cast<std::size_t>(batch.nprobe);
    std::vector<std::size_t> counts(2 * lists_.size() + 1);
    std::vector<Probe> all;
    std::vector<std::uint32_t> keys;
    all.reserve(static_cast<std::size_t>(batch.n) * nprobe);
    for (std::int64_t q = 0; q < batch.n; ++q) {
      const std::int64_t* lists = batch.lists + static_cast<std::size_t>(q) * nprobe;
      std::size_t scanned = 0;
      bool first = true;
      const std::size_t most = max_codes_ != 0 && full_ ? std::max(max_codes_, k_) : max_codes_;
      for (std::size_t p = 0; p < nprobe; ++p) {
        if (max_codes_ != 0 && scanned >= most) break;
        if (lists[p] < 0) continue;
        const std::uint32_t number = numbers_[static_cast<std::size_t>(lists[p])];
        if (number == std::numeric_limits<std::uint32_t>::max()) continue;
        const ListRows& rows = lists_[number];
        std::size_t end = rows.end;
        if (max_codes_ != 0 && !full_) end = std::min(end, most - scanned);
        ++visited_;
        const std::size_t seen = rows.selected_below(end);
        compared_ += seen;
        scanned += seen;
        if (seen == 0) continue;
        all.push_back({number, static_cast<std::uint32_t>(q), end});
        keys.push_back(static_cast<std::uint32_t>(first ? number : lists_.size() + number));
        ++counts[keys.back() + 1];
        first = false;
      }
    }
    for (std::size_t i = 1; i < counts.size(); ++i) counts[i] += counts[i - 1];
    probes_.resize(all.size());
    for (std::size_t i = 0; i < all.size(); ++i) probes_[counts[keys[i]]++] = all[i];
  }

  void prepare(const IvfProbes& batch) {
    const auto n = static_cast<std::size_t>(batch.n);
    if (!per_list_) {
      prepared_ = std::make_unique<PreparedQueries>(impl_, batch.x, n);
      return;
    }
    const std::size_t d = impl_.options.dimension;
    rotations_.assign(n, UnitRotation(impl_));
    std::atomic<std::size_t> bad{n};
#pragma omp parallel for schedule(static) if (n * d > 50000)
    for (std::size_t q = 0; q < n; ++q) {
      if (!rotations_[q].set(impl_, batch.x + q * d)) lower(bad, q);
    }
    if (bad < n) fail("query " + std::to_string(bad.load()) + " holds NaN or infinity");
  }

  void make_tasks() {
    tasks_.clear();
    for (std::size_t first = 0; first < probes_.size();) {
      std::size_t last = first;
      while (last < probes_.size() && probes_[last].list == probes_[first].list) ++last;
      const ListRows& rows = lists_[probes_[first].list];
      for (std::size_t begin = rows.begin; begin < rows.end; begin += kTaskRows) {
        tasks_.push_back({first, last, begin, std::min(rows.end, begin + kTaskRows)});
      }
      first = last;
    }
  }

  static std::size_t free_threads() {
    return static_cast<std::size_t>(omp_in_parallel() != 0 ? 1 : omp_get_max_threads());
  }

  void scan(const IvfProbes& batch) {
    std::size_t work = 0;
    for (const Task& task : tasks_) {
      work += (task.last - task.first) * (task.end - task.begin) * impl_.options.dimension;
    }
    const std::size_t threads =
        std::clamp<std::size_t>(std::min(work / 500000, tasks_.size()), 1, free_threads());
    std::atomic<std::size_t> next{0};
    std::atomic<std::size_t> updates{0};
    run_parts(threads, [&](std::size_t) {
      Worker worker(*this, batch);
      for (std::size_t t = next++; t < tasks_.size(); t = next++) worker.run(tasks_[t]);
      updates += worker.sink.updates();
    });
    updates_ += updates;
  }

  // What one thread needs.
  struct Worker {
    static constexpr std::size_t kSlots = 256;  // differences prepared together

    Worker(Search& search, const IvfProbes& queries)
        : s(search),
          batch(queries),
          scan(search.impl_, search.metric_),
          centroid(search.index_),
          sink(search.metric_, search.best_),
          differences(search.impl_, search.per_list_ ? kSlots : 0),
          scratch(search.impl_) {}

    void run(const Task& task) {
      const ListRows& list = s.lists_[s.probes_[task.first].list];
      const auto number = static_cast<std::size_t>(list.list);
      faiss::InvertedLists::ScopedCodes codes(s.index_.invlists, number);
      std::unique_ptr<faiss::InvertedLists::ScopedIds> ids;
      if (!s.store_pairs_) {
        ids = std::make_unique<faiss::InvertedLists::ScopedIds>(s.index_.invlists, number);
      }
      centroid.set(list.list);
      const std::size_t rows = task.end - task.begin;
      CodeRows part{codes.get() + task.begin * s.impl_.code_size(), rows, nullptr};
      if (list.masked) part.mask = list.mask.data() + (task.begin - list.begin) / 64;
      for (std::size_t first = task.first; first < task.last; first += kSlots) {
        const std::size_t n = std::min(kSlots, task.last - first);
        sink.start(&s.probes_[first], n, list.list, ids != nullptr ? ids->get() : nullptr,
                   task.begin);
        visits.resize(n);
        for (std::size_t v = 0; v < n; ++v) visits[v] = visit(task, s.probes_[first + v], v, rows);
        scan.run(s.per_list_ ? differences : *s.prepared_, visits.data(), n, part, sink);
        for (std::size_t v = 0; v < n; ++v) sink.hand_on(v);
      }
    }

    ListVisit visit(const Task& task, const Probe& probe, std::size_t slot, std::size_t rows) {
      const float* query = batch.x + std::size_t{probe.query} * s.impl_.options.dimension;
      const std::size_t end = std::clamp(probe.rows_end, task.begin, task.begin + rows);
      ListVisit visit{probe.query, centroid.offset(query), end - task.begin};
      if (!s.per_list_) return visit;
      visit.prepared = slot;
      if (!centroid.prepare(query, s.rotations_[probe.query], differences, slot, scratch)) {
        visit.rows = 0;  // every distance overflows
      }
      return visit;
    }

    Search& s;
    const IvfProbes& batch;
    ListScan scan;
    ListCentroid centroid;
    VisitSink sink;
    PreparedQueries differences;
    PreparedQueries::Scratch scratch;
    std::vector<ListVisit> visits;
  };

  void write(const IvfProbes& batch, float* distances, std::int64_t* labels) {
    const float empty = metric_ == Metric::kInnerProduct ? std::numeric_limits<float>::lowest()
                                                         : std::numeric_limits<float>::max();
    const auto n = static_cast<std::size_t>(batch.n);
#pragma omp parallel for schedule(static) if (n * k_ > 20000)
    for (std::size_t q = 0; q < n; ++q) {
      const std::vector<WideKey>& keys = best_[q]->keys.sorted();
      for (std::size_t j = 0; j < k_; ++j) {
        const bool found = j < keys.size();
        distances[q * k_ + j] = found ? bits_score(metric_, score_bits(keys[j])) : empty;
        labels[q * k_ + j] = found ? wide_key_id(keys[j]) : -1;
      }
    }
  }

  const IndexIVFTurboQuant& index_;
  const Quantizer::Impl& impl_;
  const Metric metric_;
  const std::size_t k_;
  const bool store_pairs_;
  const std::size_t max_codes_;  // 0: no limit
  const bool full_;
  const faiss::IDSelector* selector_;
  const bool per_list_;

  std::vector<std::uint32_t> numbers_;  // of each list of the index: its place in lists_
  std::vector<ListRows> lists_;
  std::vector<Probe> probes_;
  std::vector<Task> tasks_;
  std::unique_ptr<PreparedQueries> prepared_;  // unless per_list_
  std::vector<UnitRotation> rotations_;        // with per_list_
  std::vector<std::unique_ptr<Best>> best_;
  std::size_t visited_ = 0, compared_ = 0, updates_ = 0;
};

}  // namespace

bool can_search_lists(const IndexIVFTurboQuant& index, bool store_pairs,
                      const faiss::IVFSearchParameters* params) {
  if (index.invlists == nullptr || !index.is_trained || iterates(*index.invlists, 0)) return false;
  const int mode = index.parallel_mode & ~index.PARALLEL_MODE_NO_HEAP_INIT;
  // Some versions of FAISS find this out where no exception may pass.
  if (mode < 0 || mode > 3) fail("there is no parallel_mode " + std::to_string(mode));
  if (mode != index.parallel_mode) return false;
  return !(store_pairs && params != nullptr && params->sel != nullptr);
}

void search_lists(const IndexIVFTurboQuant& index, const IvfProbes& probes, std::int64_t k,
                  float* distances, std::int64_t* labels, bool store_pairs,
                  const faiss::IVFSearchParameters* params, faiss::IndexIVFStats& stats) {
  Search search(index, k, store_pairs, params);
  const std::size_t d = index.codec().dimension();
  const auto nprobe = static_cast<std::size_t>(probes.nprobe);
  const auto most = static_cast<std::int64_t>(
      std::max<std::size_t>(kBatchBytes / search.bytes_per_query(nprobe), 16));
  for (std::int64_t first = 0; first < probes.n; first += most) {
    faiss::InterruptCallback::check();
    const auto at = static_cast<std::size_t>(first);
    const IvfProbes batch{std::min(most, probes.n - first), probes.x + at * d,
                          probes.lists + at * nprobe, probes.nprobe};
    translate_errors([&] {
      search.run(batch, distances + at * static_cast<std::size_t>(k),
                 labels + at * static_cast<std::size_t>(k));
    });
  }
  search.add_to(stats, probes.n);
}

}  // namespace turboquant
