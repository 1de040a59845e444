#include "turboquant/index_two_level.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "index/checks.h"
#include "index/code_search.h"
#include "index/index_tree.h"
#include "index/selector_mask.h"
#include "quantizer/parallel.h"
#include "quantizer/scanner.h"
#include "quantizer/two_level.h"

namespace turboquant {
namespace {

constexpr std::int64_t kBlockRows = 8192;  // joined at a time; a multiple of 64

// work(begin, end) for parts of 0 to n, one for each thread.
template <class Work>
void in_parts(std::int64_t n, const Work& work) {
  const std::int64_t parts = std::min<std::int64_t>(n, std::max(1, omp_get_max_threads()));
  run_parts(static_cast<std::size_t>(parts), [&](std::size_t part) {
    const auto p = static_cast<std::int64_t>(part);
    work(n * p / parts, n * (p + 1) / parts);
  });
}

// Rows that the first level found for one query, by the whole code.
void rescore(const TwoLevel& levels, const std::uint8_t* first, const std::uint8_t* rest,
             const QueryScorer& scorer, bool largest_first, const std::int64_t* found,
             std::size_t n, std::size_t k, float* distances, std::int64_t* labels) {
  std::vector<std::uint8_t> rows(n * levels.whole().code_size());
  std::vector<float> scores(n);
  levels.join(first, rest, found, n, rows.data());
  scorer.score_rows(rows.data(), nullptr, n, scores.data());
  std::vector<std::size_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = i;
  const auto better = [&](std::size_t a, std::size_t b) {
    if (scores[a] != scores[b])
      return largest_first ? scores[a] > scores[b] : scores[a] < scores[b];
    return found[a] < found[b];
  };
  const std::size_t kept = std::min(k, n);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
                    better);
  for (std::size_t i = 0; i < kept; ++i) {
    distances[i] = scores[order[i]];
    labels[i] = found[order[i]];
  }
  const float worst =
      largest_first ? std::numeric_limits<float>::lowest() : std::numeric_limits<float>::max();
  std::fill(distances + kept, distances + k, worst);
  std::fill(labels + kept, labels + k, std::int64_t{-1});
}

}  // namespace

IndexTwoLevel::IndexTwoLevel(int dimension, const IndexOptions& options, int first_bits,
                             faiss::MetricType metric)
    : faiss::Index(dimension, metric), coder_(dimension, options, metric), first_bits_(first_bits) {
  if (options.residual) fail("what another index left over cannot be in two levels");
  make_levels();
  is_trained = true;
}

IndexTwoLevel::IndexTwoLevel(const IndexTurboQuant& flat, int first_bits)
    : IndexTwoLevel(flat.d, flat.options(), first_bits, flat.metric_type) {
  const std::vector<float> centre = flat.centre();
  if (!centre.empty()) {
    coder_.set_centre(centre.data());
    make_levels();
  }
  append(flat.codes.data(), static_cast<std::size_t>(flat.ntotal));
}

void IndexTwoLevel::make_levels() {
  translate_errors([&] { levels_ = std::make_shared<TwoLevel>(coder_.codec(), first_bits_); });
}

std::size_t IndexTwoLevel::row_bytes() const {
  return levels_->first_size() + levels_->rest_size();
}

IndexTurboQuant IndexTwoLevel::flat() const {
  IndexTurboQuant flat(coder_);
  flat.codes.resize(static_cast<std::size_t>(ntotal) * flat.code_size);
  levels_->join(first_.data(), rest_.data(), nullptr, static_cast<std::size_t>(ntotal),
                flat.codes.data());
  flat.ntotal = ntotal;
  return flat;
}

void IndexTwoLevel::train(std::int64_t n, const float* x) {
  if (!options().centre || ntotal > 0 || n <= 0) return;
  coder_.train(n, x);
  make_levels();
}

void IndexTwoLevel::append(const std::uint8_t* rows, std::size_t n) {
  const auto used = static_cast<std::size_t>(ntotal);
  first_.resize((used + n) * levels_->first_size());
  rest_.resize((used + n) * levels_->rest_size());
  in_parts(static_cast<std::int64_t>(n), [&](std::int64_t begin, std::int64_t end) {
    const auto at = static_cast<std::size_t>(begin);
    levels_->split(rows + at * coder_.code_size, static_cast<std::size_t>(end - begin),
                   first_.data() + (used + at) * levels_->first_size(),
                   rest_.data() + (used + at) * levels_->rest_size());
  });
  ntotal += static_cast<std::int64_t>(n);
}

void IndexTwoLevel::add(std::int64_t n, const float* x) {
  if (n < 0) fail("cannot add " + std::to_string(n) + " vectors");
  if (n == 0) return;
  if (options().centre && coder_.centre().empty()) train(n, x);
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(n) * coder_.code_size);
  coder_.sa_encode(n, x, rows.data());
  append(rows.data(), static_cast<std::size_t>(n));
}

void IndexTwoLevel::reset() {
  first_.clear();
  rest_.clear();
  ntotal = 0;
}

void IndexTwoLevel::search(std::int64_t n, const float* x, std::int64_t k, float* distances,
                           std::int64_t* labels, const faiss::SearchParameters* params) const {
  if (k < 1) fail("k must be 1 or more, not " + std::to_string(k));
  const auto* ours = dynamic_cast<const SearchParametersTwoLevel*>(params);
  const float factor = ours != nullptr ? ours->k_factor : k_factor;
  if (!(factor >= 1)) fail("k_factor must be 1 or more, not " + std::to_string(factor));
  const double wanted = std::ceil(static_cast<double>(k) * factor);
  const auto all = static_cast<double>(std::max<std::int64_t>(ntotal, 1));
  const auto candidates = static_cast<std::int64_t>(std::min(wanted, all));

  std::vector<float> unit;
  if (options().normalize && n > 0) {
    unit.resize(static_cast<std::size_t>(n) * static_cast<std::size_t>(d));
    normalize_rows(x, n, static_cast<std::size_t>(d), "query", unit.data());
    x = unit.data();
  }
  const std::size_t found =
      static_cast<std::size_t>(std::max<std::int64_t>(n, 0)) * static_cast<std::size_t>(candidates);
  std::vector<float> first_scores(found);
  std::vector<std::int64_t> rows(found);
  const CodeView view{levels_->first(), false, metric_type, first_.data(), ntotal};
  search_codes(view, n, x, candidates, first_scores.data(), rows.data(), params);

  const bool largest_first = metric_type == faiss::METRIC_INNER_PRODUCT;
  in_parts(n, [&](std::int64_t begin, std::int64_t end) {
    QueryScorer scorer(levels_->whole(), to_metric(metric_type));
    for (std::int64_t q = begin; q < end; ++q) {
      scorer.set_query(x + q * d);
      const std::int64_t* of_query = rows.data() + q * candidates;
      const auto* last = std::find(of_query, of_query + candidates, -1);
      rescore(*levels_, first_.data(), rest_.data(), scorer, largest_first, of_query,
              static_cast<std::size_t>(last - of_query), static_cast<std::size_t>(k),
              distances + q * k, labels + q * k);
    }
  });
}

void IndexTwoLevel::range_search(std::int64_t n, const float* x, float radius,
                                 faiss::RangeSearchResult* result,
                                 const faiss::SearchParameters* params) const {
  if (n < 0) fail("cannot search " + std::to_string(n) + " queries");
  if (result == nullptr || static_cast<std::int64_t>(result->nq) != n) {
    fail("the range search result must be made for " + std::to_string(n) + " queries");
  }
  std::vector<float> unit;
  if (options().normalize && n > 0) {
    unit.resize(static_cast<std::size_t>(n) * static_cast<std::size_t>(d));
    normalize_rows(x, n, static_cast<std::size_t>(d), "query", unit.data());
    x = unit.data();
  }
  std::vector<std::uint64_t> mask;
  if (params != nullptr && params->sel != nullptr) {
    mask = selector_mask(*params->sel, static_cast<std::size_t>(ntotal));
  }
  std::vector<std::vector<RangeHit>> hits(static_cast<std::size_t>(n));
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(std::min(ntotal, kBlockRows)) *
                                 coder_.code_size);
  for (std::int64_t begin = 0; begin < ntotal || begin == 0; begin += kBlockRows) {
    const auto count = static_cast<std::size_t>(std::min(kBlockRows, ntotal - begin));
    const auto at = static_cast<std::size_t>(begin);
    levels_->join(first_.data() + at * levels_->first_size(),
                  rest_.data() + at * levels_->rest_size(), nullptr, count, rows.data());
    const CodeRows block{rows.data(), count, mask.empty() ? nullptr : mask.data() + at / 64};
    const auto some = translate_errors([&] {
      return search_range(levels_->whole(), to_metric(metric_type), x, static_cast<std::size_t>(n),
                          block, radius);
    });
    for (std::size_t q = 0; q < hits.size(); ++q) {
      for (const RangeHit& hit : some[q]) hits[q].push_back({hit.id + begin, hit.score});
    }
  }
  for (std::size_t q = 0; q < hits.size(); ++q) result->lims[q] = hits[q].size();
  result->do_allocation();  // turns counts into offsets
  for (std::size_t q = 0; q < hits.size(); ++q) {
    std::size_t at = result->lims[q];
    for (const RangeHit& hit : hits[q]) {
      result->labels[at] = hit.id;
      result->distances[at++] = hit.score;
    }
  }
}

void IndexTwoLevel::reconstruct(std::int64_t key, float* x) const {
  if (key < 0 || key >= ntotal) fail("id " + std::to_string(key) + " is not in the index");
  std::vector<std::uint8_t> row(coder_.code_size);
  levels_->join(first_.data(), rest_.data(), &key, 1, row.data());
  coder_.sa_decode(1, row.data(), x);
}

std::size_t IndexTwoLevel::remove_ids(const faiss::IDSelector& selector) {
  std::int64_t kept = 0;
  const auto move_row = [&](std::vector<std::uint8_t>& rows, std::size_t size, std::int64_t from) {
    const auto begin = rows.begin() + from * static_cast<std::ptrdiff_t>(size);
    std::copy(begin, begin + static_cast<std::ptrdiff_t>(size),
              rows.begin() + kept * static_cast<std::ptrdiff_t>(size));
  };
  for (std::int64_t i = 0; i < ntotal; ++i) {
    if (selector.is_member(i)) continue;
    if (i != kept) {
      move_row(first_, levels_->first_size(), i);
      move_row(rest_, levels_->rest_size(), i);
    }
    ++kept;
  }
  const auto removed = static_cast<std::size_t>(ntotal - kept);
  ntotal = kept;
  first_.resize(static_cast<std::size_t>(kept) * levels_->first_size());
  rest_.resize(static_cast<std::size_t>(kept) * levels_->rest_size());
  return removed;
}

void IndexTwoLevel::check_compatible_for_merge(const faiss::Index& other) const {
  const auto* same = dynamic_cast<const IndexTwoLevel*>(&other);
  if (same == nullptr) fail("a two-level index can only take over another one");
  if (same == this) fail("cannot merge an index with itself");
  if (same->first_bits_ != first_bits_) fail("cannot merge indexes with different first levels");
  coder_.check_compatible_for_merge(same->coder_);
}

void IndexTwoLevel::merge_from(faiss::Index& other, std::int64_t add_id) {
  if (add_id != 0) fail("a flat index cannot add to the ids of another");
  check_compatible_for_merge(other);
  auto& from = static_cast<IndexTwoLevel&>(other);
  first_.insert(first_.end(), from.first_.begin(), from.first_.end());
  rest_.insert(rest_.end(), from.rest_.begin(), from.rest_.end());
  ntotal += from.ntotal;
  from.reset();
}

void IndexTwoLevel::sa_encode(std::int64_t n, const float* x, std::uint8_t* bytes) const {
  coder_.sa_encode(n, x, bytes);
}

void IndexTwoLevel::sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const {
  coder_.sa_decode(n, bytes, x);
}

IndexOptions parse_two_level_name(const std::string& name, int* first_bits) {
  *first_bits = 0;
  std::string plain = name;
  if (plain.size() >= 5 && plain[3] == 'r' && plain[4] >= '1' && plain[4] <= '9') {
    *first_bits = plain[4] - '0';
    plain.erase(3, 2);
  }
  const IndexOptions options = parse_index_name(plain);
  if (*first_bits == 0) return options;
  const bool scalar =
      options.estimator == Estimator::kTurboQuant || options.estimator == Estimator::kMse;
  if (*first_bits >= options.bits || !scalar) {
    fail("\"" + name + "\" is no two-level index: its first level must have fewer bits than the " +
         std::to_string(options.bits) + " of the whole, which cannot be qjl or t");
  }
  return options;
}

std::string two_level_name(const IndexOptions& options, int first_bits) {
  return index_name(options).insert(3, "r" + std::to_string(first_bits));
}

bool set_k_factor(faiss::Index& tree, float k_factor) {
  if (auto* two_level = dynamic_cast<IndexTwoLevel*>(&tree)) {
    if (!(k_factor >= 1)) fail("k_factor must be 1 or more, not " + std::to_string(k_factor));
    two_level->k_factor = k_factor;
    return true;
  }
  bool found = false;
  for (faiss::Index** child : children(&tree)) {
    if (*child != nullptr) found = set_k_factor(**child, k_factor) || found;
  }
  return found;
}

}  // namespace turboquant
