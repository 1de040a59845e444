#include "storage/view_search.h"

#include <absl/strings/str_cat.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "quantizer/block_scan.h"
#include "storage/errors.h"

namespace turboquant::storage {
namespace {

class BestRowsSink final : public ScanSink {
 public:
  BestRowsSink(const View& view, Metric metric, std::size_t nq, std::size_t k)
      : best_(nq, BestRows(CandidateOrder(view, metric), metric, k)) {}

  void start_block(std::uint32_t position, const RowBits* only) {
    first_ = position;
    only_ = only;
  }
  float bound(std::size_t q) const override { return best_[q].bound(); }
  bool offer(std::size_t q, float score, std::uint32_t row) override {
    if (only_ != nullptr && !only_->test(row)) return false;
    return best_[q].offer({score, first_ + row});
  }
  BestRows& best(std::size_t q) { return best_[q]; }

 private:
  std::uint32_t first_ = 0;
  const RowBits* only_ = nullptr;
  std::vector<BestRows> best_;
};

class RangeSink final : public ScanSink {
 public:
  RangeSink(Metric metric, float radius, std::size_t nq, std::size_t max_hits,
            std::atomic<std::size_t>& hits)
      : metric_(metric), radius_(radius), max_hits_(max_hits), hits_(hits), found_(nq) {}

  void start_block(std::uint32_t position, const RowBits* only) {
    first_ = position;
    only_ = only;
  }
  float bound(std::size_t /*q*/) const override { return radius_; }
  bool offer(std::size_t q, float score, std::uint32_t row) override {
    if (only_ != nullptr && !only_->test(row)) return false;
    const bool better = metric_ == Metric::kL2 ? score < radius_ : score > radius_;
    if (better && hits_.fetch_add(1, std::memory_order_relaxed) < max_hits_) {
      found_[q].push_back({score, first_ + row});
    }
    return false;
  }
  std::vector<Candidate>& found(std::size_t q) { return found_[q]; }

 private:
  Metric metric_;
  float radius_;
  std::size_t max_hits_;
  std::atomic<std::size_t>& hits_;
  std::uint32_t first_ = 0;
  const RowBits* only_ = nullptr;
  std::vector<std::vector<Candidate>> found_;
};

// Where the parts of a view begin: rows are divided evenly, whatever the blocks hold. Positions
// within a view count the rows of each block up to kBlockRows.
std::vector<std::uint64_t> part_positions(const View& view, std::size_t parts) {
  std::uint64_t rows = 0;
  for (const auto& block : view.blocks) rows += block->rows;
  std::vector<std::uint64_t> positions;
  std::uint64_t before = 0;
  for (std::size_t b = 0; b < view.blocks.size(); ++b) {
    const std::uint64_t after = before + view.blocks[b]->rows;
    while (positions.size() < parts && rows * positions.size() / parts < after) {
      // Whole groups of rows, as the masks of filters and the kernels have them.
      const std::uint64_t row = (rows * positions.size() / parts - before) / 64 * 64;
      positions.push_back(b * kBlockRows + row);
    }
    before = after;
  }
  positions.resize(parts + 1, view.blocks.size() * kBlockRows);
  return positions;
}

// One thread's positions.
template <class Sink>
absl::Status scan_part(const View& view, const ScanRequest& request, const ScanQueries& queries,
                       std::uint64_t first, std::uint64_t last, std::size_t first_group,
                       std::size_t last_group, Sink& sink) {
  RowBits scratch;
  for (std::size_t b = first / kBlockRows; b * kBlockRows < last; ++b) {
    TQ_RETURN_IF_ERROR(check_control(request.control));
    const Block& block = *view.blocks[b];
    const std::size_t begin = b * kBlockRows < first ? first % kBlockRows : 0;
    const std::size_t end = std::min<std::size_t>(last - b * kBlockRows, block.rows);
    if (block.live_rows == 0 || begin >= end) continue;
    const RowBits* bits = select_rows(block, request.filter, scratch);
    const std::uint32_t selected = bits != nullptr ? bits->count() : block.rows;
    if (selected == 0) continue;
    // Picking rows one by one costs more than scanning them all and refusing what is not wanted,
    // unless few are.
    const bool scan_all = selected > block.rows / (queries.few() ? 3 : 1) * 9 / 10;
    CodeRows rows;
    rows.codes = block.memory->codes.data();
    rows.n = block.rows;
    rows.mask = bits != nullptr && !scan_all ? bits->words.data() : nullptr;
    sink.start_block(static_cast<std::uint32_t>(b * kBlockRows), scan_all ? bits : nullptr);
    scan_block(queries, rows, begin, end, first_group, last_group, sink);
  }
  return absl::OkStatus();
}

// Runs the plan; one sink per part, since a sink knows which block is scanned.
template <class Sink>
absl::Status scan(const View& view, const ScanRequest& request, const ScanQueries& queries,
                  const ScanPlan& plan, std::vector<Sink>& sinks) {
  const std::size_t parts = plan.query_parts * plan.row_parts;
  std::vector<absl::Status> statuses(parts);
  const std::vector<std::uint64_t> positions = part_positions(view, plan.row_parts);
  const std::size_t groups = queries.groups();
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(parts)) if (parts > 1)
  for (std::size_t p = 0; p < parts; ++p) {
    const std::size_t of_queries = p / plan.row_parts;
    const std::size_t of_rows = p % plan.row_parts;
    statuses[p] = guard([&] {
      return scan_part(view, request, queries, positions[of_rows], positions[of_rows + 1],
                       groups * of_queries / plan.query_parts,
                       groups * (of_queries + 1) / plan.query_parts, sinks[p]);
    });
  }
  for (const absl::Status& status : statuses) TQ_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status check_size(const View& view) {
  if (view.blocks.size() <= std::numeric_limits<std::uint32_t>::max() / kBlockRows) {
    return absl::OkStatus();
  }
  return invalid("BAD_OPTION", "a collection of more than 4 billion rows cannot be searched");
}

}  // namespace

RecordId id_at(const View& view, std::uint32_t position) {
  return block_at(view, position).memory->id(offset_at(position));
}

bool CandidateOrder::operator()(const Candidate& a, const Candidate& b) const {
  if (a.score != b.score) {
    return metric_ == Metric::kL2 ? a.score < b.score : a.score > b.score;
  }
  if (a.position == b.position) return false;
  return id_at(*view_, a.position) < id_at(*view_, b.position);
}

BestRows::BestRows(const CandidateOrder& order, Metric metric, std::size_t k)
    : order_(order), metric_(metric), k_(k), most_(k + std::max<std::size_t>(k, 32)) {}

bool BestRows::offer(Candidate candidate) {
  const std::uint64_t key = candidate_key(metric_, candidate.score, candidate.position);
  if (key > limit_ || k_ == 0) return false;
  if (keys_.capacity() == 0) keys_.reserve(most_);
  keys_.push_back(key);
  if (keys_.size() < most_) return false;
  cut();
  return true;
}

// Equal scores at the limit stay, since their ids decide; unless there are so many that the next
// cut would come soon.
void BestRows::cut() {
  const auto last = keys_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
  std::nth_element(keys_.begin(), last, keys_.end());
  limit_ = *last | 0xffffffffU;
  const auto end = std::partition(last, keys_.end(), [&](std::uint64_t x) { return x <= limit_; });
  keys_.erase(end, keys_.end());
  if (keys_.size() > most_ - most_ / 4) {
    std::nth_element(keys_.begin(), last, keys_.end(),
                     [&](std::uint64_t a, std::uint64_t b) { return order_(at(a), at(b)); });
    keys_.resize(k_);
  }
}

std::vector<Candidate> BestRows::take() {
  std::vector<Candidate> best(keys_.size());
  std::transform(keys_.begin(), keys_.end(), best.begin(), [&](std::uint64_t x) { return at(x); });
  std::sort(best.begin(), best.end(), order_);
  if (best.size() > k_) best.resize(k_);
  keys_.clear();
  return best;
}

absl::StatusOr<std::vector<std::vector<Candidate>>> scan_top_k(const View& view,
                                                               const ScanRequest& request,
                                                               std::size_t k) {
  TQ_RETURN_IF_ERROR(check_size(view));
  TQ_RETURN_IF_ERROR(check_control(request.control));
  const ScanQueries queries(request.quantizer->impl(), request.metric, request.queries, request.nq);
  const ScanPlan plan(queries, view.live_rows);
  const std::size_t held = std::min<std::size_t>(k, view.live_rows);
  std::vector<BestRowsSink> sinks(plan.query_parts * plan.row_parts,
                                  BestRowsSink(view, request.metric, request.nq, held));
  TQ_RETURN_IF_ERROR(scan(view, request, queries, plan, sinks));
  std::vector<std::vector<Candidate>> found(request.nq);
  for (std::size_t q = 0; q < request.nq; ++q) {
    BestRows& best = sinks[0].best(q);
    for (std::size_t i = 1; i < sinks.size(); ++i) {
      for (const Candidate& candidate : sinks[i].best(q).take()) best.offer(candidate);
    }
    found[q] = best.take();
  }
  return found;
}

absl::StatusOr<std::vector<std::vector<Candidate>>> scan_range(const View& view,
                                                               const ScanRequest& request,
                                                               float radius, std::size_t max_hits) {
  TQ_RETURN_IF_ERROR(check_size(view));
  TQ_RETURN_IF_ERROR(check_control(request.control));
  const ScanQueries queries(request.quantizer->impl(), request.metric, request.queries, request.nq);
  const ScanPlan plan(queries, view.live_rows);
  std::atomic<std::size_t> hits{0};
  std::vector<RangeSink> sinks(plan.query_parts * plan.row_parts,
                               RangeSink(request.metric, radius, request.nq, max_hits, hits));
  TQ_RETURN_IF_ERROR(scan(view, request, queries, plan, sinks));
  if (hits.load() > max_hits) {
    return make_error(absl::StatusCode::kResourceExhausted, "TOO_MANY_HITS",
                      absl::StrCat("more than ", max_hits,
                                   " records are within the radius; narrow it or raise max_hits"));
  }
  std::vector<std::vector<Candidate>> found(request.nq);
  for (std::size_t q = 0; q < request.nq; ++q) {
    for (RangeSink& sink : sinks) {
      found[q].insert(found[q].end(), sink.found(q).begin(), sink.found(q).end());
    }
    std::sort(found[q].begin(), found[q].end(), CandidateOrder(view, request.metric));
  }
  return found;
}

absl::Status check_control(const ReadControl& control) {
  if (control.cancelled != nullptr && control.cancelled->load(std::memory_order_relaxed)) {
    return make_error(absl::StatusCode::kCancelled, "CANCELLED", "the caller gave up");
  }
  if (control.deadline != absl::InfiniteFuture() && absl::Now() >= control.deadline) {
    return make_error(absl::StatusCode::kDeadlineExceeded, "DEADLINE", "the deadline has passed");
  }
  return absl::OkStatus();
}

const RowBits* select_rows(const Block& block, const FilterNode* filter, RowBits& scratch) {
  if (filter != nullptr) {
    scratch = block.select(*filter);
    return &scratch;
  }
  return block.live_rows == block.rows ? nullptr : block.live.get();
}

}  // namespace turboquant::storage
