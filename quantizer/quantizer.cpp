#include "turboquant/quantizer.h"

#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>

#include "quantizer/levels.h"
#include "quantizer/parallel.h"
#include "quantizer/prepared_queries.h"
#include "quantizer/quantizer_impl.h"
#include "quantizer/trellis.h"

namespace turboquant {
namespace {

// Streams of random words that must not coincide with the rotation's.
constexpr std::uint64_t kProjectionStream = 0x514a4c;

const QuantizerOptions& validated(const QuantizerOptions& options) {
  if (options.dimension < 1 || options.dimension > kernels::kMaxDimension) {
    throw std::invalid_argument("dimension must be 1 to 65536, not " +
                                std::to_string(options.dimension));
  }
  if (options.bits < 1 || options.bits > kernels::kMaxBits) {
    throw std::invalid_argument("bits must be 1 to 4, not " + std::to_string(options.bits));
  }
  if (options.estimator > Estimator::kTrellis || options.projection > Projection::kGaussian) {
    throw std::invalid_argument("unknown estimator or projection");
  }
  if (!options.centre.empty()) {
    if (options.centre.size() != options.dimension) {
      throw std::invalid_argument("a centre of dimension " + std::to_string(options.centre.size()) +
                                  " for vectors of dimension " + std::to_string(options.dimension));
    }
    for (const float c : options.centre) {
      if (!std::isfinite(c)) throw std::invalid_argument("the centre holds NaN or infinity");
    }
  }
  return options;
}

void write_float(std::uint8_t*& at, float value) {
  std::memcpy(at, &value, 4);
  at += 4;
}

// One thread's work on rows: buffers that are reused from row to row.
class Encoder {
 public:
  explicit Encoder(const Quantizer::Impl& impl)
      : impl_(impl),
        y_(impl.padded),
        codes_(impl.padded),
        projected_(impl.padded),
        centred_(impl.centred() ? impl.padded : 0),
        work_(impl.trellis != nullptr
                  ? kernels::trellis_work_bytes(impl.options.dimension, impl.options.bits)
                  : 0) {}

  // False when x holds NaN or infinity.
  bool encode(const float* x, std::uint8_t* row) {
    const QuantizerOptions& options = impl_.options;
    const std::size_t d = options.dimension;
    const double norm_squared = impl_.kernels.norm_squared(x, d);
    double rest_squared = norm_squared;
    const float* rest = x;
    if (impl_.centred()) {
      impl_.subtract_centre(x, centred_.data());
      rest = centred_.data();
      rest_squared = impl_.kernels.norm_squared(rest, d);
    }
    if (!std::isfinite(norm_squared) || !std::isfinite(rest_squared)) return false;
    const double norm = std::sqrt(rest_squared);
    if (norm == 0) {
      std::fill(y_.begin(), y_.end(), 0.0f);
    } else {
      impl_.kernels.scale(rest, d, impl_.sqrt_d / norm, y_.data());
      impl_.rotation.apply(impl_.kernels, y_.data());
    }
    std::uint8_t* factors = row + impl_.packed;
    if (impl_.trellis != nullptr) {
      write_float(factors, scale_of(norm, encode_path(row)));
    } else {
      if (options.estimator == Estimator::kQjl) {
        encode_two_parts(norm, factors);
      } else {
        const float product =
            impl_.kernels.quantize(y_.data(), d, level_table(options.bits), codes_.data());
        write_float(factors, scale_of(norm, product));
      }
      impl_.kernels.pack(codes_.data(), d, options.bits, row);
    }
    if (impl_.centred()) {
      write_float(factors, saturate(impl_.kernels.dot(options.centre.data(), x, d)));
    }
    if (options.with_norm) write_float(factors, saturate(norm_squared));
    return true;
  }

 private:
  float scale_of(double norm, float product) const {
    if (norm == 0 || product <= 0) return 0;  // 0 only where a path of a trellis is across y
    if (impl_.options.estimator == Estimator::kMse) {
      return saturate(norm * level_step(impl_.options.bits) / impl_.sqrt_d);
    }
    return saturate(norm * impl_.sqrt_d / product);
  }

  // Writes the codes of a trellis code; returns <y, z>.
  float encode_path(std::uint8_t* row) {
    const std::size_t d = impl_.options.dimension;
    impl_.kernels.trellis_encode(y_.data(), d, *impl_.trellis, work_.data(), row);
    path_levels_.resize(impl_.padded);
    impl_.decode(row, impl_.levels, path_levels_.data());
    projected_.assign(path_levels_.begin(), path_levels_.end());
    return impl_.kernels.dot(y_.data(), projected_.data(), d);
  }

  // Level of b - 1 bits, then the signs of the projected residual as top bits.
  void encode_two_parts(double norm, std::uint8_t*& factors) {
    const std::size_t d = impl_.options.dimension;
    const int low_bits = impl_.options.bits - 1;
    double step = 0;
    std::fill(codes_.begin(), codes_.end(), std::uint8_t{0});
    if (low_bits > 0) {
      step = level_step(low_bits);
      impl_.kernels.quantize(y_.data(), d, level_table(low_bits), codes_.data());
      const kernels::CodeTable& table = level_table(low_bits);
      for (std::size_t i = 0; i < d; ++i) {
        y_[i] -= static_cast<float>(step) * static_cast<float>(table.levels[codes_[i]]);
      }
    }
    const double gamma_squared = impl_.kernels.norm_squared(y_.data(), d);
    impl_.project(y_.data(), projected_.data());
    signs_.resize(d);
    // A 1-bit code of the projection: its signs, and the sum of its magnitudes.
    const float magnitudes =
        impl_.kernels.quantize(projected_.data(), d, level_table(1), signs_.data());
    for (std::size_t i = 0; i < d; ++i) {
      codes_[i] = static_cast<std::uint8_t>(codes_[i] | signs_[i] << low_bits);
    }
    const double unit = norm / impl_.sqrt_d;
    write_float(factors, saturate(unit * step));
    double correction = 0;
    if (norm > 0 && magnitudes > 0) {
      correction = impl_.gaussian.has_value()
                       ? std::sqrt(std::acos(-1.0) / 2 * gamma_squared) / static_cast<double>(d)
                       : gamma_squared / magnitudes;
    }
    write_float(factors, saturate(unit * correction));
  }

  const Quantizer::Impl& impl_;
  AlignedVector<float> y_;
  AlignedVector<std::uint8_t> codes_;
  AlignedVector<float> projected_;
  AlignedVector<float> centred_;
  AlignedVector<std::uint8_t> signs_;
  AlignedVector<std::uint8_t> work_;        // kTrellis
  AlignedVector<std::int8_t> path_levels_;  // kTrellis
};

class Decoder {
 public:
  explicit Decoder(const Quantizer::Impl& impl)
      : impl_(impl), levels_(impl.padded), y_(impl.padded), part_(impl.padded) {}

  void decode(const std::uint8_t* row, float* x) {
    const std::size_t d = impl_.options.dimension;
    read(row, impl_.levels, y_.data());
    // Rotated before it is scaled, so that only a result can overflow.
    impl_.rotation.apply_inverse(impl_.kernels, y_.data());
    const float scale = impl_.scale(row);
    for (std::size_t i = 0; i < d; ++i) x[i] = y_[i] * scale;
    if (impl_.two_parts()) {
      read(row, impl_.signs, part_.data());
      impl_.project_transposed(part_.data(), y_.data());
      impl_.rotation.apply_inverse(impl_.kernels, y_.data());
      const float residual = impl_.residual_scale(row);
      for (std::size_t i = 0; i < d; ++i) x[i] += y_[i] * residual;
    }
    if (!impl_.centred()) return;
    for (std::size_t i = 0; i < d; ++i) x[i] += impl_.options.centre[i];
  }

 private:
  void read(const std::uint8_t* row, const kernels::CodeTable& table, float* out) {
    impl_.decode(row, table, levels_.data());
    for (std::size_t i = 0; i < impl_.options.dimension; ++i) out[i] = levels_[i];
  }

  const Quantizer::Impl& impl_;
  AlignedVector<std::int8_t> levels_;
  AlignedVector<float> y_;
  AlignedVector<float> part_;
};

}  // namespace

Quantizer::Impl::Impl(const QuantizerOptions& wanted)
    : options(validated(wanted)),
      kernels(kernels::active()),
      rotation(options.dimension, options.seed),
      levels(level_table(options.bits)),
      signs(level_table(options.bits)),
      packed(kernels::packed_bytes(options.dimension, options.bits)),
      padded(kernels::round_up(options.dimension, kernels::kBlock)),
      sqrt_d(std::sqrt(static_cast<double>(options.dimension))) {
  if (centred()) {
    centre_norm_squared = saturate(kernels.norm_squared(options.centre.data(), options.dimension));
  }
  if (options.estimator == Estimator::kTrellis) {
    trellis = &trellis_table(options.bits);
    levels.offset = trellis->offset;
    packed = kernels::trellis_bytes(options.dimension, options.bits);
  }
  if (!two_parts()) return;
  levels = qjl_level_table(options.bits);
  signs = qjl_sign_table(options.bits);
  const std::uint64_t seed = random_word(options.seed, kProjectionStream << 32);
  if (options.projection == Projection::kGaussian) {
    gaussian.emplace(options.dimension, seed);
  } else {
    projection.emplace(options.dimension, seed);
  }
}

void Quantizer::Impl::project(const float* y, float* out) const {
  if (gaussian.has_value()) return gaussian->apply(y, out);
  std::memcpy(out, y, options.dimension * sizeof(float));
  projection->apply(kernels, out);
}

void Quantizer::Impl::project_transposed(const float* y, float* out) const {
  if (gaussian.has_value()) return gaussian->apply_transposed(y, out);
  std::memcpy(out, y, options.dimension * sizeof(float));
  projection->apply_inverse(kernels, out);
}

Quantizer::Quantizer(const QuantizerOptions& options)
    : impl_(std::make_shared<const Impl>(options)) {}

const QuantizerOptions& Quantizer::options() const { return impl_->options; }

std::size_t Quantizer::code_size() const { return impl_->code_size(); }

double Quantizer::compression_ratio() const {
  return static_cast<double>(4 * dimension()) / static_cast<double>(code_size());
}

void Quantizer::quantize(const float* x, std::size_t n, std::uint8_t* codes) const {
  const std::size_t d = dimension();
  const std::size_t size = code_size();
  std::atomic<std::size_t> bad_row{n};
#pragma omp parallel if (n * d > 100000)
  {
    Encoder encoder(*impl_);
#pragma omp for schedule(static)
    for (std::size_t i = 0; i < n; ++i) {
      if (!encoder.encode(x + i * d, codes + i * size)) lower(bad_row, i);
    }
  }
  if (bad_row < n) {
    throw std::invalid_argument("row " + std::to_string(bad_row.load()) + " holds NaN or infinity");
  }
}

void Quantizer::dequantize(const std::uint8_t* codes, std::size_t n, float* x) const {
  const std::size_t d = dimension();
  const std::size_t size = code_size();
#pragma omp parallel if (n * d > 100000)
  {
    Decoder decoder(*impl_);
#pragma omp for schedule(static)
    for (std::size_t i = 0; i < n; ++i) decoder.decode(codes + i * size, x + i * d);
  }
}

void Quantizer::inner_products(const float* queries, std::size_t nq, const std::uint8_t* codes,
                               std::size_t n, float* out) const {
  const PreparedQueries prepared(*impl_, queries, nq);
  constexpr std::size_t kRows = 256;
  const std::size_t blocks = (n + kRows - 1) / kRows;
#pragma omp parallel for schedule(static) if (blocks > 1 && n * nq * dimension() > 1000000)
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t first = b * kRows;
    const std::size_t count = std::min(kRows, n - first);
    for (std::size_t q = 0; q < nq; ++q) {
      prepared.products(q, codes + first * code_size(), nullptr, count, out + q * n + first);
    }
  }
}

}  // namespace turboquant
