// int8 rows of an integer product, for one query at a time or for tiles.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"
#include "quantizer/aligned.h"
#include "quantizer/tile_operands.h"

namespace turboquant::kv {

// int8 queries against one part of the keys, or int8 weights against one part of the values.
class IntegerRows {
 public:
  void reset(std::size_t rows, std::size_t width) {
    width_ = kernels::round_up(width, kernels::kBlock);
    groups_ = (rows + kernels::kLane - 1) / kernels::kLane;
    values_.assign(groups_ * kernels::kLane * width_, 0);
    sums_.assign(groups_ * kernels::kLane, 0);
    steps_.assign(groups_ * kernels::kLane, 0);
  }
  void set(const kernels::KernelTable& table, std::size_t r, const float* x, std::size_t d) {
    const float largest = table.max_abs(x, d);
    steps_[r] = largest / 127;
    const float factor = largest > 0 ? 127 / largest : 0;
    sums_[r] =
        table.quantize_query(x, d, std::isfinite(factor) ? factor : 0, values_.data() + r * width_);
  }
  // What set() left: x[i] -= values[i] * step. Returns the sum of the sizes.
  float subtract(const kernels::KernelTable& table, std::size_t r, float* x, std::size_t d) const {
    return table.take_off(values_.data() + r * width_, steps_[r], d, x);
  }
  float step(std::size_t r) const { return steps_[r]; }
  const float* steps() const { return steps_.data(); }  // those of absent rows are 0
  kernels::QueryView view(std::size_t r) const { return {values_.data() + r * width_, sums_[r]}; }

  // The operands of dot_tile.
  void pack(const kernels::KernelTable& table, const kernels::CodeTable& levels) {
    packed_.resize(values_.size());
    bias_.assign(sums_.size(), 0);
    for (std::size_t r = 0; r < sums_.size(); ++r) {
      pack_tile_query(values_.data() + r * width_, r, width_, packed_.data());
      bias_[r] = tile_bias(table, levels, sums_[r]);
    }
  }
  std::size_t groups() const { return groups_; }
  std::size_t width() const { return width_; }
  const std::int8_t* packed() const { return packed_.data(); }
  const std::int32_t* bias() const { return bias_.data(); }

 private:
  std::size_t width_ = 0;
  std::size_t groups_ = 0;
  std::vector<std::int8_t> values_;
  std::vector<std::int32_t> sums_;
  std::vector<float> steps_;
  AlignedVector<std::int8_t> packed_;
  AlignedVector<std::int32_t> bias_;
};

}  // namespace turboquant::kv
