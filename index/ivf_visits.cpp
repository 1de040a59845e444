#include "index/ivf_visits.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>
#include <utility>

#include "index/checks.h"
#include "quantizer/parallel.h"

namespace turboquant {
namespace {

constexpr std::size_t kTaskRows = 16384;  // a longer list is shared among threads
constexpr std::uint32_t kNoList = std::numeric_limits<std::uint32_t>::max();

}  // namespace

std::size_t IvfVisits::ListRows::selected_below(std::size_t limit) const {
  const std::size_t rows = std::clamp(limit, begin, end) - begin;
  if (!masked) return rows;
  std::size_t count = 0;
  const auto ones = [](std::uint64_t word) {
    return static_cast<std::size_t>(__builtin_popcountll(word));
  };
  for (std::size_t j = 0; j < rows / 64; ++j) count += ones(mask[j]);
  if (rows % 64 != 0) count += ones(mask[rows / 64] << (64 - rows % 64));
  return count;
}

IvfVisits::IvfVisits(const IndexIVFTurboQuant& index, const Options& options)
    : index_(index),
      impl_(index.codec().impl()),
      metric_(to_metric(index.metric_type)),
      options_(options),
      per_list_(index.by_residual && metric_ == Metric::kL2) {}

void IvfVisits::take(const IvfProbes& batch, bool nearest_first) {
  batch_ = batch;
  collect_lists();
  collect_visits(nearest_first);
  prepare();
  make_tasks();
}

void IvfVisits::add_to(faiss::IndexIVFStats& stats) const {
  stats.nlist += visited_;
  stats.ndis += compared_;
}

std::size_t IvfVisits::bytes_per_query(std::size_t nprobe) const {
  return nprobe * (2 * sizeof(IvfVisit) + 8) + impl_.padded * (per_list_ ? 4 : 1) + 256;
}

// lists_: those that some query visits, ascending, with the rows that the selector takes.
void IvfVisits::collect_lists() {
  numbers_.assign(index_.nlist, kNoList);
  lists_.clear();
  const auto pairs = static_cast<std::size_t>(batch_.n * batch_.nprobe);
  for (std::size_t i = 0; i < pairs; ++i) {
    const std::int64_t list = batch_.lists[i];
    if (list < 0) continue;  // FAISS found fewer
    if (list >= static_cast<std::int64_t>(index_.nlist)) {
      fail("list " + std::to_string(list) + " of " + std::to_string(index_.nlist));
    }
    numbers_[static_cast<std::size_t>(list)] = 0;
  }
  for (std::size_t list = 0; list < index_.nlist; ++list) {
    if (numbers_[list] == kNoList) continue;
    const std::size_t size = index_.invlists->list_size(list);
    if (size == 0) {
      numbers_[list] = kNoList;
      continue;
    }
    if (size > std::numeric_limits<std::uint32_t>::max()) fail("a list is too long");
    numbers_[list] = static_cast<std::uint32_t>(lists_.size());
    ListRows rows;
    rows.list = static_cast<std::int64_t>(list);
    rows.end = size;
    lists_.push_back(std::move(rows));
  }
  if (options_.selector == nullptr) return;
  const auto n = static_cast<std::int64_t>(lists_.size());
  std::atomic<std::int64_t> next{0};
  run_parts(std::min(threads(), static_cast<std::size_t>(std::max<std::int64_t>(n, 1))),
            [&](std::size_t) {
              for (std::int64_t i = next++; i < n; i = next++) {
                select(lists_[static_cast<std::size_t>(i)]);
              }
            });
}

void IvfVisits::select(ListRows& rows) const {
  faiss::InvertedLists::ScopedIds scoped(index_.invlists, static_cast<std::size_t>(rows.list));
  const std::int64_t* ids = scoped.get();
  const auto* range = dynamic_cast<const faiss::IDSelectorRange*>(options_.selector);
  if (range != nullptr && range->assume_sorted) {
    range->find_sorted_ids_bounds(rows.end, ids, &rows.begin, &rows.end);
    rows.end = std::max(rows.begin, rows.end);
    return;
  }
  rows.masked = true;
  selected_rows(
      *options_.selector, rows.end, [&](std::size_t j) { return id_at(ids, j); }, rows.mask);
}

// The visits of one query in the order of its lists: put(visit).
template <class Put>
void IvfVisits::each_visit(std::size_t q, Seen& seen, const Put& put) const {
  const auto nprobe = static_cast<std::size_t>(batch_.nprobe);
  const std::int64_t* lists = batch_.lists + q * nprobe;
  std::size_t scanned = 0;
  for (std::size_t p = 0; p < nprobe; ++p) {
    if (options_.max_codes != 0 && scanned >= options_.max_codes) break;
    if (lists[p] < 0) continue;
    const std::uint32_t number = numbers_[static_cast<std::size_t>(lists[p])];
    if (number == kNoList) continue;
    const ListRows& rows = lists_[number];
    std::size_t end = rows.end;
    if (options_.max_codes != 0 && !options_.whole_lists) {
      end = std::min(end, options_.max_codes - scanned);
    }
    ++seen.lists;
    const std::size_t selected = rows.selected_below(end);
    seen.rows += selected;
    scanned += selected;
    if (selected == 0) continue;
    put(IvfVisit{number, static_cast<std::uint32_t>(q), static_cast<std::uint32_t>(p),
                 static_cast<std::uint32_t>(end)});
  }
}

// visits_: ordered by list; with nearest_first, those to the nearest list of each query before all
// others, because it gives the best bound for the rest.
void IvfVisits::collect_visits(bool nearest_first) {
  const auto n = static_cast<std::size_t>(batch_.n);
  const std::size_t pairs = n * static_cast<std::size_t>(batch_.nprobe);
  const std::size_t keys = lists_.size() * (nearest_first ? 2 : 1);
  // Places are counted for each part, so more parts than this would take longer.
  const std::size_t parts =
      std::clamp<std::size_t>(std::min(pairs / (2 * keys + 4096), n), 1, threads());
  std::vector<std::vector<std::uint32_t>> places(parts);
  std::vector<Seen> seen(parts);
  const auto each_of_part = [&](std::size_t part, const auto& put) {
    Seen of_part;
    for (std::size_t q = part * n / parts; q < (part + 1) * n / parts; ++q) {
      std::size_t later = 0;  // what is added to the key
      each_visit(q, of_part, [&](const IvfVisit& visit) {
        put(visit, later + visit.list);
        if (nearest_first) later = lists_.size();
      });
    }
    seen[part] = of_part;
  };
  run_parts(parts, [&](std::size_t part) {
    places[part].resize(keys);
    each_of_part(part, [&](const IvfVisit&, std::size_t key) { ++places[part][key]; });
  });
  for (const Seen& part : seen) {
    visited_ += part.lists;
    compared_ += part.rows;
  }
  std::uint32_t at = 0;
  for (std::size_t key = 0; key < keys; ++key) {
    for (auto& of_part : places) at += std::exchange(of_part[key], at);
  }
  visits_.resize(at);
  run_parts(parts, [&](std::size_t part) {
    each_of_part(part, [&](const IvfVisit& visit, std::size_t key) {
      visits_[places[part][key]++] = visit;
    });
  });
}

void IvfVisits::prepare() {
  const auto n = static_cast<std::size_t>(batch_.n);
  if (!per_list_) {
    prepared_ = std::make_unique<PreparedQueries>(impl_, batch_.x, n);
    return;
  }
  const std::size_t d = impl_.options.dimension;
  rotations_.assign(n, UnitRotation(impl_));
  std::atomic<std::size_t> bad{n};
#pragma omp parallel for schedule(static) if (n * d > 50000)
  for (std::size_t q = 0; q < n; ++q) {
    if (!rotations_[q].set(impl_, batch_.x + q * d)) lower(bad, q);
  }
  if (bad < n) fail("query " + std::to_string(bad.load()) + " holds NaN or infinity");
}

void IvfVisits::make_tasks() {
  tasks_.clear();
  for (std::size_t first = 0; first < visits_.size();) {
    std::size_t last = first;
    while (last < visits_.size() && visits_[last].list == visits_[first].list) ++last;
    const ListRows& rows = lists_[visits_[first].list];
    for (std::size_t begin = rows.begin; begin < rows.end; begin += kTaskRows) {
      tasks_.push_back({first, last, begin, std::min(rows.end, begin + kTaskRows)});
    }
    first = last;
  }
}

std::size_t IvfVisits::threads() { return free_threads(); }

// What one thread needs.
class IvfVisits::Worker {
 public:
  Worker(const IvfVisits& visits, VisitSink& sink)
      : all_(visits),
        sink_(sink),
        scan_(visits.impl_, visits.metric_),
        centroid_(visits.index_),
        differences_(visits.impl_, visits.per_list_ ? kSlots : 0),
        scratch_(visits.impl_) {}

  void run(const Task& task) {
    const ListRows& list = all_.lists_[all_.visits_[task.first].list];
    const auto number = static_cast<std::size_t>(list.list);
    faiss::InvertedLists::ScopedCodes codes(all_.index_.invlists, number);
    std::unique_ptr<faiss::InvertedLists::ScopedIds> ids;
    if (!all_.options_.store_pairs) {
      ids = std::make_unique<faiss::InvertedLists::ScopedIds>(all_.index_.invlists, number);
    }
    centroid_.set(list.list);
    const std::size_t rows = task.end - task.begin;
    CodeRows part{codes.get() + task.begin * all_.impl_.code_size(), rows, nullptr};
    if (list.masked) part.mask = list.mask.data() + (task.begin - list.begin) / 64;
    for (std::size_t first = task.first; first < task.last; first += kSlots) {
      const std::size_t n = std::min(kSlots, task.last - first);
      const IvfVisit* visits = &all_.visits_[first];
      sink_.start(visits, n, list.list, ids != nullptr ? ids->get() : nullptr, task.begin);
      visits_.resize(n);
      for (std::size_t v = 0; v < n; ++v) visits_[v] = visit(task, visits[v], v, rows);
      scan_.run(all_.per_list_ ? differences_ : *all_.prepared_, visits_.data(), n, part, sink_);
      sink_.finish();
    }
  }

 private:
  static constexpr std::size_t kSlots = 256;  // differences prepared together

  ListVisit visit(const Task& task, const IvfVisit& of, std::size_t slot, std::size_t rows) {
    const float* query = all_.batch_.x + std::size_t{of.query} * all_.impl_.options.dimension;
    const std::size_t end = std::clamp<std::size_t>(of.rows_end, task.begin, task.begin + rows);
    ListVisit visit{of.query, centroid_.offset(query), end - task.begin};
    if (!all_.per_list_) return visit;
    visit.prepared = slot;
    if (!centroid_.prepare(query, all_.rotations_[of.query], differences_, slot, scratch_)) {
      visit.rows = 0;  // every distance overflows
    }
    return visit;
  }

  const IvfVisits& all_;
  VisitSink& sink_;
  ListScan scan_;
  ListCentroid centroid_;
  PreparedQueries differences_;
  PreparedQueries::Scratch scratch_;
  std::vector<ListVisit> visits_;
};

void IvfVisits::scan(const std::function<VisitSink&(std::size_t)>& sink_of) {
  std::size_t work = 0;
  for (const Task& task : tasks_) {
    work += (task.last - task.first) * (task.end - task.begin) * impl_.options.dimension;
  }
  const std::size_t parts =
      std::clamp<std::size_t>(std::min(work / 500000, tasks_.size()), 1, threads());
  std::atomic<std::size_t> next{0};
  run_parts(parts, [&](std::size_t part) {
    Worker worker(*this, sink_of(part));
    for (std::size_t t = next++; t < tasks_.size(); t = next++) worker.run(tasks_[t]);
  });
}

}  // namespace turboquant
