#include "index/refine_rows.h"

#include <faiss/IndexFlat.h>
#include <faiss/IndexScalarQuantizer.h>

#include <cstring>
#include <typeinfo>

#include "index/checks.h"

namespace turboquant {
namespace {

constexpr std::size_t kLanes = 16;
constexpr float kMiddle = 128;  // codes less this are centred

// As KernelTable::dot adds.
float sum_of(float (&lanes)[kLanes]) {
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

// Sum of term(i, code i), i % 16 by i % 16.
template <class Term>
float sum_codes(const std::uint8_t* code, std::size_t d, const Term& term) {
  float lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      lanes[j] += term(i + j, static_cast<float>(static_cast<int>(code[i + j])) - kMiddle);
    }
  }
  for (; i < d; ++i) {
    lanes[i % kLanes] += term(i, static_cast<float>(static_cast<int>(code[i])) - kMiddle);
  }
  return sum_of(lanes);
}

}  // namespace

RefineRows::RefineRows(const faiss::Index& index)
    : ntotal_(static_cast<std::size_t>(index.ntotal)),
      metric_(to_metric(index.metric_type)),
      d_(static_cast<std::size_t>(index.d)),
      kernels_(kernels::active()),
      row_(d_) {
  const auto& type = typeid(index);
  if (type == typeid(faiss::IndexFlat) || type == typeid(faiss::IndexFlatL2) ||
      type == typeid(faiss::IndexFlatIP)) {
    kind_ = Kind::kFloats;
    const auto& flat = static_cast<const faiss::IndexFlat&>(index);
    take_codes(flat.codes.data(), d_ * sizeof(float), flat.codes.size());
    return;
  }
  if (type == typeid(faiss::IndexScalarQuantizer)) {
    const auto& scalar = static_cast<const faiss::IndexScalarQuantizer&>(index);
    if (scalar.sq.qtype == faiss::ScalarQuantizer::QT_fp16) {
      kind_ = Kind::kHalves;
      take_codes(scalar.codes.data(), d_ * sizeof(std::uint16_t), scalar.codes.size());
      return;
    }
    if (scalar.sq.qtype == faiss::ScalarQuantizer::QT_8bit && scalar.sq.trained.size() == 2 * d_) {
      kind_ = Kind::kBytes;
      take_codes(scalar.codes.data(), d_, scalar.codes.size());
      // FAISS: least + (code + 1/2) / 255 * range.
      const float* least = scalar.sq.trained.data();
      const float* range = least + d_;
      for (std::size_t i = 0; i < d_; ++i) {
        step_.push_back(range[i] / 255);
        start_.push_back(least[i] + (kMiddle + 0.5f) * step_[i]);
      }
      factors_.resize(d_);
      return;
    }
  }
  other_.reset(index.get_distance_computer());
}

RefineRows::~RefineRows() = default;

// FAISS's reader trusts the sizes in a file, in some versions.
void RefineRows::take_codes(const std::uint8_t* codes, std::size_t code_size, std::size_t bytes) {
  if (bytes / code_size < ntotal_) fail("the refining index lacks codes of its vectors");
  codes_ = codes;
  code_size_ = code_size;
}

void RefineRows::set_query(const float* query) {
  query_ = query;
  if (kind_ == Kind::kOther) other_->set_query(query);
  if (kind_ != Kind::kBytes) return;
  if (metric_ == Metric::kL2) {
    for (std::size_t i = 0; i < d_; ++i) factors_[i] = query[i] - start_[i];
    return;
  }
  for (std::size_t i = 0; i < d_; ++i) factors_[i] = query[i] * step_[i];
  offset_ = kernels_.dot(query, start_.data(), d_);
}

void RefineRows::fetch(std::int64_t row) const {
  const std::uint8_t* code = codes_ + static_cast<std::size_t>(row) * code_size_;
  for (std::size_t at = 0; at < code_size_; at += 64) __builtin_prefetch(code + at);
}

float RefineRows::score_bytes(const std::uint8_t* code) const {
  const float* factors = factors_.data();
  if (metric_ == Metric::kInnerProduct) {
    return offset_ +
           sum_codes(code, d_, [&](std::size_t i, float level) { return factors[i] * level; });
  }
  const float* step = step_.data();
  return sum_codes(code, d_, [&](std::size_t i, float level) {
    const float difference = factors[i] - step[i] * level;
    return difference * difference;
  });
}

float RefineRows::score_floats(const float* x) {
  if (metric_ == Metric::kInnerProduct) return kernels_.dot(query_, x, d_);
  for (std::size_t i = 0; i < d_; ++i) row_[i] = query_[i] - x[i];
  return kernels_.dot(row_.data(), row_.data(), d_);
}

float RefineRows::score(std::int64_t row) {
  if (kind_ == Kind::kOther) return (*other_)(row);
  const std::uint8_t* code = codes_ + static_cast<std::size_t>(row) * code_size_;
  switch (kind_) {
    case Kind::kFloats:
      return score_floats(reinterpret_cast<const float*>(code));
    case Kind::kHalves:
      kernels_.to_float(reinterpret_cast<const std::uint16_t*>(code), d_, row_.data());
      return score_floats(row_.data());
    default:
      return score_bytes(code);
  }
}

}  // namespace turboquant
