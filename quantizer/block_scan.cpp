#include "quantizer/block_scan.h"

#include <algorithm>
#include <cmath>

#include "quantizer/block_rows.h"
#include "quantizer/parallel.h"
#include "quantizer/tile_operands.h"

namespace turboquant {
namespace {

using kernels::Hit;
using kernels::kLane;

constexpr std::size_t kRowBytes = 32768;   // decoded rows that stay in the first-level cache
constexpr std::size_t kMostRows = 256;     // rows of a block
constexpr std::size_t kCodeBytes = 24576;  // codes of a block that few queries read in turn
constexpr std::size_t kGroups = 4;         // query groups of a tile

// A block of rows, contiguous or picked by the mask, and their factors.
struct RowBlock {
  std::size_t first = 0;   // number of the first row
  bool contiguous = true;  // else ids says which rows
  std::uint32_t ids[kMostRows];
  float scale[kMostRows];
  float residual[kMostRows];
  float norm[kMostRows];
  float term[kMostRows];  // Quantizer::Impl::term
  std::size_t n = 0;
};

class Scan {
 public:
  Scan(const ScanQueries& queries, const CodeRows& rows, ScanSink& sink)
      : queries_(queries),
        impl_(queries.prepared().impl()),
        rows_(rows),
        sink_(sink),
        size_(impl_.code_size()),
        l2_(queries.metric() == Metric::kL2),
        terms_(l2_ || impl_.centred()) {}

  void run(std::size_t begin, std::size_t end, std::size_t first_group, std::size_t last_group) {
    const bool few = queries_.few();
    const std::size_t first_query = few ? 0 : first_group * kLane;
    const std::size_t last_query =
        few ? queries_.size() : std::min(queries_.size(), last_group * kLane);
    first_query_ = first_query;
    cutoff_.assign(kernels::round_up(last_query - first_query, kLane), HUGE_VALF);
    term_.assign(cutoff_.size(), 0);
    for (std::size_t q = first_query; q < last_query; ++q) update_cutoff(q);

    std::size_t most = std::clamp(kCodeBytes / size_, std::size_t{16}, kMostRows);
    if (!few) {
      most = std::clamp(kRowBytes / impl_.padded / kLane * kLane, 4 * kLane, kMostRows);
      const std::size_t tile = most * impl_.padded;
      decoded_.resize(tile);
      if (impl_.two_parts()) decoded_signs_.resize(tile);
    }
    const std::size_t lanes = few ? 1 : kGroups * kLane;
    dots_.resize(most * lanes);
    if (impl_.two_parts()) dots_signs_.resize(most * lanes);
    hits_.resize(most * kLane);
    for (std::size_t row = begin; row < end;) {
      row = next_block(row, end, most);
      if (block_.n == 0) continue;
      if (few) {
        for (std::size_t q = first_query; q < last_query; ++q) one_query(q);
      } else {
        tiles(first_group, last_group);
      }
    }
  }

 private:
  // Collects up to `most` rows from `row` on; returns where to go on.
  std::size_t next_block(std::size_t row, std::size_t end, std::size_t most) {
    block_.first = row;
    block_.contiguous = rows_.mask == nullptr;
    if (block_.contiguous) {
      block_.n = std::min(most, end - row);
      return row + block_.n;
    }
    return take_rows(rows_.mask, row, end, most, block_.ids, &block_.n);
  }

  std::size_t id(std::size_t j) const {
    return block_.contiguous ? block_.first + j : block_.ids[j];
  }

  BlockRows block_rows() const {
    const std::size_t first = block_.contiguous ? block_.first : 0;
    return {rows_.codes + first * size_, size_, block_.contiguous ? nullptr : block_.ids, block_.n};
  }

  // Reads the factors; called once the codes have brought the rows into the cache.
  void load_factors() {
    // In a row: scale, residual scale, centre product, norm, as far as it has them.
    const BlockRows rows = block_rows();
    float* second = impl_.two_parts() ? block_.residual
                    : impl_.centred() ? block_.term
                                      : block_.norm;
    if (impl_.two_parts() || terms_) {
      turboquant::load_factors(rows, impl_.scale_at(), block_.scale, second);
    } else {
      load_factor(rows, impl_.scale_at(), block_.scale);
    }
    if (impl_.two_parts() && impl_.centred()) load_factor(rows, impl_.centre_at(), block_.term);
    if (l2_ && second != block_.norm) load_factor(rows, impl_.norm_at(), block_.norm);
    if (!terms_) return;
    if (!impl_.centred()) std::fill_n(block_.term, block_.n, 0.0f);
    lower_terms(queries_.metric(), l2_ ? block_.norm : nullptr, block_.n, block_.term);
  }

  void update_cutoff(std::size_t q) {
    const std::size_t at = q - first_query_;
    queries_.cutoff(q, sink_.bound(q), &cutoff_[at], &term_[at]);
  }

  void offer(std::size_t q, std::size_t j, float product) {
    offer_exact(q, j, queries_.prepared().with_centre(q, product, rows_.codes + id(j) * size_));
  }

  void offer_exact(std::size_t q, std::size_t j, float product) {
    const float score = queries_.score(q, product, l2_ ? block_.norm[j] : 0);
    if (sink_.offer(q, score, static_cast<std::uint32_t>(id(j)))) update_cutoff(q);
  }

  void one_query(std::size_t q) {
    const auto& prepared = queries_.prepared();
    const BlockRows rows = block_rows();
    if (impl_.two_parts()) {
      load_factors();
      float products[kMostRows];
      prepared.products(q, rows.codes, rows.chosen, rows.n, products);
      for (std::size_t j = 0; j < block_.n; ++j) offer_exact(q, j, products[j]);
      return;
    }
    impl_.dot_rows(rows.codes, rows.chosen, rows.n, impl_.levels,
                   prepared.levels.view(q, impl_.padded), dots_.data());
    if (q == first_query_) load_factors();
    const std::size_t at = q - first_query_;
    const std::size_t n = impl_.kernels.select_rows(dots_.data(), block_.n, block_.scale,
                                                    terms_ ? block_.term : nullptr, term_[at],
                                                    cutoff_[at], hits_.data());
    for (std::size_t h = 0; h < n; ++h) {
      const Hit& hit = hits_[h];
      offer(q, hit.row, scaled_product(hit.dot, block_.scale[hit.row], prepared.levels.scales[q]));
    }
  }

  void decode(const kernels::CodeTable& table, AlignedVector<std::int8_t>& out) {
    const TileDecoder decoder(impl_, table);
    for (std::size_t j = 0; j < block_.n; ++j) {
      decoder.decode(rows_.codes + id(j) * size_, out.data() + j * impl_.padded);
    }
  }

  void tiles(std::size_t first_group, std::size_t last_group) {
    decode(impl_.levels, decoded_);
    if (impl_.two_parts()) decode(impl_.signs, decoded_signs_);
    load_factors();
    const std::size_t n_rows = kernels::round_up(block_.n, kLane);
    for (std::size_t g = first_group; g < last_group; g += kGroups) {
      const std::size_t groups = std::min(kGroups, last_group - g);
      impl_.kernels.dot_tile(decoded_.data(), n_rows, impl_.padded, impl_.levels,
                             queries_.packed(g, false), groups, queries_.bias(g, false),
                             dots_.data());
      if (impl_.two_parts()) {
        impl_.kernels.dot_tile(decoded_signs_.data(), n_rows, impl_.padded, impl_.signs,
                               queries_.packed(g, true), groups, queries_.bias(g, true),
                               dots_signs_.data());
      }
      for (std::size_t i = 0; i < groups; ++i) {
        const std::int32_t* dots = dots_.data() + i * n_rows * kLane;
        if (impl_.two_parts()) {
          two_part_group(g + i, dots, dots_signs_.data() + i * n_rows * kLane);
        } else {
          one_part_group(g + i, dots);
        }
      }
    }
  }

  void one_part_group(std::size_t g, const std::int32_t* dots) {
    const auto& scales = queries_.prepared().levels.scales;
    const std::size_t at = g * kLane - first_query_;
    const std::size_t n =
        impl_.kernels.select_tile(dots, block_.n, block_.scale, terms_ ? block_.term : nullptr,
                                  &term_[at], &cutoff_[at], hits_.data());
    for (std::size_t h = 0; h < n; ++h) {
      const Hit& hit = hits_[h];
      const std::size_t q = g * kLane + hit.query;
      if (q >= queries_.size()) continue;
      offer(q, hit.row, scaled_product(hit.dot, block_.scale[hit.row], scales[q]));
    }
  }

  void two_part_group(std::size_t g, const std::int32_t* dots, const std::int32_t* dots_signs) {
    const auto& prepared = queries_.prepared();
    const std::size_t count = std::min(kLane, queries_.size() - g * kLane);
    for (std::size_t j = 0; j < block_.n; ++j) {
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t q = g * kLane + i;
        float product =
            scaled_product(dots[j * kLane + i], block_.scale[j], prepared.levels.scales[q]);
        product +=
            scaled_product(dots_signs[j * kLane + i], block_.residual[j], prepared.signs.scales[q]);
        offer(q, j, product);
      }
    }
  }

  const ScanQueries& queries_;
  const Quantizer::Impl& impl_;
  const CodeRows& rows_;
  ScanSink& sink_;
  const std::size_t size_;
  const bool l2_;
  const bool terms_;
  std::size_t first_query_ = 0;
  RowBlock block_;
  AlignedVector<std::int8_t> decoded_, decoded_signs_;
  AlignedVector<std::int32_t> dots_, dots_signs_;
  std::vector<Hit> hits_;
  std::vector<float> cutoff_, term_;
};

}  // namespace

ScanQueries::ScanQueries(const Quantizer::Impl& impl, Metric metric, const float* queries,
                         std::size_t nq)
    : prepared_(impl, queries, nq), metric_(metric), nq_(nq) {
  if (few()) return;
  pack(prepared_.levels, impl.levels, packed_levels_, bias_levels_);
  if (impl.two_parts()) pack(prepared_.signs, impl.signs, packed_signs_, bias_signs_);
}

void ScanQueries::pack(const QueryPart& part, const kernels::CodeTable& table,
                       AlignedVector<std::int8_t>& packed,
                       AlignedVector<std::int32_t>& bias) const {
  const Quantizer::Impl& impl = prepared_.impl();
  packed.assign(groups() * kLane * impl.padded, 0);
  bias.assign(groups() * kLane, 0);
#pragma omp parallel for schedule(static) if (nq_ * impl.padded > 200000)
  for (std::size_t q = 0; q < nq_; ++q) {
    pack_tile_query(part.values.data() + q * impl.padded, q, impl.padded, packed.data());
    bias[q] = tile_bias(impl.kernels, table, part.sums[q]);
  }
}

void ScanQueries::cutoff(std::size_t q, float scale, float bound, float* cutoff,
                         float* query_term) const {
  const float norm = metric_ == Metric::kL2 ? prepared_.norms_squared[q] : 0;
  lower_bound_to_dots(metric_, scale, bound, prepared_.offset(q), norm, prepared_.impl().centred(),
                      cutoff, query_term);
}

void lower_bound_to_dots(Metric metric, float scale, float bound, float offset, float norm,
                         bool row_terms, float* cutoff, float* query_term) {
  // The kernels compare float(dot) * row_scale with the bound brought to that scale, lowered by
  // several times what rounding can do; the exact score decides.
  constexpr float kSlack = 1e-6f;
  *query_term = 0;
  if (metric == Metric::kInnerProduct) {
    if (row_terms) *query_term = 1 / scale;
    *cutoff = (bound - offset) / scale;
    *cutoff -= (std::fabs(bound) + std::fabs(offset)) / scale * kSlack + 1e-37f;
  } else {
    const float half = 0.5f / scale;
    *query_term = half;
    *cutoff = ((norm - bound) - 2 * offset) * half -
              kSlack * ((norm + std::fabs(bound)) + 2 * std::fabs(offset)) * half - 1e-37f;
  }
  if (!std::isfinite(*cutoff) || !std::isfinite(*query_term)) {
    *cutoff = std::numeric_limits<float>::quiet_NaN();
    *query_term = 0;
  }
}

bool offer_rows(const ScanQueries& queries, std::size_t q, const CodeRows& rows,
                const std::uint32_t* chosen, std::size_t n, TopK& best) {
  constexpr std::size_t kMost = 64;
  float products[kMost];
  const Quantizer::Impl& impl = queries.prepared().impl();
  const std::size_t size = impl.code_size();
  const bool l2 = queries.metric() == Metric::kL2;
  bool moved = false;
  for (std::size_t i = 0; i < n; i += kMost) {
    const std::size_t count = std::min(kMost, n - i);
    for (std::size_t j = 0; j < count; ++j) {
      const std::uint8_t* row = rows.codes + std::size_t{chosen[i + j]} * size;
      for (std::size_t at = 0; at < size; at += 64) __builtin_prefetch(row + at);
    }
    queries.prepared().products(q, rows.codes, chosen + i, count, products);
    for (std::size_t j = 0; j < count; ++j) {
      const std::uint8_t* row = rows.codes + std::size_t{chosen[i + j]} * size;
      const float score = queries.score(q, products[j], l2 ? impl.norm_squared(row) : 0);
      const std::uint64_t key = candidate_key(queries.metric(), score, chosen[i + j]);
      moved = best.offer(key) || moved;
    }
  }
  return moved;
}

void scan_block(const ScanQueries& queries, const CodeRows& rows, std::size_t begin,
                std::size_t end, std::size_t first_group, std::size_t last_group, ScanSink& sink) {
  Scan(queries, rows, sink).run(begin, end, first_group, last_group);
}

ScanPlan::ScanPlan(const ScanQueries& queries, std::size_t rows) {
  const std::size_t work = queries.size() * rows * queries.prepared().impl().options.dimension;
  const std::size_t threads = std::clamp<std::size_t>(work / 500000, 1, free_threads());
  if (!queries.few()) {
    // A part of the queries large enough pays for decoding the rows once more.
    query_parts = std::clamp<std::size_t>(queries.groups() / 8, 1, threads);
  }
  row_parts = threads / query_parts;
}

}  // namespace turboquant
