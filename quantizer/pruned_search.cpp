#include "quantizer/pruned_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "quantizer/parallel.h"

namespace turboquant {
namespace {

using kernels::Hit;
using kernels::kBlock;

constexpr std::size_t kChunk = 8;         // blocks whose sums are judged together
constexpr std::size_t kSample = 32;       // one chunk in so many is looked at first
constexpr std::size_t kLikely = 4;        // so many times k rows are scored to find a bound
constexpr std::size_t kFewSurvivors = 6;  // with more than one row in six, codes are read in order

// x with P(N(0, 1) < x) = confidence, for confidence above 1/2.
double normal_quantile(double confidence) {
  double low = 0;
  double high = 40;
  while (high - low > 1e-6) {
    const double middle = (low + high) / 2;
    (std::erfc(-middle / std::sqrt(2.0)) / 2 < confidence ? low : high) = middle;
  }
  return low;
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
    const auto multiplier = static_cast<std::int32_t>(factor * 65536);
    for (std::size_t f = 0; f < fours; ++f) {
      std::int32_t sums[16] = {most};
      for (std::size_t i = 0; i < 4; ++i) sums[0] -= values[4 * f + i];
      for (std::size_t i = 0; i < 4; ++i) {
        const std::size_t bit = std::size_t{1} << i;
        for (std::size_t below = 0; below < bit; ++below) {
          sums[bit + below] = sums[below] + 2 * values[4 * f + i];
        }
      }
      for (std::size_t bits = 0; bits < 16; ++bits) {
        tables[f * 16 + bits] = static_cast<std::uint8_t>((sums[bits] * multiplier + 32768) >> 16);
      }
    }
    offset = static_cast<float>(static_cast<double>(fours) * most * factor);
    const double deviations = normal_quantile(confidence);
    variance = static_cast<float>(deviations * deviations * squares * factor * factor);
    rounding = static_cast<float>(deviations * deviations * static_cast<double>(fours) / 12);
  }

  /// What sums start from so that they bound the product from above. spread: SignPlane::spread.
  std::int32_t start(float spread) const {
    return static_cast<std::int32_t>(std::sqrt(spread * spread * variance + rounding) - offset);
  }

  AlignedVector<std::uint8_t> tables;
  double factor = 0;   // a sum is a product of signs and values times this
  float offset = 0;    // sum of what the entries were raised by
  float variance = 0;  // of a sum whose row has spread 1, times the squared number of deviations
  float rounding = 0;  // likewise of the rounding of entries
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
        sums_(new std::int32_t[plane.blocks() * kBlock]) {}

  bool run(std::size_t k, std::vector<TopK>& best) {
    const std::size_t chunks = (plane_.blocks() + kChunk - 1) / kChunk;
    Cutoff likely;
    if (!try_sample(k, chunks, likely)) return false;
    const std::size_t parts = best.size();
    std::vector<std::size_t> found(parts);
    run_parts(parts, [&](std::size_t p) {
      const std::size_t first = chunks * p / parts;
      const std::size_t last = chunks * (p + 1) / parts;
      for (std::size_t c = first; c < last; ++c) add_signs(c);
      found[p] = score_passing(first, last, likely, nullptr, best[p]);
    });
    const std::size_t all = std::accumulate(found.begin(), found.end(), std::size_t{0});
    if (all < k || all > rows_.n / 8) return false;  // the sample misled
    TopK exact(k);
    for (TopK& part : best) {
      for (const std::uint64_t key : part.sorted()) exact.offer(key);
    }
    const Cutoff possible = cutoff(exact.sorted().back());
    run_parts(parts, [&](std::size_t p) {
      score_passing(chunks * p / parts, chunks * (p + 1) / parts, possible, &likely, best[p]);
    });
    return true;
  }

 private:
  struct Cutoff {
    float value = std::numeric_limits<float>::quiet_NaN();  // passes everything
    float term = 0;
  };

  // Lets those upper bounds pass that reach the score of the key.
  Cutoff cutoff(std::uint64_t key) const {
    Cutoff c;
    queries_.cutoff(q_, unit_, key_score(queries_.metric(), key), &c.value, &c.term);
    return c;
  }

  // Sees how many rows of a sample of chunks stay in question; likely lets a small multiple of k
  // pass among all rows.
  bool try_sample(std::size_t k, std::size_t chunks, Cutoff& likely) {
    const std::size_t step = std::min(kSample, chunks);
    std::size_t n = 0;
    for (std::size_t c = step / 2; c < chunks; c += step) {
      add_signs(c);
      n += chunk_rows(c);
    }
    const std::size_t rank = std::max<std::size_t>(1, k * n / rows_.n);
    TopK highest(std::min(kLikely * rank, n));
    Hit hits[kChunk * kBlock];
    for (std::size_t c = step / 2; c < chunks; c += step) {
      const std::size_t passed = select(c, likely, hits);
      for (std::size_t h = 0; h < passed; ++h) {
        if (highest.offer(upper_key(c, hits[h]))) likely = cutoff(highest.limit());
      }
    }
    likely = cutoff(highest.sorted().back());
    TopK exact(rank);
    for (std::size_t c = step / 2; c < chunks; c += step) {
      score_passing(c, c + 1, likely, nullptr, exact);
    }
    const Cutoff possible = cutoff(exact.sorted().back());
    std::size_t survivors = 0;
    for (std::size_t c = step / 2; c < chunks; c += step) survivors += select(c, possible, hits);
    return survivors * kFewSurvivors <= n;
  }

  std::size_t chunk_rows(std::size_t c) const {
    return std::min(kChunk * kBlock, rows_.n - c * kChunk * kBlock);
  }

  void add_signs(std::size_t c) {
    const std::size_t blocks = std::min(plane_.blocks(), (c + 1) * kChunk);
    for (std::size_t b = c * kChunk; b < blocks; ++b) {
      impl_.kernels.sign_sums(plane_.block(b), plane_.row_bytes(), query_.tables.data(),
                              query_.start(plane_.spread(b)), sums_.get() + b * kBlock);
    }
  }

  std::size_t select(std::size_t c, const Cutoff& cutoff, Hit* hits) const {
    const std::size_t row = c * kChunk * kBlock;
    const float* terms = plane_.terms() != nullptr ? plane_.terms() + row : nullptr;
    return impl_.kernels.select_rows(sums_.get() + row, chunk_rows(c), plane_.scales() + row, terms,
                                     cutoff.term, cutoff.value, hits);
  }

  // The best score that the bound allows.
  std::uint64_t upper_key(std::size_t c, const Hit& hit) const {
    const std::size_t row = c * kChunk * kBlock + hit.row;
    const float product =
        scaled_product(hit.dot, plane_.scales()[row], unit_) + prepared_.offset(q_);
    const float term = plane_.terms() != nullptr ? plane_.terms()[row] : 0;
    const float score = l2_ ? queries_.score(q_, product, term) : product - term;
    return candidate_key(queries_.metric(), score, static_cast<std::uint32_t>(row));
  }

  // Exact scores of the rows whose upper bound passes, but not `done`. Returns their number.
  std::size_t score_passing(std::size_t first, std::size_t last, const Cutoff& cutoff,
                            const Cutoff* done, TopK& best) const {
    Hit hits[kChunk * kBlock];
    std::uint32_t rows[2 * kChunk * kBlock];
    std::size_t waiting = 0;
    std::size_t total = 0;
    for (std::size_t c = first; c < last; ++c) {
      const std::size_t found = select(c, cutoff, hits);
      for (std::size_t h = 0; h < found; ++h) {
        const auto row = static_cast<std::uint32_t>(c * kChunk * kBlock + hits[h].row);
        rows[waiting] = row;
        waiting += done != nullptr && passes(row, hits[h].dot, *done) ? 0 : 1;
      }
      if (waiting < kChunk * kBlock && c + 1 < last) continue;
      score_rows(rows, waiting, best);
      total += waiting;
      waiting = 0;
    }
    return total;
  }

  // What select does for one row.
  bool passes(std::uint32_t row, std::int32_t sum, const Cutoff& cutoff) const {
    const float term = plane_.terms() != nullptr ? plane_.terms()[row] * cutoff.term : 0;
    return !(static_cast<float>(sum) * plane_.scales()[row] - term <= cutoff.value);
  }

  void score_rows(const std::uint32_t* rows, std::size_t n, TopK& best) const {
    constexpr std::size_t kMost = 64;
    float products[kMost];
    for (std::size_t i = 0; i < n; i += kMost) {
      const std::size_t count = std::min(kMost, n - i);
      for (std::size_t j = 0; j < count; ++j) {
        const std::uint8_t* row = rows_.codes + std::size_t{rows[i + j]} * impl_.code_size();
        for (std::size_t at = 0; at < impl_.code_size(); at += 64) __builtin_prefetch(row + at);
      }
      prepared_.products(q_, rows_.codes, rows + i, count, products);
      for (std::size_t j = 0; j < count; ++j) {
        const std::uint8_t* row = rows_.codes + std::size_t{rows[i + j]} * impl_.code_size();
        const float score = queries_.score(q_, products[j], l2_ ? impl_.norm_squared(row) : 0);
        best.offer(candidate_key(queries_.metric(), score, rows[i + j]));
      }
    }
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
  std::unique_ptr<std::int32_t[]> sums_;
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
