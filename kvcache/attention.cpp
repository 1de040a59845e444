#include "kvcache/attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvcache/integer_rows.h"
#include "quantizer/levels.h"
#include "quantizer/tile_operands.h"

namespace turboquant::kv {
namespace {

using kernels::kBlock;
using kernels::KernelTable;
using kernels::kLane;
using kernels::round_up;

constexpr float kHidden = -HUGE_VALF;
constexpr std::size_t kRunTokens = 128;  // raw tokens at a time; at least those of a page
constexpr std::size_t kTileRows = 16;    // from so many query rows on, a page is decoded once
constexpr std::size_t kMostRows = 64;
// Weights of a page whose int8 rounding may lose more than this share of all weights so far get
// a second int8 digit.
constexpr float kRoundingShare = 0.001f;

// Some query rows of one kv head of one sequence. Row r is query head first_head + r % group of
// query r / group.
struct Rows {
  const LayerState* state;
  std::size_t kv_head;
  std::size_t n;
  std::size_t first;     // number of the first row among those of the head
  std::size_t query0;    // number of the sequence's first query in the batch
  std::size_t position;  // of the sequence's first query
};

// In 8 lanes, which a compiler makes a vector of.
float largest_of(const float* x, std::size_t n) {
  float lanes[8];
  std::fill_n(lanes, 8, kHidden);
  for (std::size_t i = 0; i + 8 <= n; i += 8) {
    for (std::size_t l = 0; l < 8; ++l) lanes[l] = std::max(lanes[l], x[i + l]);
  }
  for (std::size_t i = n / 8 * 8; i < n; ++i) lanes[0] = std::max(lanes[0], x[i]);
  return *std::max_element(lanes, lanes + 8);
}

class HeadAttention {
 public:
  HeadAttention(const Cache& cache, std::size_t layer, const AttentionOptions& options,
                const float* q, float* out, float* lse)
      : cache_(cache),
        layer_(layer),
        format_(cache.format(layer)),
        kernels_(cache.kernels()),
        options_(options),
        key_dim_(cache.options().key_dim),
        value_dim_(cache.options().value_dim),
        scale_(options.scale != 0 ? options.scale
                                  : 1 / std::sqrt(static_cast<float>(cache.options().key_dim))),
        q_(q),
        out_(out),
        lse_(lse) {}

  void run(const Rows& rows) {
    rows_ = rows;
    prepare();
    std::size_t token = 0;
    raw_run(rows.state->sinks, token);
    token += rows.state->sinks.n;
    for (const PageRef& page : rows.state->pages) {
      if (visible(token, page.tokens)) page_run(page, token);
      token += page.tokens;
    }
    raw_run(rows.state->tail, token);
    finish();
  }

 private:
  std::size_t query(std::size_t r) const { return (rows_.first + r) / cache_.group(); }
  std::size_t head(std::size_t r) const {
    return rows_.kv_head * cache_.group() + (rows_.first + r) % cache_.group();
  }
  std::size_t at(std::size_t r) const {
    return (rows_.query0 + query(r)) * cache_.options().query_heads + head(r);
  }
  std::size_t position(std::size_t r) const { return rows_.position + query(r); }

  // Tokens [first, last) that row r may see.
  std::pair<std::size_t, std::size_t> range(std::size_t r) const {
    const std::size_t end = options_.causal ? position(r) + 1 : rows_.state->length();
    const std::size_t begin =
        options_.window != 0 && end > options_.window ? end - options_.window : 0;
    return {begin, end};
  }
  bool visible(std::size_t token, std::size_t n) const {
    const auto last = range(rows_.n - 1);
    return token < last.second && token + n > range(0).first;
  }

  void prepare() {
    queries_.resize(rows_.n * key_dim_);
    rotated_queries_.resize(rows_.n * key_dim_);
    const std::size_t value_width = format_.values.raw() ? 0 : value_dim_;
    sums_.assign(rows_.n * value_dim_, 0);
    rotated_sums_.assign(rows_.n * value_width, 0);
    largest_.assign(rows_.n, kHidden);
    totals_.assign(rows_.n, 0);
    scores_.resize(round_up(rows_.n, kLane) * kRunTokens);
    lane_sums_.assign(tiled() ? round_up(rows_.n, kLane) * value_width : 0, 0);
    key_channels_ = cache_.channels(layer_, rows_.kv_head, true);
    value_channels_ = cache_.channels(layer_, rows_.kv_head, false);
    integer_queries_.resize(format_.keys.parts.size());
    for (std::size_t p = 0; p < format_.keys.parts.size(); ++p) {
      integer_queries_[p].reset(rows_.n, format_.keys.parts[p].d);
    }
    for (std::size_t r = 0; r < rows_.n; ++r) prepare_query(r);
    if (!tiled()) return;
    for (std::size_t p = 0; p < format_.keys.parts.size(); ++p) {
      integer_queries_[p].pack(kernels_, level_table(format_.keys.parts[p].bits));
    }
  }

  void prepare_query(std::size_t r) {
    float* query_row = queries_.data() + r * key_dim_;
    const float* from = q_ + at(r) * key_dim_;
    if (!std::isfinite(kernels_.norm_squared(from, key_dim_))) {
      throw std::invalid_argument("query " + std::to_string(rows_.query0 + query(r)) + ", head " +
                                  std::to_string(head(r)) + " holds NaN or infinity");
    }
    for (std::size_t i = 0; i < key_dim_; ++i) query_row[i] = from[i] * scale_;
    float* rotated = rotated_queries_.data() + r * key_dim_;
    for (std::size_t i = 0; i < key_dim_; ++i) {
      rotated[i] = query_row[key_channels_ == nullptr ? i : key_channels_[i]];
    }
    for (std::size_t p = 0; p < format_.keys.parts.size(); ++p) {
      const PartFormat& part = format_.keys.parts[p];
      part.rotation->apply(kernels_, rotated + part.first);
      integer_queries_[p].set(kernels_, r, rotated + part.first, part.d);
    }
  }

  bool tiled() const { return rows_.n >= kTileRows; }

  // use(r, dots) gets the products of integer row r with row_count rows of `width` codes.
  template <typename Use>
  void products(const PartFormat& part, std::size_t width, std::size_t row_count,
                const std::uint8_t* codes, const IntegerRows& integers, const Use& use) {
    const std::size_t stride = kernels::packed_bytes(width, part.bits);
    dots_.resize(round_up(row_count, kLane));
    for (std::size_t r = 0; r < rows_.n; ++r) {
      if (integers.step(r) == 0) continue;
      kernels_.dot_rows(codes, stride, nullptr, row_count, width, level_table(part.bits),
                        integers.view(r), dots_.data());
      use(r, dots_.data());
    }
  }

  // The same rows as operands of tiles.
  void decode_rows(const PartFormat& part, std::size_t width, std::size_t row_count,
                   const std::uint8_t* codes) {
    const std::size_t padded_width = round_up(width, kBlock);
    const std::size_t stride = kernels::packed_bytes(width, part.bits);
    decoded_.resize(round_up(row_count, kLane) * padded_width);
    const TileLevels operand(kernels_, level_table(part.bits));
    for (std::size_t j = 0; j < row_count; ++j) {
      kernels_.decode(codes + j * stride, width, part.bits, operand.values,
                      decoded_.data() + j * padded_width);
    }
  }

  // use(group, steps, dots) gets the products [row_count][kLane] of a group of integer rows with
  // the decoded rows, and what makes them numbers again.
  template <typename Use>
  void tile_products(const PartFormat& part, std::size_t row_count, const IntegerRows& integers,
                     const Use& use) {
    const std::size_t padded_rows = round_up(row_count, kLane);
    dots_.resize(integers.groups() * padded_rows * kLane);
    kernels_.dot_tile(decoded_.data(), padded_rows, integers.width(), level_table(part.bits),
                      integers.packed(), integers.groups(), integers.bias(), dots_.data());
    const float unit = static_cast<float>(part.scale_unit);
    for (std::size_t g = 0; g < integers.groups(); ++g) {
      float steps[kLane];
      for (std::size_t l = 0; l < kLane; ++l) steps[l] = integers.steps()[g * kLane + l] * unit;
      use(g, steps, dots_.data() + g * padded_rows * kLane);
    }
  }

  void page_run(const PageRef& page, std::size_t token) {
    const std::uint8_t* at_head = page.page->data() + rows_.kv_head * format_.head_bytes;
    if (format_.keys.raw()) {
      raw_scores(halves(at_head), key_dim_, page.tokens);
    } else {
      page_scores(at_head, page.tokens);
    }
    weigh(token, page.tokens);
    const std::uint8_t* values = at_head + format_.keys.bytes;
    if (format_.values.raw()) {
      raw_values(halves(values), value_dim_, page.tokens);
    } else {
      page_values(values, page.tokens);
    }
  }

  void page_scores(const std::uint8_t* keys, std::size_t tokens) {
    const SideFormat& format = format_.keys;
    const std::size_t page_tokens = format.page_tokens;
    for (std::size_t r = 0; r < rows_.n; ++r) {
      std::fill_n(scores_.data() + r * kRunTokens, tokens, 0.0f);
    }
    if (format.options.centre) {
      mean_.resize(key_dim_);
      kernels_.to_float(halves(keys + format.mean), key_dim_, mean_.data());
      for (std::size_t r = 0; r < rows_.n; ++r) {
        const float* query = rotated_queries_.data() + r * key_dim_;
        std::fill_n(scores_.data() + r * kRunTokens, tokens,
                    kernels_.dot(query, mean_.data(), key_dim_));
      }
    }
    factors_.resize(page_tokens);
    for (std::size_t p = 0; p < format.parts.size(); ++p) {
      const PartFormat& part = format.parts[p];
      kernels_.to_float(halves(keys + part.scales), page_tokens, factors_.data());
      const float unit = static_cast<float>(part.scale_unit);
      const IntegerRows& integers = integer_queries_[p];
      if (tiled()) {
        decode_rows(part, part.d, tokens, keys + part.codes);
        add_score_tiles(part, tokens, integers);
        continue;
      }
      products(part, part.d, tokens, keys + part.codes, integers,
               [&](std::size_t r, const std::int32_t* dots) {
                 float* scores = scores_.data() + r * kRunTokens;
                 const float step = integers.step(r) * unit;
                 for (std::size_t t = 0; t < tokens; ++t) {
                   scores[t] += static_cast<float>(dots[t]) * (factors_[t] * step);
                 }
               });
    }
  }

  void add_score_tiles(const PartFormat& part, std::size_t tokens, const IntegerRows& integers) {
    tile_products(part, tokens, integers,
                  [&](std::size_t g, const float* steps, const std::int32_t* dots) {
                    kernels_.add_tile_scores(dots, tokens, factors_.data(), steps,
                                             scores_.data() + g * kLane * kRunTokens, kRunTokens);
                  });
  }

  void page_values(const std::uint8_t* values, std::size_t tokens) {
    const SideFormat& format = format_.values;
    const std::size_t page_tokens = format.page_tokens;
    factors_.resize(page_tokens);
    weights_.assign(page_tokens, 0);
    for (const PartFormat& part : format.parts) {
      kernels_.to_float(halves(values + part.scales), page_tokens, factors_.data());
      const float largest_factor = kernels_.max_abs(factors_.data(), tokens);
      if (tiled()) decode_rows(part, page_tokens, part.d, values + part.codes);
      first_digits_.reset(rows_.n, page_tokens);
      second_digits_.reset(rows_.n, page_tokens);
      bool second = false;
      for (std::size_t r = 0; r < rows_.n; ++r) {
        const float* weights = scores_.data() + r * kRunTokens;
        for (std::size_t t = 0; t < tokens; ++t) weights_[t] = weights[t] * factors_[t];
        first_digits_.set(kernels_, r, weights_.data(), page_tokens);
        const float lost = first_digits_.subtract(kernels_, r, weights_.data(), page_tokens);
        if (lost <= kRoundingShare * largest_factor * totals_[r]) continue;
        second_digits_.set(kernels_, r, weights_.data(), page_tokens);
        second = true;
      }
      add_values(part, values, first_digits_);
      if (second) add_values(part, values, second_digits_);
    }
  }

  void add_values(const PartFormat& part, const std::uint8_t* values, IntegerRows& weights) {
    const std::size_t page_tokens = format_.values.page_tokens;
    if (tiled()) {
      weights.pack(kernels_, level_table(part.bits));
      tile_products(part, part.d, weights,
                    [&](std::size_t g, const float* steps, const std::int32_t* dots) {
                      float* sums = lane_sums_.data() + (g * value_dim_ + part.first) * kLane;
                      kernels_.add_tile_sums(dots, part.d, steps, sums);
                    });
      return;
    }
    const float unit = static_cast<float>(part.scale_unit);
    products(part, page_tokens, part.d, values + part.codes, weights,
             [&](std::size_t r, const std::int32_t* dots) {
               float* sums = rotated_sums_.data() + r * value_dim_ + part.first;
               const float step = weights.step(r) * unit;
               for (std::size_t i = 0; i < part.d; ++i) {
                 sums[i] += static_cast<float>(dots[i]) * step;
               }
             });
  }

  void raw_run(const RawTokens& raw, std::size_t token) {
    const std::size_t kv_heads = cache_.options().kv_heads;
    for (std::size_t begin = 0; begin < raw.n; begin += kRunTokens) {
      const std::size_t n = std::min(kRunTokens, raw.n - begin);
      if (!visible(token + begin, n)) continue;
      raw_scores(raw.keys.data() + (begin * kv_heads + rows_.kv_head) * key_dim_,
                 kv_heads * key_dim_, n);
      weigh(token + begin, n);
      raw_values(raw.values.data() + (begin * kv_heads + rows_.kv_head) * value_dim_,
                 kv_heads * value_dim_, n);
    }
  }

  void raw_scores(const std::uint16_t* keys, std::size_t stride, std::size_t tokens) {
    row_.resize(key_dim_);
    for (std::size_t t = 0; t < tokens; ++t) {
      kernels_.to_float(keys + t * stride, key_dim_, row_.data());
      for (std::size_t r = 0; r < rows_.n; ++r) {
        scores_[r * kRunTokens + t] =
            kernels_.dot(queries_.data() + r * key_dim_, row_.data(), key_dim_);
      }
    }
  }

  void raw_values(const std::uint16_t* values, std::size_t stride, std::size_t tokens) {
    row_.resize(value_dim_);
    for (std::size_t t = 0; t < tokens; ++t) {
      kernels_.to_float(values + t * stride, value_dim_, row_.data());
      for (std::size_t r = 0; r < rows_.n; ++r) {
        const float weight = scores_[r * kRunTokens + t];
        if (weight != 0) {
          kernels_.add_scaled(row_.data(), weight, value_dim_, sums_.data() + r * value_dim_);
        }
      }
    }
  }

  // Scores become weights relative to the largest score so far; what was summed before shrinks.
  void weigh(std::size_t token, std::size_t tokens) {
    for (std::size_t r = 0; r < rows_.n; ++r) {
      float* scores = scores_.data() + r * kRunTokens;
      limit(r, token, tokens, scores);
      const float largest = std::max(largest_[r], largest_of(scores, tokens));
      if (largest == kHidden) {
        std::fill_n(scores, tokens, 0.0f);
        continue;
      }
      if (largest > largest_[r]) shrink(r, std::exp(largest_[r] - largest));
      largest_[r] = largest;
      totals_[r] += kernels_.exp_sum(scores, tokens, largest, scores);
    }
  }

  void shrink(std::size_t r, float factor) {
    totals_[r] *= factor;
    for (std::size_t i = 0; i < value_dim_; ++i) sums_[r * value_dim_ + i] *= factor;
    if (rotated_sums_.empty()) return;
    if (tiled()) {
      float* sums = lane_sums_.data() + r / kLane * value_dim_ * kLane + r % kLane;
      for (std::size_t i = 0; i < value_dim_; ++i) sums[i * kLane] *= factor;
      return;
    }
    for (std::size_t i = 0; i < value_dim_; ++i) rotated_sums_[r * value_dim_ + i] *= factor;
  }

  void limit(std::size_t r, std::size_t token, std::size_t tokens, float* scores) const {
    if (options_.softcap != 0) {
      for (std::size_t t = 0; t < tokens; ++t) {
        scores[t] = options_.softcap * std::tanh(scores[t] / options_.softcap);
      }
    }
    if (options_.mask != nullptr) {
      const float* mask = options_.mask + (rows_.query0 + query(r)) * options_.mask_stride + token;
      for (std::size_t t = 0; t < tokens; ++t) scores[t] += mask[t];
    }
    const auto [begin, end] = range(r);
    if (begin <= token && token + tokens <= end) return;
    for (std::size_t t = 0; t < tokens; ++t) {
      if (token + t < begin || token + t >= end) scores[t] = kHidden;
    }
  }

  void finish() {
    row_.resize(value_dim_);
    for (std::size_t r = 0; r < rows_.n; ++r) {
      if (options_.sinks != nullptr) {
        const float sink = options_.sinks[head(r)];
        if (sink > largest_[r]) {
          shrink(r, std::exp(largest_[r] - sink));
          largest_[r] = sink;
        }
        if (largest_[r] != kHidden) totals_[r] += std::exp(sink - largest_[r]);
      }
      float* out = out_ + at(r) * value_dim_;
      const float inverse = totals_[r] > 0 ? 1 / totals_[r] : 0;
      for (std::size_t i = 0; i < value_dim_; ++i) out[i] = sums_[r * value_dim_ + i] * inverse;
      if (!rotated_sums_.empty()) add_rotated(r, inverse, out);
      if (lse_ != nullptr) {
        lse_[at(r)] = totals_[r] > 0 ? largest_[r] + std::log(totals_[r]) : kHidden;
      }
    }
  }

  void add_rotated(std::size_t r, float inverse, float* out) {
    float* sums = rotated_sums_.data() + r * value_dim_;
    if (tiled()) {
      const float* lane = lane_sums_.data() + r / kLane * value_dim_ * kLane + r % kLane;
      for (std::size_t i = 0; i < value_dim_; ++i) sums[i] = lane[i * kLane];
    }
    for (const PartFormat& part : format_.values.parts) {
      part.rotation->apply_inverse(kernels_, sums + part.first);
    }
    for (std::size_t i = 0; i < value_dim_; ++i) {
      out[value_channels_ == nullptr ? i : value_channels_[i]] += sums[i] * inverse;
    }
  }

  const Cache& cache_;
  const std::size_t layer_;
  const LayerFormat& format_;
  const KernelTable& kernels_;
  const AttentionOptions& options_;
  const std::size_t key_dim_;
  const std::size_t value_dim_;
  const float scale_;
  const float* q_;
  float* out_;
  float* lse_;
  Rows rows_{};
  const std::uint16_t* key_channels_ = nullptr;
  const std::uint16_t* value_channels_ = nullptr;
  std::vector<IntegerRows> integer_queries_;
  IntegerRows first_digits_, second_digits_;      // of weights
  std::vector<float> queries_, rotated_queries_;  // [rows][key_dim], times the scale
  std::vector<float> scores_;                     // [rows][kRunTokens], then weights
  std::vector<float> sums_, rotated_sums_;        // [rows][value_dim]
  std::vector<float> lane_sums_;  // when tiled, rotated sums as [rows / kLane][value_dim][kLane]
  std::vector<float> largest_, totals_;
  std::vector<float> mean_, factors_, weights_, row_;
  AlignedVector<std::int8_t> decoded_;
  AlignedVector<std::int32_t> dots_;
};

void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

std::vector<Rows> plan(const Cache& cache, std::size_t layer, const AttentionBatch& batch,
                       const AttentionOptions& options) {
  std::vector<Rows> tasks;
  std::size_t query0 = 0;
  for (std::size_t b = 0; b < batch.n; ++b) {
    const LayerState& state = cache.sequence(batch.sequences[b]).layers[layer];
    const std::size_t queries = batch.queries[b];
    require(queries >= 1 && queries <= state.length(),
            "sequence " + std::to_string(batch.sequences[b]) + " has " +
                std::to_string(state.length()) + " tokens, and " + std::to_string(queries) +
                " of them ask");
    require(options.mask == nullptr || options.mask_stride >= state.length(),
            "the mask has fewer columns than sequence " + std::to_string(batch.sequences[b]) +
                " has tokens");
    const std::size_t rows = queries * cache.group();
    for (std::size_t h = 0; h < cache.options().kv_heads; ++h) {
      for (std::size_t first = 0; first < rows; first += kMostRows) {
        tasks.push_back({&state, h, std::min(kMostRows, rows - first), first, query0,
                         state.length() - queries});
      }
    }
    query0 += queries;
  }
  return tasks;
}

}  // namespace

void attend(const Cache& cache, std::size_t layer, const AttentionBatch& batch,
            const AttentionOptions& options, const float* q, float* out, float* lse) {
  require(layer < cache.options().layers.size(),
          "there is no layer " + std::to_string(layer) + ", only 0 to " +
              std::to_string(cache.options().layers.size() - 1));
  require(std::isfinite(options.scale) && std::isfinite(options.softcap) && options.softcap >= 0,
          "the scale must be finite and the softcap finite and not negative");
  const std::vector<Rows> tasks = plan(cache, layer, batch, options);
  std::exception_ptr failure;
  std::mutex failing;
  const int threads = options.threads > 0 ? options.threads : omp_get_max_threads();
#pragma omp parallel num_threads(threads) if (tasks.size() > 1 && threads > 1)
  {
    HeadAttention attention(cache, layer, options, q, out, lse);
#pragma omp for schedule(dynamic)
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      try {
        attention.run(tasks[i]);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failing);
        failure = std::current_exception();
      }
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace turboquant::kv
