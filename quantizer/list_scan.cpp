#include "quantizer/list_scan.h"

#include <algorithm>
#include <cmath>

#include "quantizer/tile_operands.h"

namespace turboquant {
namespace {

using kernels::Hit;
using kernels::kLane;

constexpr std::size_t kRowBytes = 32768;  // decoded rows that stay in the first-level cache
constexpr std::size_t kMostRows = 256;    // rows of a block
constexpr std::size_t kMostVisits = 256;  // queries packed at once
constexpr std::size_t kGroups = 4;        // query groups of a tile

// How many of n visits to serve by tiles: those that fill them, and the rest where a tile with
// unused queries still takes less time than single rows and the decoding that tiles need.
std::size_t visits_by_tile(float row_cost, std::size_t n, std::size_t rows) {
  const std::size_t full = n / kLane * kLane;
  const auto rest = static_cast<float>(n - full);
  const auto unused_rows = static_cast<float>(kernels::round_up(rows, kLane)) /
                           static_cast<float>(std::max<std::size_t>(rows, 1));
  const float tile = static_cast<float>(kLane) * unused_rows;
  if (full > 0) return rest * row_cost > tile ? n : full;
  return (rest - 1) * row_cost > tile ? n : 0;
}

}  // namespace

// One call's arguments, with the visits of one slab.
struct ListScan::Pass {
  const PreparedQueries& prepared;
  const ListVisit* visits;
  std::size_t n;      // visits
  std::size_t tiled;  // of these, the first so many go by tiles
  std::size_t rows_end;
  const CodeRows& rows;
  ScanSink& sink;
  std::size_t first_visit;  // the sink's number of visits[0]
};

ListScan::ListScan(const Quantizer::Impl& impl, Metric metric)
    : impl_(impl),
      metric_(metric),
      size_(impl.code_size()),
      ids_(kMostRows),
      scale_(kMostRows),
      norm_(kMostRows),
      term_(kMostRows) {}

void ListScan::run(const PreparedQueries& prepared, const ListVisit* visits, std::size_t n,
                   const CodeRows& rows, ScanSink& sink) {
  for (std::size_t from = 0; from < n; from += kMostVisits) {
    const std::size_t count = std::min(kMostVisits, n - from);
    std::size_t end = 0;
    for (std::size_t v = 0; v < count; ++v) end = std::max(end, visits[from + v].rows);
    end = std::min(end, rows.n);
    const std::size_t tiled =
        impl_.two_parts() ? 0 : visits_by_tile(impl_.kernels.row_cost, count, end);
    const Pass pass{prepared, visits + from, count, tiled, end, rows, sink, from};
    fetch(pass, 0, kMostRows / 2);

    const std::size_t slots = kernels::round_up(count, kLane);
    cutoff_.assign(slots, HUGE_VALF);  // lanes without a query let nothing pass
    query_term_.assign(slots, 0);
    for (std::size_t v = 0; v < count; ++v) update_cutoff(pass, v);
    std::size_t most = kMostRows;
    if (tiled > 0) {
      most = std::clamp(kRowBytes / impl_.padded / kLane * kLane, 4 * kLane, kMostRows);
      decoded_.resize(most * impl_.padded);
      pack(pass);
    }
    dots_.resize(most * (tiled > 0 ? kGroups * kLane : 1));
    hits_.resize(most * (tiled > 0 ? kLane : 1));
    for (std::size_t row = 0; row < end;) {
      row = next_block(pass, row, most);
      if (count_ == 0) continue;
      if (tiled > 0) scan_tiles(pass);
      for (std::size_t v = tiled; v < count; ++v) {
        impl_.two_parts() ? scan_both_parts(pass, v) : scan_rows(pass, v);
      }
    }
  }
}

void ListScan::pack(const Pass& pass) {
  const std::size_t slots = kernels::round_up(pass.tiled, kLane);
  packed_.resize(slots * impl_.padded);
  bias_.assign(slots, 0);
  const QueryPart& part = pass.prepared.levels;
  for (std::size_t v = 0; v < pass.tiled; ++v) {
    const kernels::QueryView query = part.view(pass.visits[v].prepared, impl_.padded);
    pack_tile_query(query.values, v, impl_.padded, packed_.data());
    bias_[v] = tile_bias(impl_.kernels, impl_.levels, query.sum);
  }
}

void ListScan::update_cutoff(const Pass& pass, std::size_t v) {
  const ListVisit& visit = pass.visits[v];
  const bool l2 = metric_ == Metric::kL2;
  lower_bound_to_dots(metric_, pass.prepared.levels.scales[visit.prepared],
                      pass.sink.bound(pass.first_visit + v), l2 ? 0 : visit.offset,
                      l2 ? pass.prepared.norms_squared[visit.prepared] : 0, false, &cutoff_[v],
                      &query_term_[v]);
}

// Collects up to `most` rows from `row` on; returns where to go on.
std::size_t ListScan::next_block(const Pass& pass, std::size_t row, std::size_t most) {
  first_ = row;
  if (pass.rows.mask == nullptr) {
    count_ = std::min(most, pass.rows_end - row);
    return row + count_;
  }
  return take_rows(pass.rows.mask, row, pass.rows_end, most, ids_.data(), &count_);
}

BlockRows ListScan::block_rows(const Pass& pass) const {
  const bool all = pass.rows.mask == nullptr;
  return {pass.rows.codes + (all ? first_ * size_ : 0), size_, all ? nullptr : ids_.data(), count_};
}

// Called once the codes have brought the rows into the cache.
void ListScan::load_factors(const BlockRows& rows) {
  if (metric_ != Metric::kL2) {
    load_factor(rows, impl_.scale_at(), scale_.data());
    return;
  }
  if (impl_.two_parts()) {
    load_factor(rows, impl_.scale_at(), scale_.data());
    load_factor(rows, impl_.norm_at(), norm_.data());
  } else {
    turboquant::load_factors(rows, impl_.scale_at(), scale_.data(), norm_.data());
  }
  std::fill_n(term_.data(), rows.n, 0.0f);
  lower_terms(metric_, norm_.data(), rows.n, term_.data());
}

void ListScan::offer(const Pass& pass, std::size_t v, std::size_t j, float product) {
  const ListVisit& visit = pass.visits[v];
  const std::size_t row = pass.rows.mask == nullptr ? first_ + j : ids_[j];
  if (row >= visit.rows) return;
  const float score =
      metric_ == Metric::kL2
          ? squared_distance(pass.prepared.norms_squared[visit.prepared], norm_[j], product)
          : visit.offset + product;
  if (pass.sink.offer(pass.first_visit + v, score, static_cast<std::uint32_t>(row))) {
    update_cutoff(pass, v);
  }
}

void ListScan::scan_rows(const Pass& pass, std::size_t v) {
  const std::size_t q = pass.visits[v].prepared;
  const BlockRows rows = block_rows(pass);
  impl_.dot_rows(rows.codes, rows.chosen, rows.n, impl_.levels,
                 pass.prepared.levels.view(q, impl_.padded), dots_.data());
  if (v == 0) load_factors(rows);
  const std::size_t n = impl_.kernels.select_rows(dots_.data(), count_, scale_.data(),
                                                  metric_ == Metric::kL2 ? term_.data() : nullptr,
                                                  query_term_[v], cutoff_[v], hits_.data());
  const float scale = pass.prepared.levels.scales[q];
  for (std::size_t h = 0; h < n; ++h) {
    const Hit& hit = hits_[h];
    offer(pass, v, hit.row, scaled_product(hit.dot, scale_[hit.row], scale));
  }
}

// Asks for codes of rows that will be decoded soon.
void ListScan::fetch(const Pass& pass, std::size_t row, std::size_t n) const {
  if (pass.rows.mask != nullptr) return;
  const std::size_t end = std::min(row + n, pass.rows_end) * size_;
  for (std::size_t at = row * size_; at < end; at += 64) {
    __builtin_prefetch(pass.rows.codes + at, 0, 2);
  }
}

void ListScan::scan_tiles(const Pass& pass) {
  const TileDecoder decoder(impl_, impl_.levels);
  const BlockRows rows = block_rows(pass);
  for (std::size_t j = 0; j < rows.n; ++j) {
    decoder.decode(rows[j], decoded_.data() + j * impl_.padded);
  }
  load_factors(rows);
  fetch(pass, first_ + count_, count_);  // comes while this block is multiplied
  const std::size_t n_rows = kernels::round_up(count_, kLane);
  const std::size_t all = kernels::round_up(pass.tiled, kLane) / kLane;
  for (std::size_t g = 0; g < all; g += kGroups) {
    const std::size_t groups = std::min(kGroups, all - g);
    impl_.kernels.dot_tile(decoded_.data(), n_rows, impl_.padded, impl_.levels,
                           packed_.data() + g * kLane * impl_.padded, groups,
                           bias_.data() + g * kLane, dots_.data());
    for (std::size_t i = 0; i < groups; ++i) {
      const std::size_t first = (g + i) * kLane;
      const std::size_t n =
          impl_.kernels.select_tile(dots_.data() + i * n_rows * kLane, count_, scale_.data(),
                                    metric_ == Metric::kL2 ? term_.data() : nullptr,
                                    &query_term_[first], &cutoff_[first], hits_.data());
      for (std::size_t h = 0; h < n; ++h) {
        const Hit& hit = hits_[h];
        const std::size_t v = first + hit.query;
        if (v >= pass.tiled) continue;
        const float scale = pass.prepared.levels.scales[pass.visits[v].prepared];
        offer(pass, v, hit.row, scaled_product(hit.dot, scale_[hit.row], scale));
      }
    }
  }
}

// kQjl: two products a row, which no cut-off on one of them can judge.
void ListScan::scan_both_parts(const Pass& pass, std::size_t v) {
  const BlockRows rows = block_rows(pass);
  float products[kMostRows];
  pass.prepared.products(pass.visits[v].prepared, rows.codes, rows.chosen, rows.n, products);
  if (v == 0) load_factors(rows);
  for (std::size_t j = 0; j < rows.n; ++j) offer(pass, v, j, products[j]);
}

}  // namespace turboquant
