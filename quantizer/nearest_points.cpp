#include "quantizer/nearest_points.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>

#include "quantizer/levels.h"
#include "quantizer/parallel.h"
#include "quantizer/tile_operands.h"
#include "quantizer/top_k.h"

namespace turboquant {
namespace {

using kernels::kLane;

constexpr std::size_t kBlockRows = 256;
constexpr std::size_t kClasses = 128;     // at least, whose largest bounds give a first threshold
constexpr std::size_t kNearPoints = 128;  // points that are computed for all queries in turn
constexpr float kLongest = 1e15f;         // products of longer vectors may overflow

// The table whose largest level is that of the rounded points: every backend multiplies those.
const kernels::CodeTable& operand_table() { return level_table(4); }

// What rounding of floats can add to a product of unit vectors, rotations included.
float slack(std::size_t d) { return 2e-5f + 1e-8f * static_cast<float>(d); }

}  // namespace

float NearestPoints::score(const kernels::KernelTable& kernels, Metric metric, const float* query,
                           const float* point, std::size_t d, float* difference) {
  if (metric == Metric::kInnerProduct) return kernels.dot(query, point, d);
  for (std::size_t j = 0; j < d; ++j) difference[j] = query[j] - point[j];
  return kernels.dot(difference, difference, d);
}

void NearestPoints::scan(const kernels::KernelTable& kernels, Metric metric, const float* points,
                         std::size_t n, std::size_t d, const float* query, std::size_t k,
                         std::int64_t* numbers) {
  std::vector<float> difference(d);
  TopK best(k);
  for (std::size_t i = 0; i < n; ++i) {
    const float s = score(kernels, metric, query, points + i * d, d, difference.data());
    if (std::isnan(s)) continue;  // overflow on both sides
    best.offer(candidate_key(metric, s, static_cast<std::uint32_t>(i)));
  }
  const std::vector<std::uint64_t>& keys = best.sorted();
  for (std::size_t p = 0; p < k; ++p) {
    numbers[p] = p < keys.size() ? static_cast<std::int64_t>(key_row(keys[p])) : -1;
  }
}

NearestPoints::NearestPoints(const Quantizer::Impl& impl, Metric metric, const float* points,
                             std::size_t n)
    : impl_(impl),
      metric_(metric),
      n_(n),
      padded_rows_(kernels::round_up(n, kLane)),
      rows_(padded_rows_ * impl.padded),
      scale_(n),
      length_(n),
      error_(n),
      half_norm_(metric == Metric::kL2 ? n : 0) {
  const std::size_t d = impl.options.dimension;
  const auto most = static_cast<float>(operand_table().offset);
  const std::int32_t add = impl.kernels.unsigned_rows ? operand_table().offset : 0;
  std::atomic<std::size_t> bad{n};
#pragma omp parallel if (n * d > 50000)
  {
    UnitRotation rotation(impl);
#pragma omp for schedule(static)
    for (std::size_t i = 0; i < n; ++i) {
      if (!rotation.set(impl, points + i * d) || rotation.norm() > kLongest) {
        lower(bad, i);
        continue;
      }
      const auto length = static_cast<float>(rotation.norm());
      const float largest = impl.kernels.max_abs(rotation.values(), d);
      std::int8_t* row = rows_.data() + i * impl.padded;
      impl.kernels.quantize_query(rotation.values(), d, largest > 0 ? most / largest : 0, row);
      double error = 0;
      for (std::size_t j = 0; j < d; ++j) {
        const double left = rotation.values()[j] - row[j] * static_cast<double>(largest / most);
        error += left * left;
        row[j] = static_cast<std::int8_t>(row[j] + add);
      }
      scale_[i] = length * (largest / most);
      length_[i] = length;
      error_[i] = length * static_cast<float>(std::sqrt(error));
      if (metric == Metric::kL2) half_norm_[i] = 0.5f * length * length;
    }
  }
  usable_ = n > 0 && bad == n;
  if (!usable_) return;
  longest_ = *std::max_element(length_.begin(), length_.end());
  largest_error_ = *std::max_element(error_.begin(), error_.end());
}

std::size_t NearestPoints::bytes() const {
  return rows_.size() +
         sizeof(float) * (scale_.size() + length_.size() + error_.size() + half_norm_.size());
}

// One thread's search, of kLane queries at a time. What is bounded is the product less half the
// squared length of a point with kL2: it orders as the score does.
class NearestPoints::Screen {
 public:
  Screen(const NearestPoints& all, const float* points, std::size_t k)
      : all_(all),
        impl_(all.impl_),
        d_(impl_.options.dimension),
        slack_(slack(d_)),
        points_(points),
        k_(k),
        stride_(kernels::round_up(all.n_, kLane)),
        prepared_(impl_, kLane),
        scratch_(impl_),
        packed_(kLane * impl_.padded),
        dots_(kBlockRows * kLane),
        bounds_(kLane * stride_),
        difference_(d_),
        chosen_(all.n_ + 1),
        chosen_numbers_(all.n_ + 1) {}

  void search(const float* queries, std::size_t nq, std::int64_t* numbers) {
    for (std::size_t q = 0; q < nq; ++q) prepare(queries + q * d_, q);
    for (std::size_t q = nq; q < kLane; ++q) steps_[q] = 0;  // what it packs does not matter
    for (std::size_t row = 0; row < all_.padded_rows_; row += kBlockRows) {
      const std::size_t rows = std::min(kBlockRows, all_.padded_rows_ - row);
      impl_.kernels.dot_tile(all_.rows_.data() + row * impl_.padded, rows, impl_.padded,
                             operand_table(), packed_.data(), 1, bias_, dots_.data());
      impl_.kernels.add_tile_scores(dots_.data(), std::min(rows, all_.n_ - row),
                                    all_.scale_.data() + row, steps_, bounds_.data() + row,
                                    stride_);
    }
    for (std::size_t q = 0; q < kLane; ++q) {
      near_[q].clear();
      keys_[q].clear();
      if (q < nq && valid_[q]) choose(q);
    }
    score_near(queries);
    for (std::size_t q = 0; q < nq; ++q) {
      if (valid_[q]) {
        write(keys_[q], numbers + q * k_);
      } else {
        scan(impl_.kernels, all_.metric_, points_, all_.n_, d_, queries + q * d_, k_,
             numbers + q * k_);
      }
    }
  }

 private:
  // Packs the query and puts minus the error of its bounds where the products will be added.
  void prepare(const float* query, std::size_t q) {
    valid_[q] =
        prepared_.set(q, query, scratch_) && prepared_.norms_squared[q] < kLongest * kLongest;
    if (!valid_[q]) {
      steps_[q] = 0;
      return;
    }
    const std::int8_t* values = prepared_.levels.values.data() + q * impl_.padded;
    const float step = prepared_.levels.scales[q];
    const float length = std::sqrt(prepared_.norms_squared[q]);
    double left = 0;
    double kept = 0;
    const float* rotated = scratch_.rotated.data();  // of unit length
    for (std::size_t j = 0; j < d_; ++j) {
      const float value = static_cast<float>(values[j]) * step;
      const float error = rotated[j] * length - value;
      left += static_cast<double>(error * error);
      kept += static_cast<double>(value * value);
    }
    const bool l2 = all_.metric_ == Metric::kL2;
    const float by_length = (static_cast<float>(std::sqrt(left)) + slack_ * length) * 1.0001f;
    const float by_error = static_cast<float>(std::sqrt(kept)) * 1.0001f;
    const float own = (l2 ? slack_ * length * length : 0) + 1e-36f;
    errors_[q] = {by_length, by_error, own};
    float* bounds = bounds_.data() + q * stride_;
    if (l2) {
      for (std::size_t i = 0; i < all_.n_; ++i) bounds[i] = -all_.half_norm_[i] - error(q, i);
    } else {
      for (std::size_t i = 0; i < all_.n_; ++i) bounds[i] = -error(q, i);
    }
    pack_tile_query(values, q, impl_.padded, packed_.data());
    bias_[q] = tile_bias(impl_.kernels, operand_table(), prepared_.levels.sums[q]);
    steps_[q] = step;
  }

  float error(std::size_t q, std::size_t i) const {
    const Errors& e = errors_[q];
    const float pair = e.by_length * all_.length_[i] + e.by_error * all_.error_[i] + e.own;
    return all_.metric_ == Metric::kL2 ? pair + 2 * slack_ * all_.half_norm_[i] : pair;
  }

  float largest_error(std::size_t q) const {
    const Errors& e = errors_[q];
    const float pair = e.by_length * all_.longest_ + e.by_error * all_.largest_error_ + e.own;
    const float square = all_.longest_ * all_.longest_;
    return (all_.metric_ == Metric::kL2 ? pair + slack_ * square : pair) * 1.0001f;
  }

  // A value that k lower bounds reach, or nearly the largest such.
  float threshold(const float* bounds) {
    const std::size_t n = all_.n_;
    if (k_ >= n) return -HUGE_VALF;
    float least = -HUGE_VALF;
    const std::size_t classes = std::max(kernels::round_up(2 * k_, kLane), kClasses);
    if (n >= 2 * classes) {
      // The largest bound of each class of points: as many as there are reach the k-th of these.
      largest_.assign(bounds, bounds + classes);
      for (std::size_t i = classes; i + classes <= n; i += classes) {
        float* largest = largest_.data();
        for (std::size_t j = 0; j < classes; ++j) {
          largest[j] = bounds[i + j] > largest[j] ? bounds[i + j] : largest[j];
        }
      }
      const auto last = largest_.begin() + static_cast<std::ptrdiff_t>(k_ - 1);
      std::nth_element(largest_.begin(), last, largest_.end(), std::greater<>());
      least = *last;
    }
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) {
      chosen_[count] = bounds[i];
      count += bounds[i] >= least ? 1 : 0;
    }
    float* last = chosen_.data() + (k_ - 1);
    std::nth_element(chosen_.data(), last, chosen_.data() + count, std::greater<>());
    return *last;
  }

  // near_: what may be among the k nearest.
  void choose(std::size_t q) {
    const float* bounds = bounds_.data() + q * stride_;
    const float least = threshold(bounds);
    const float least_of_all = least - 2 * largest_error(q);
    std::size_t count = 0;
    for (std::size_t i = 0; i < all_.n_; ++i) {
      chosen_numbers_[count] = static_cast<std::uint32_t>(i);
      count += bounds[i] >= least_of_all ? 1 : 0;
    }
    for (std::size_t j = 0; j < count; ++j) {
      const std::uint32_t i = chosen_numbers_[j];
      if (bounds[i] + 2 * error(q, i) >= least) near_[q].push_back(i);
    }
  }

  // Some points at a time for all queries, so that they come from memory once.
  void score_near(const float* queries) {
    std::size_t done[kLane] = {};
    for (std::size_t end = kNearPoints; end < all_.n_ + kNearPoints; end += kNearPoints) {
      for (std::size_t q = 0; q < kLane; ++q) {
        const std::vector<std::uint32_t>& near = near_[q];
        std::size_t& j = done[q];
        for (; j < near.size() && near[j] < end; ++j) {
          if (j + 2 < near.size()) fetch(points_ + near[j + 2] * d_);
          const float s = score(impl_.kernels, all_.metric_, queries + q * d_,
                                points_ + near[j] * d_, d_, difference_.data());
          keys_[q].push_back(candidate_key(all_.metric_, s, near[j]));
        }
      }
    }
  }

  void fetch(const float* point) const {
    for (std::size_t i = 0; i < d_; i += 16) __builtin_prefetch(point + i);
  }

  void write(std::vector<std::uint64_t>& keys, std::int64_t* numbers) const {
    const std::size_t found = std::min(k_, keys.size());
    const auto last = keys.begin() + static_cast<std::ptrdiff_t>(found);
    if (last != keys.end()) std::nth_element(keys.begin(), last, keys.end());
    std::sort(keys.begin(), last);
    for (std::size_t p = 0; p < k_; ++p) {
      numbers[p] = p < found ? static_cast<std::int64_t>(key_row(keys[p])) : -1;
    }
  }

  // A product's error is at most by_length * |x| + by_error * (error of x) + own.
  struct Errors {
    float by_length = 0, by_error = 0, own = 0;
  };

  const NearestPoints& all_;
  const Quantizer::Impl& impl_;
  const std::size_t d_;
  const float slack_;
  const float* points_;
  const std::size_t k_;
  const std::size_t stride_;
  PreparedQueries prepared_;
  PreparedQueries::Scratch scratch_;
  AlignedVector<std::int8_t> packed_;  // [padded / 4][kLane][4]
  AlignedVector<std::int32_t> dots_;   // [kBlockRows][kLane]
  AlignedVector<float> bounds_;        // [kLane][stride] lower bounds
  std::vector<float> difference_;
  std::vector<float> largest_, chosen_;        // chosen_: [n + 1]
  std::vector<std::uint32_t> chosen_numbers_;  // [n + 1]
  std::vector<std::uint32_t> near_[kLane];
  std::vector<std::uint64_t> keys_[kLane];  // of near_
  alignas(64) std::int32_t bias_[kLane] = {};
  float steps_[kLane] = {};
  Errors errors_[kLane];
  bool valid_[kLane] = {};
};

void NearestPoints::search(const float* points, const float* queries, std::size_t nq, std::size_t k,
                           std::int64_t* numbers) const {
  if (nq == 0 || k == 0) return;
  const std::size_t d = impl_.options.dimension;
  const std::size_t groups = (nq + kLane - 1) / kLane;
  const std::size_t threads =
      std::clamp<std::size_t>(std::min(groups, nq * n_ * d / 1000000), 1, free_threads());
  std::atomic<std::size_t> next{0};
  run_parts(threads, [&](std::size_t) {
    Screen screen(*this, points, k);
    for (std::size_t g = next++; g < groups; g = next++) {
      const std::size_t first = g * kLane;
      const std::size_t count = std::min(kLane, nq - first);
      if (usable_) {
        screen.search(queries + first * d, count, numbers + first * k);
        continue;
      }
      for (std::size_t q = first; q < first + count; ++q) {
        scan(impl_.kernels, metric_, points, n_, d, queries + q * d, k, numbers + q * k);
      }
    }
  });
}

}  // namespace turboquant
