// turboquant::Quantizer: compresses vectors to a few bits per coordinate and estimates inner
// products from the codes. No training: the code of a vector depends on the vector and a seed.
//
// Method: TurboQuant (arXiv 2504.19874). x is rotated by a random orthogonal matrix, so that the
// coordinates of y = sqrt(d) R x / |x| behave like independent N(0, 1); each is mapped to one of
// 2^b integer levels; one float scale per vector makes the inner product with any query unbiased
// (EDEN, ICML 2022; RaBitQ, SIGMOD 2024).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace turboquant {

/// What is stored beside the codes and how a product is estimated from them.
enum class Estimator : std::uint8_t {
  kTurboQuant = 0,  ///< scale |x| sqrt(d) / <y, z>: unbiased, the default
  kQjl = 1,         ///< Algorithm 2 of the paper: b - 1 bits of level, 1 bit of projected residual
  kMse = 2,         ///< Algorithm 1: smallest reconstruction error, biased towards 0
  kTrellis = 3,     ///< kTurboQuant's scale and levels of a trellis code: smaller errors, slower to
                    ///< encode
};

/// The projection G of the residual that kQjl takes signs of.
enum class Projection : std::uint8_t {
  kOrthogonal = 0,  ///< a second fast rotation; smaller variance
  kGaussian = 1,    ///< the paper's d x d matrix of N(0, 1); O(d^2) time and memory
};

enum class Metric : std::uint8_t { kInnerProduct = 0, kL2 = 1 };

struct QuantizerOptions {
  std::size_t dimension = 0;  ///< 1 to 65,536
  int bits = 4;               ///< 1 to 4 per coordinate
  Estimator estimator = Estimator::kTurboQuant;
  Projection projection = Projection::kOrthogonal;  ///< used by kQjl alone
  bool with_norm = false;                           ///< also store |x|^2, which L2 distances need
  std::uint64_t seed = kDefaultSeed;
  /// A point c[d] that vectors lie around, such as their mean; empty for none. x - c is encoded and
  /// <c, x> kept beside it, so that errors shrink with |x - c| |q - c|. Products, distances and
  /// dequantize still are those of x.
  std::vector<float> centre;

  static constexpr std::uint64_t kDefaultSeed = 0x5475726230517561;
};

/// Immutable and safe to share between threads. Copies share their tables.
class Quantizer {
 public:
  /// Throws std::invalid_argument when an option is out of range.
  explicit Quantizer(const QuantizerOptions& options);

  const QuantizerOptions& options() const;
  std::size_t dimension() const { return options().dimension; }

  /// Bytes of one encoded vector: ceil(d * bits / 8), 1 more for kTrellis (with 3 bits
  /// 3 * ceil(d / 8) + 1), 4 for the scale, 4 more for kQjl's residual factor, 4 more with a
  /// centre, 4 more with_norm. docs/code_format.md describes them.
  std::size_t code_size() const;

  /// Bytes of n float32 vectors divided by the bytes of their codes, factors included.
  double compression_ratio() const;

  /// codes[n][code_size()] from x[n][d]. Uses OpenMP threads when n is large.
  /// Throws std::invalid_argument naming the first row that holds NaN or infinity; codes are then
  /// unspecified.
  void quantize(const float* x, std::size_t n, std::uint8_t* codes) const;

  /// x[n][d] from codes. kTurboQuant and kTrellis give the unbiased reconstruction s R^T z, kMse
  /// the one with the smallest error, kQjl the sum of both parts.
  void dequantize(const std::uint8_t* codes, std::size_t n, float* x) const;

  /// out[nq][n]: estimates of <queries[i], x_j>. Bit-equal on every processor.
  /// Throws std::invalid_argument naming the first query that holds NaN or infinity.
  void inner_products(const float* queries, std::size_t nq, const std::uint8_t* codes,
                      std::size_t n, float* out) const;

  struct Impl;  ///< internal; defined in quantizer/quantizer_impl.h
  const Impl& impl() const { return *impl_; }

 private:
  std::shared_ptr<const Impl> impl_;
};

}  // namespace turboquant
