#include "quantizer/sign_plane.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quantizer/quantizer_impl.h"

namespace turboquant {
namespace {

using kernels::kBlock;

// Bit i of the result is set where byte i is not negative.
std::uint8_t sign_bits(const std::int8_t* levels) {
  std::uint64_t eight;
  std::memcpy(&eight, levels, 8);
  const std::uint64_t positive = ~eight >> 7 & 0x0101010101010101u;
  return static_cast<std::uint8_t>(positive * 0x0102040810204080u >> 56);
}

}  // namespace

SignPlane::SignPlane(const Quantizer& quantizer, Metric metric)
    : quantizer_(quantizer), metric_(metric) {
  constexpr std::size_t kShortest = 32;  // bytes: fewer leave too many rows to score exactly
  const std::size_t whole = (quantizer.dimension() + 7) / 8;
  for (std::size_t part = 1; part == 1 || (part <= 8 && whole / part >= kShortest); part *= 2) {
    prefixes_.push_back({whole / part, {}, {}});
  }
  const std::size_t d = quantizer.dimension();
  if (supports_many(quantizer.options())) {
    levels_prefix_.row_bytes = kernels::round_up(std::max(d / 8, kLongRows / 2), kBlock) / 8;
  }
}

std::size_t SignPlane::bytes() const {
  std::size_t floats = terms_.size() + levels_prefix_.scales.size() + levels_prefix_.spreads.size();
  for (const Prefix& p : prefixes_) floats += p.scales.size() + p.spreads.size();
  return signs_.size() + 4 * floats;
}

void SignPlane::extend(const std::uint8_t* codes, std::size_t n) {
  if (n <= rows_) return;
  const std::size_t blocks = (n + kBlock - 1) / kBlock;
  signs_.resize(blocks * block_bytes());
  if (metric_ == Metric::kL2 || quantizer_.impl().centred()) terms_.resize(blocks * kBlock);
  const auto resize = [blocks](Prefix& p) {
    p.scales.resize(blocks * kBlock);
    p.spreads.resize(blocks);
  };
  for (Prefix& p : prefixes_) resize(p);
  if (has_levels_prefix()) resize(levels_prefix_);
  const std::size_t first_block = rows_ / kBlock;
#pragma omp parallel for schedule(static) if ((n - rows_) * row_bytes() > 100000)
  for (std::size_t b = first_block; b < blocks; ++b) {
    fill_block(b, std::max(rows_, b * kBlock), std::min(n, (b + 1) * kBlock), codes);
  }
  rows_ = n;
}

void SignPlane::fill_block(std::size_t b, std::size_t first, std::size_t last,
                           const std::uint8_t* codes) {
  const Quantizer::Impl& impl = quantizer_.impl();
  const std::size_t d = impl.options.dimension;
  AlignedVector<std::int8_t> levels(impl.padded);
  std::uint8_t* plane = signs_.data() + b * block_bytes();
  for (std::size_t row = first; row < last; ++row) {
    const std::uint8_t* code = codes + row * impl.code_size();
    impl.decode(code, impl.levels, levels.data());
    std::fill(levels.begin() + static_cast<std::ptrdiff_t>(d), levels.end(), std::int8_t{0});
    std::int32_t squares = 0;  // at most 65,536 * 61^2
    for (const std::int8_t level : levels) squares += level * level;
    std::int32_t absolute = 0;  // of the coordinates before i
    std::size_t i = 0;
    for (auto p = prefixes_.rbegin(); p != prefixes_.rend(); ++p) {
      const std::size_t coordinates = std::min(8 * p->row_bytes, d);
      for (; i < coordinates; ++i) absolute += levels[i] < 0 ? -levels[i] : levels[i];
      const double c = static_cast<double>(squares) / absolute;
      p->scales[row] = saturate(c * impl.scale(code));
      const double rest =
          (static_cast<double>(coordinates) - absolute / c) / static_cast<double>(d);
      p->spreads[b] = std::max(p->spreads[b], static_cast<float>(std::sqrt(std::max(0.0, rest))));
    }
    if (has_levels_prefix()) {
      Prefix& p = levels_prefix_;
      double of_prefix = 0;
      for (std::size_t j = 0; j < 8 * p.row_bytes; ++j) of_prefix += levels[j] * levels[j];
      // A prefix of zeros says nothing: its deviation is infinite.
      const double c = squares / std::max(of_prefix, 1e-30);
      const double s = impl.scale(code);
      p.scales[row] = saturate(c * s);
      const double rest = s * std::sqrt(std::max(0.0, c - 1) * squares / static_cast<double>(d));
      p.spreads[b] = std::max(p.spreads[b], saturate(rest));
    }
    if (!terms_.empty()) terms_[row] = impl.term(code, metric_);
    std::uint8_t* to = plane + kernels::sign_position(row % kBlock);
    for (std::size_t g = 0; g < row_bytes(); ++g) to[g * kBlock] = sign_bits(&levels[8 * g]);
  }
}

}  // namespace turboquant
