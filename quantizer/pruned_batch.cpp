#include "quantizer/pruned_batch.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "quantizer/normal.h"
#include "quantizer/tile_operands.h"

namespace turboquant {
namespace {

using kernels::Hit;
using kernels::kBlock;
using kernels::kLane;

constexpr std::size_t kChunkBlocks = 4;  // blocks that are in the sample or not
constexpr std::size_t kSample = 16;      // one chunk in so many is scanned whole, first
constexpr std::size_t kGroups = 4;       // query groups of a tile
constexpr std::size_t kPending = 32;     // rows of a query that are scored together
constexpr std::uint64_t kNoKey = std::numeric_limits<std::uint64_t>::max();

}  // namespace

PrunedBatch::PrunedBatch(const ScanQueries& queries, const CodeRows& rows, const SignPlane& plane,
                         float confidence, std::size_t k)
    : queries_(queries),
      rows_(rows),
      plane_(plane),
      prefix_(plane.levels_prefix()),
      width_(8 * prefix_.row_bytes),
      k_(k),
      packed_(queries.groups() * kLane * width_),
      bias_(queries.groups() * kLane),
      deviations_(queries.groups() * kLane) {
  const PreparedQueries& prepared = queries.prepared();
  const Quantizer::Impl& impl = prepared.impl();
  const double deviations = normal_quantile(confidence);
  for (std::size_t q = 0; q < queries.size(); ++q) {
    const std::int8_t* values = prepared.levels.values.data() + q * impl.padded;
    std::int32_t sum = 0;
    std::int32_t squares = 0;  // at most 65,536 * 127^2
    for (std::size_t i = 0; i < impl.padded; ++i) {
      squares += values[i] * values[i];
      if (i < width_) sum += values[i];
    }
    pack_tile_query(values, q, width_, packed_.data());
    bias_[q] = tile_bias(impl.kernels, impl.levels, sum);
    deviations_[q] = static_cast<float>(deviations * std::sqrt(static_cast<double>(squares)));
  }
}

class PrunedBatch::Part {
 public:
  Part(const PrunedBatch& batch, std::size_t first_group, std::size_t last_group,
       std::vector<TopK>& best, std::vector<std::uint64_t>& certain)
      : batch_(batch),
        queries_(batch.queries_),
        impl_(batch.queries_.prepared().impl()),
        first_group_(first_group),
        last_group_(last_group),
        first_query_(first_group * kLane),
        last_query_(std::min(batch.queries_.size(), last_group * kLane)),
        best_(best),
        certain_(certain),
        operand_(impl_.kernels, impl_.levels),
        cutoffs_((last_group - first_group) * kLane, HUGE_VALF),
        terms_(cutoffs_.size()),
        pending_(cutoffs_.size() * kPending),
        n_pending_(cutoffs_.size()),
        decoded_(kBlock * batch.width_),
        dots_(kGroups * kBlock * kLane) {}

  void run(std::size_t begin, std::size_t end) {
    const std::size_t chunk = kChunkBlocks * kBlock;
    const std::size_t first = begin / chunk;
    const std::size_t last = (end + chunk - 1) / chunk;
    const auto each = [&](bool sampled, const auto& work) {
      for (std::size_t c = first; c < last; ++c) {
        if ((c % kSample == kSample / 2) != sampled) continue;
        const std::size_t from = std::max(begin, c * chunk);
        const std::size_t to = std::min(end, (c + 1) * chunk);
        if (sampled) sample_rows_ += to - from;
        if (!work(from, to)) return;
      }
    };
    TopKSink sink(queries_.metric(), best_);
    const auto scan_all = [&](std::size_t from, std::size_t to) {
      scan_block(queries_, batch_.rows_, from, to, first_group_, last_group_, sink);
      return true;
    };
    each(true, scan_all);
    set_cutoffs();
    std::size_t pruned_to = begin;
    each(false, [&](std::size_t from, std::size_t to) {
      pruned_to = to;
      for (std::size_t row = from; row < to;) {
        const std::size_t next = std::min((row / kBlock + 1) * kBlock, to);
        prune(row, next);
        row = next;
      }
      pairs_ += (to - from) * (last_query_ - first_query_);
      return pays();
    });
    for (std::size_t q = first_query_; q < last_query_; ++q) score_pending(q);
    // What is left when it did not pay, in pieces as long as there are.
    std::size_t from = pruned_to;
    std::size_t to = pruned_to;
    each(false, [&](std::size_t chunk_from, std::size_t chunk_to) {
      if (chunk_from < pruned_to) return true;
      if (chunk_from != to) {
        scan_all(from, to);
        from = chunk_from;
      }
      to = chunk_to;
      return true;
    });
    scan_all(from, to);
  }

 private:
  // Whether this is faster than a scan of whole rows, so far and by some margin.
  bool pays() const {
    const auto pairs = static_cast<float>(pairs_);
    const auto hits = static_cast<float>(hits_);
    const float share =
        static_cast<float>(batch_.width_) / static_cast<float>(impl_.options.dimension);
    constexpr float kFew = 4096;  // say little
    return pairs * share + hits * impl_.kernels.row_cost < 0.9f * pairs + kFew;
  }

  // The k best of all rows are expected to reach the score of this rank in the sample; what is
  // below counts as certain only as far as that proves true.
  void set_cutoffs() {
    const double expected =
        static_cast<double>(batch_.k_ * sample_rows_) / static_cast<double>(batch_.rows_.n);
    const auto rank = static_cast<std::size_t>(expected + 4 * std::sqrt(expected) + 2);
    for (std::size_t q = first_query_; q < last_query_; ++q) {
      std::vector<std::uint64_t> keys = best_[q].candidates();
      if (keys.size() > rank) {
        const auto at = keys.begin() + static_cast<std::ptrdiff_t>(rank);
        std::nth_element(keys.begin(), at, keys.end());
        certain_[q] = *at;
      }
      update_cutoff(q);
    }
  }

  void update_cutoff(std::size_t q) {
    const std::uint64_t key = std::min(certain_[q], best_[q].limit());
    const float bound =
        key == kNoKey ? std::numeric_limits<float>::quiet_NaN() : key_score(queries_.metric(), key);
    queries_.cutoff(q, bound, &cutoffs_[q - first_query_], &terms_[q - first_query_]);
  }

  // Looks at the rows of one block.
  void prune(std::size_t begin, std::size_t end) {
    const std::size_t width = batch_.width_;
    for (std::size_t row = begin; row < end; ++row) {
      impl_.kernels.decode(batch_.rows_.codes + row * impl_.code_size(), width, impl_.options.bits,
                           operand_.values, decoded_.data() + (row - begin) * width);
    }
    const std::size_t n = end - begin;
    const std::size_t n_rows = kernels::round_up(n, kLane);
    const float spread = batch_.prefix_.spreads[begin / kBlock];
    const float* terms = batch_.plane_.terms() != nullptr ? batch_.plane_.terms() + begin : nullptr;
    for (std::size_t g = first_group_; g < last_group_; g += kGroups) {
      const std::size_t groups = std::min(kGroups, last_group_ - g);
      impl_.kernels.dot_tile(decoded_.data(), n_rows, width, impl_.levels,
                             batch_.packed_.data() + g * kLane * width, groups,
                             batch_.bias_.data() + g * kLane, dots_.data());
      for (std::size_t i = 0; i < groups; ++i) {
        const std::size_t first = (g + i) * kLane;
        float cutoffs[kLane];
        for (std::size_t j = 0; j < kLane; ++j) {
          cutoffs[j] = cutoffs_[first - first_query_ + j] - batch_.deviations_[first + j] * spread;
        }
        const std::size_t found = impl_.kernels.select_tile(
            dots_.data() + i * n_rows * kLane, n, batch_.prefix_.scales.data() + begin, terms,
            &terms_[first - first_query_], cutoffs, hits_of_tile_);
        hits_ += found;
        for (std::size_t h = 0; h < found; ++h) {
          const Hit& hit = hits_of_tile_[h];
          const std::size_t q = first + hit.query;
          if (q >= last_query_) continue;
          const std::size_t at = q - first_query_;
          pending_[at * kPending + n_pending_[at]] = static_cast<std::uint32_t>(begin + hit.row);
          if (++n_pending_[at] == kPending) score_pending(q);
        }
      }
    }
  }

  void score_pending(std::size_t q) {
    const std::size_t at = q - first_query_;
    const bool moved =
        offer_rows(queries_, q, batch_.rows_, &pending_[at * kPending], n_pending_[at], best_[q]);
    n_pending_[at] = 0;
    if (moved) update_cutoff(q);
  }

  const PrunedBatch& batch_;
  const ScanQueries& queries_;
  const Quantizer::Impl& impl_;
  const std::size_t first_group_, last_group_, first_query_, last_query_;
  std::vector<TopK>& best_;
  std::vector<std::uint64_t>& certain_;
  const TileLevels operand_;
  std::vector<float> cutoffs_, terms_;  // [queries of the part]
  std::vector<std::uint32_t> pending_;  // [queries of the part][kPending]: rows in question
  std::vector<std::size_t> n_pending_;
  AlignedVector<std::int8_t> decoded_;  // [kBlock][width]
  AlignedVector<std::int32_t> dots_;    // [kGroups][kBlock][kLane]
  Hit hits_of_tile_[kBlock * kLane];
  std::size_t sample_rows_ = 0;
  std::size_t pairs_ = 0, hits_ = 0;
};

void PrunedBatch::scan(std::size_t begin, std::size_t end, std::size_t first_group,
                       std::size_t last_group, std::vector<TopK>& best,
                       std::vector<std::uint64_t>& certain) const {
  Part(*this, first_group, last_group, best, certain).run(begin, end);
}

}  // namespace turboquant
