#include "quantizer/pruned_search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "quantizer/normal.h"
#include "quantizer/parallel.h"

namespace turboquant {
namespace {

using kernels::Hit;
using kernels::kBlock;

constexpr std::size_t kChunk = 8;  // blocks whose sums are judged together
constexpr std::size_t kChunkRows = kChunk * kBlock;
constexpr std::size_t kSample = 32;   // one chunk in so many is looked at first
constexpr std::size_t kLikely = 4;    // so many times k rows are scored to find a bound
constexpr std::size_t kSurplus = 64;  // one row in so many may pass unexpectedly
constexpr std::size_t kAhead = 4096;  // bytes: where hardware prefetchers stop

// As good as random, the same everywhere: Fibonacci hashing.
std::size_t scattered(std::size_t x) {
  return static_cast<std::size_t>((std::uint64_t{x} + 1) * 0x9e3779b97f4a7c15u >> 40);
}

// A query as KernelTable::sign_sums takes it: sums of signed values, brought to 0 to kMostSign.
struct SignQuery {
  SignQuery(const std::int8_t* values, std::size_t row_bytes, double confidence)
      : tables(2 * row_bytes * 16) {
    const std::size_t fours = 2 * row_bytes;
    std::int32_t most = 0;
    double squares = 0;
    for (std::size_t f = 0; f < fours; ++f) {
      std::int32_t sum = 0;
      for (std::size_t i = 0; i < 4; ++i) {
        const std::int32_t value = values[4 * f + i];
        sum += value < 0 ? -value : value;
        squares += static_cast<double>(value * value);
      }
      most = std::max(most, sum);
    }
    factor = kernels::kMostSign / (2.0 * most);
    const auto unit = static_cast<std::int32_t>(factor * 65536);  // entries by 65,536 stay exact
    for (std::size_t f = 0; f < fours; ++f) {
      std::int32_t sums[16] = {most * unit + 32768};
      for (std::size_t i = 0; i < 4; ++i) sums[0] -= values[4 * f + i] * unit;
      for (std::size_t i = 0; i < 4; ++i) {
        const std::size_t bit = std::size_t{1} << i;
        const std::int32_t step = 2 * values[4 * f + i] * unit;
        for (std::size_t below = 0; below < bit; ++below) sums[bit + below] = sums[below] + step;
      }
      for (std::size_t bits = 0; bits < 16; ++bits) {
        tables[f * 16 + bits] = static_cast<std::uint8_t>(sums[bits] >> 16);
      }
    }
    offset = static_cast<float>(2 * most * factor);
    const double deviations = normal_quantile(confidence);
    variance = static_cast<float>(deviations * deviations * squares * factor * factor);
    rounding = static_cast<float>(deviations * deviations / 6);
  }

  /// What sums over n_bytes start from so that they bound the product from above. spread: of
  /// SignPlane::Prefix.
  std::int32_t start(std::size_t n_bytes, float spread) const {
    const auto n = static_cast<float>(n_bytes);
    return static_cast<std::int32_t>(std::sqrt(spread * spread * variance + n * rounding) -
                                     n * offset);
  }

  AlignedVector<std::uint8_t> tables;
  double factor = 0;   // a sum is a product of signs and values times this
  float offset = 0;    // what the two entries of a byte were raised by
  float variance = 0;  // of a sum whose row has spread 1, times the squared number of deviations
  float rounding = 0;  // likewise of the rounding of a byte's entries
};

class PrunedSearch {
 public:
  PrunedSearch(const ScanQueries& queries, std::size_t q, const CodeRows& rows,
               const SignPlane& plane, float confidence)
      : queries_(queries),
        prepared_(queries.prepared()),
        impl_(prepared_.impl()),
        q_(q),
        rows_(rows),
        plane_(plane),
        query_(prepared_.levels.values.data() + q * impl_.padded, plane.row_bytes(), confidence),
        l2_(queries.metric() == Metric::kL2),
        unit_(static_cast<float>(prepared_.levels.scales[q] / query_.factor)),
        chunks_((plane.blocks() + kChunk - 1) / kChunk),
        prefix_(&plane.prefixes().front()) {}

  bool run(std::size_t k, std::vector<TopK>& best) {
    if (!try_sample(k, best.size())) return false;
    for (;;) {
      std::size_t scored = 0;
      if (!first_pass(best, &scored) || scored < k) return false;  // the sample misled
      std::vector<std::uint64_t> exact;
      for (const TopK& part : best) {
        exact.insert(exact.end(), part.candidates().begin(), part.candidates().end());
      }
      const auto last = exact.begin() + static_cast<std::ptrdiff_t>(k - 1);
      std::nth_element(exact.begin(), last, exact.end());
      const std::uint64_t kth = *last;
      if (kth <= loose_.key) return second_pass(cutoff(kth), best);
      loose_ = cutoff(kth);
      for (TopK& part : best) part = TopK(k);
    }
  }

 private:
  // Lets upper bounds pass that reach the score of a key.
  struct Cutoff {
    std::uint64_t key = std::numeric_limits<std::uint64_t>::max();
    float value = std::numeric_limits<float>::quiet_NaN();  // passes everything
    float term = 0;
  };

  // Rows of a sample of chunks and the sums of a prefix of their signs.
  struct Sample {
    std::vector<std::size_t> chunks;
    std::vector<std::int32_t> sums;  // [chunks][kChunkRows]
    std::size_t rows = 0;
  };

  Cutoff cutoff(std::uint64_t key) const {
    Cutoff c;
    c.key = key;
    queries_.cutoff(q_, unit_, key_score(queries_.metric(), key), &c.value, &c.term);
    return c;
  }

  // Chooses the prefix by what it leaves in question in a sample, and the cutoffs of the first
  // pass. False when a scan of all rows is faster.
  bool try_sample(std::size_t k, std::size_t parts) {
    Sample sample;
    const std::size_t step = std::min(kSample, chunks_);
    // One of each `step` chunks, never at the same place: rows may come in a rhythm of their own.
    for (std::size_t first = 0; first < chunks_; first += step) {
      const std::size_t c = first + scattered(first) % step;
      if (c >= chunks_) break;
      sample.chunks.push_back(c);
      sample.rows += chunk_rows(c);
    }
    sample.sums.resize(sample.chunks.size() * kChunkRows);
    const std::vector<SignPlane::Prefix>& prefixes = plane_.prefixes();
    const std::size_t start = std::min<std::size_t>(1, prefixes.size() - 1);
    prefix_ = &prefixes[start];
    add_signs_of(sample, parts);
    // Of so many rows as can be among the k best, and some more in case the sample has few of them.
    const std::size_t rank = std::max<std::size_t>(1, k * sample.rows / rows_.n);
    const std::size_t low_rank =
        std::min(rank + static_cast<std::size_t>(std::sqrt(rank)) + 1, sample.rows);
    const std::vector<std::uint64_t> exact = best_exact(sample, low_rank);
    const Cutoff possible = cutoff(exact[std::min(rank, exact.size()) - 1]);
    loose_ = cutoff(exact.back());

    std::size_t remaining = survivors(sample, possible);
    std::size_t least = cost(sample, remaining);
    const auto try_prefix = [&](const SignPlane::Prefix& p) {
      if (sample.rows * (p.row_bytes + 4) >= least) return false;
      const SignPlane::Prefix* const before = prefix_;
      std::vector<std::int32_t> sums(sample.sums.size());
      sums.swap(sample.sums);
      prefix_ = &p;
      add_signs_of(sample, parts);
      const std::size_t left = survivors(sample, possible);
      if (cost(sample, left) >= least) {
        prefix_ = before;
        sums.swap(sample.sums);
        return false;
      }
      least = cost(sample, left);
      remaining = left;
      return true;
    };
    std::size_t p = start + 1;
    while (p < prefixes.size() && try_prefix(prefixes[p])) ++p;
    if (p == start + 1 && start == 1) try_prefix(prefixes[0]);
    if (least >= sample.rows * impl_.code_size() * 4 / 5) return false;
    const std::size_t likely = std::min(std::max(kLikely * rank, remaining / 2), sample.rows);
    likely_ = best_upper(sample, likely);
    most_likely_ = std::min(most(sample, likely), rows_.n / 8);
    most_kept_ = most(sample, survivors(sample, loose_));
    most_left_ = most(sample, remaining);
    return true;
  }

  // Twice what is expected of all rows when so many of the sample's pass, and some more: beyond
  // that the sample misled, and a scan of all rows costs less than to go on.
  std::size_t most(const Sample& sample, std::size_t passed) const {
    return 2 * passed * (rows_.n / sample.rows) + rows_.n / kSurplus;
  }

  // What a first pass over the sample would take, in bytes read in order.
  std::size_t cost(const Sample& sample, std::size_t survivors) const {
    return sample.rows * (prefix_->row_bytes + 4) + survivors * (2 * impl_.code_size() + 200);
  }

  std::size_t survivors(const Sample& sample, const Cutoff& cutoff) const {
    Hit hits[kChunkRows];
    std::size_t n = 0;
    for (std::size_t i = 0; i < sample.chunks.size(); ++i) {
      n += select(sample.chunks[i], &sample.sums[i * kChunkRows], cutoff, hits);
    }
    return n;
  }

  // Exact keys of the best of the sample, as far as the highest upper bounds show; best first.
  std::vector<std::uint64_t> best_exact(const Sample& sample, std::size_t rows) const {
    const Cutoff likely = best_upper(sample, std::min(kLikely * rows, sample.rows));
    Hit hits[kChunkRows];
    std::uint32_t chosen[kChunkRows];
    TopK best(rows);
    for (std::size_t i = 0; i < sample.chunks.size(); ++i) {
      const std::size_t c = sample.chunks[i];
      const std::size_t found = select(c, &sample.sums[i * kChunkRows], likely, hits);
      for (std::size_t h = 0; h < found; ++h) chosen[h] = row_of(c, hits[h]);
      score_rows(chosen, found, best);
    }
    return best.sorted();
  }

  // Lets so many rows of the sample pass.
  Cutoff best_upper(const Sample& sample, std::size_t rows) const {
    Cutoff passing;
    TopK highest(rows);
    Hit hits[kChunkRows];
    for (std::size_t i = 0; i < sample.chunks.size(); ++i) {
      const std::size_t c = sample.chunks[i];
      const std::size_t passed = select(c, &sample.sums[i * kChunkRows], passing, hits);
      bool moved = false;
      for (std::size_t h = 0; h < passed; ++h) {
        moved = highest.offer(upper_key(row_of(c, hits[h]), hits[h].dot)) || moved;
      }
      if (moved) passing = cutoff(highest.limit());
    }
    return cutoff(highest.sorted().back());
  }

  // Scores the rows that likely_ lets pass, and keeps those that only loose_ does. False when
  // either are too many, whichever threads found them.
  bool first_pass(std::vector<TopK>& best, std::size_t* n_scored) {
    const std::size_t parts = best.size();
    std::atomic<std::size_t> scored{0};
    std::atomic<std::size_t> n_kept{0};
    const auto misled = [&] { return scored > most_likely_ || n_kept > most_kept_; };
    kept_.assign(parts, {});
    run_parts(parts, [&](std::size_t p) {
      std::int32_t sums[kChunkRows];
      Hit hits[kChunkRows];
      std::uint32_t waiting[2 * kChunkRows];
      std::size_t n = 0;
      std::vector<Hit> kept;
      const std::size_t last = chunks_ * (p + 1) / parts;
      for (std::size_t c = chunks_ * p / parts; c < last && !misled(); ++c) {
        const std::size_t kept_before = kept.size();
        add_signs(c, sums);
        const std::size_t found = select(c, sums, loose_, hits);
        for (std::size_t h = 0; h < found; ++h) {
          const std::uint32_t row = row_of(c, hits[h]);
          if (passes(row, hits[h].dot, likely_)) {
            waiting[n++] = row;
          } else {
            kept.push_back({row, 0, hits[h].dot});
          }
        }
        if (kept.size() != kept_before) n_kept += kept.size() - kept_before;
        if (n < kChunkRows && c + 1 < last) continue;
        score_rows(waiting, n, best[p]);
        scored += n;
        n = 0;
      }
      kept_[p] = std::move(kept);
    });
    *n_scored = scored;
    return !misled();
  }

  // Scores what is still in question of the kept rows. False when that is too much.
  bool second_pass(const Cutoff& possible, std::vector<TopK>& best) {
    std::size_t left = 0;
    for (std::vector<Hit>& kept : kept_) {
      kept.erase(std::remove_if(kept.begin(), kept.end(),
                                [&](const Hit& h) { return !passes(h.row, h.dot, possible); }),
                 kept.end());
      left += kept.size();
    }
    if (left > most_left_) return false;
    run_parts(best.size(), [&](std::size_t p) {
      std::vector<std::uint32_t> rows;
      for (const Hit& hit : kept_[p]) rows.push_back(hit.row);
      score_rows(rows.data(), rows.size(), best[p]);
    });
    return true;
  }

  std::size_t chunk_rows(std::size_t c) const {
    return std::min(kChunkRows, rows_.n - c * kChunkRows);
  }

  static std::uint32_t row_of(std::size_t c, const Hit& hit) {
    return static_cast<std::uint32_t>(c * kChunkRows + hit.row);
  }

  void add_signs(std::size_t c, std::int32_t* sums) const {
    const std::size_t row_bytes = prefix_->row_bytes;
    const std::size_t used = kBlock * row_bytes;
    const std::size_t ahead = (kAhead + used - 1) / used * plane_.block_bytes();
    const std::size_t first = c * kChunk;
    const std::size_t blocks = std::min(plane_.blocks() - first, kChunk);
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::int32_t start = query_.start(row_bytes, prefix_->spreads[first + b]);
      impl_.kernels.sign_sums(plane_.block(first + b), row_bytes, query_.tables.data(), start,
                              ahead, sums + b * kBlock);
    }
  }

  // On more than one thread only when that pays.
  void add_signs_of(Sample& sample, std::size_t parts) const {
    const std::size_t n = sample.chunks.size();
    parts = std::min(parts, n / 16 + 1);
    run_parts(parts, [&](std::size_t p) {
      for (std::size_t i = n * p / parts; i < n * (p + 1) / parts; ++i) {
        add_signs(sample.chunks[i], &sample.sums[i * kChunkRows]);
      }
    });
  }

  std::size_t select(std::size_t c, const std::int32_t* sums, const Cutoff& cutoff,
                     Hit* hits) const {
    const std::size_t row = c * kChunkRows;
    const float* terms = plane_.terms() != nullptr ? plane_.terms() + row : nullptr;
    return impl_.kernels.select_rows(sums, chunk_rows(c), prefix_->scales.data() + row, terms,
                                     cutoff.term, cutoff.value, hits);
  }

  // What select does for one row.
  bool passes(std::uint32_t row, std::int32_t sum, const Cutoff& cutoff) const {
    const float term = plane_.terms() != nullptr ? plane_.terms()[row] * cutoff.term : 0;
    return !(static_cast<float>(sum) * prefix_->scales[row] - term <= cutoff.value);
  }

  // The best score that the bound allows.
  std::uint64_t upper_key(std::uint32_t row, std::int32_t sum) const {
    const float product = scaled_product(sum, prefix_->scales[row], unit_) + prepared_.offset(q_);
    const float term = plane_.terms() != nullptr ? plane_.terms()[row] : 0;
    const float score = l2_ ? queries_.score(q_, product, term) : product - term;
    return candidate_key(queries_.metric(), score, row);
  }

  void score_rows(const std::uint32_t* rows, std::size_t n, TopK& best) const {
    offer_rows(queries_, q_, rows_, rows, n, best);
  }

  const ScanQueries& queries_;
  const PreparedQueries& prepared_;
  const Quantizer::Impl& impl_;
  const std::size_t q_;
  const CodeRows& rows_;
  const SignPlane& plane_;
  const SignQuery query_;
  const bool l2_;
  const float unit_;  // a sum times this and a row's scale bounds its product
  const std::size_t chunks_;
  const SignPlane::Prefix* prefix_;
  Cutoff likely_, loose_;
  std::size_t most_likely_ = 0, most_kept_ = 0, most_left_ = 0;  // rows for which that holds
  std::vector<std::vector<Hit>> kept_;  // by part: what loose_ lets pass and likely_ does not
};

}  // namespace

bool pruned_search(const ScanQueries& queries, std::size_t q, const CodeRows& rows,
                   const SignPlane& plane, float confidence, std::size_t k,
                   std::vector<TopK>& best) {
  const float scale = queries.prepared().levels.scales[q];
  if (!(scale > 0)) return false;  // a zero query
  return PrunedSearch(queries, q, rows, plane, confidence).run(k, best);
}

}  // namespace turboquant
