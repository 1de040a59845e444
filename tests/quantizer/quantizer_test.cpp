#include "turboquant/quantizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/code_layout.h"
#include "tests/quantizer/vectors.h"

namespace turboquant {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

QuantizerOptions options(std::size_t d, int bits) {
  QuantizerOptions o;
  o.dimension = d;
  o.bits = bits;
  return o;
}

std::vector<std::uint8_t> encode(const Quantizer& quantizer, const std::vector<float>& x) {
  const std::size_t n = x.size() / quantizer.dimension();
  std::vector<std::uint8_t> codes(n * quantizer.code_size());
  quantizer.quantize(x.data(), n, codes.data());
  return codes;
}

float product(const Quantizer& quantizer, const std::vector<float>& q,
              const std::vector<float>& x) {
  float out;
  quantizer.inner_products(q.data(), 1, encode(quantizer, x).data(), 1, &out);
  return out;
}

TEST(Quantizer, OptionsAreValidated) {
  EXPECT_THAT([] { Quantizer{options(0, 3)}; },
              ThrowsMessage<std::invalid_argument>(HasSubstr("dimension must be 1 to 65536")));
  EXPECT_THAT([] { Quantizer{options(65537, 3)}; },
              ThrowsMessage<std::invalid_argument>(HasSubstr("65537")));
  EXPECT_THAT([] { Quantizer{options(8, 0)}; },
              ThrowsMessage<std::invalid_argument>(HasSubstr("bits must be 1 to 4")));
  EXPECT_THAT([] { Quantizer{options(8, 5)}; },
              ThrowsMessage<std::invalid_argument>(HasSubstr("not 5")));
}

TEST(Quantizer, EveryByteIsCounted) {
  for (const std::size_t d : {1, 7, 50, 100, 200, 384, 1536}) {
    for (int bits = 1; bits <= 4; ++bits) {
      const std::size_t packed = (d * static_cast<std::size_t>(bits) + 7) / 8;
      QuantizerOptions o = options(d, bits);
      EXPECT_EQ(Quantizer(o).code_size(), packed + 4);
      EXPECT_DOUBLE_EQ(Quantizer(o).compression_ratio(),
                       4.0 * static_cast<double>(d) / static_cast<double>(packed + 4));
      o.with_norm = true;
      EXPECT_EQ(Quantizer(o).code_size(), packed + 8);
      o.estimator = Estimator::kMse;
      EXPECT_EQ(Quantizer(o).code_size(), packed + 8);
      o.estimator = Estimator::kQjl;
      EXPECT_EQ(Quantizer(o).code_size(), packed + 12);
      o.estimator = Estimator::kTrellis;
      EXPECT_EQ(Quantizer(o).code_size(), packed + 9);
    }
  }
}

TEST(Quantizer, NothingIsWrittenPastARow) {
  for (const std::size_t d : {1, 50, 63, 65, 384}) {
    for (const Estimator estimator : {Estimator::kTurboQuant, Estimator::kTrellis}) {
      QuantizerOptions o = options(d, 3);
      o.estimator = estimator;
      const Quantizer quantizer(o);
      std::vector<std::uint8_t> codes(quantizer.code_size() + 16, 0xab);
      const std::vector<float> x = gaussian_vectors(1, d, 1);
      quantizer.quantize(x.data(), 1, codes.data());
      for (std::size_t i = quantizer.code_size(); i < codes.size(); ++i) EXPECT_EQ(codes[i], 0xab);
    }
  }
}

TEST(Quantizer, SignOfACodeIsItsTopBit) {
  // A 1-bit code is contained in every longer one: same rotation, same signs.
  constexpr std::size_t d = 128;
  const std::vector<float> x = gaussian_vectors(5, d, 8);
  const Quantizer one(options(d, 1)), three(options(d, 3));
  const auto codes_one = encode(one, x), codes_three = encode(three, x);
  for (std::size_t row = 0; row < 5; ++row) {
    for (std::size_t block = 0; block < d / kernels::kBlock; ++block) {
      for (std::size_t byte = 0; byte < 8; ++byte) {
        EXPECT_EQ(codes_one[row * one.code_size() + block * 8 + byte],
                  codes_three[row * three.code_size() + block * 24 + 16 + byte]);
      }
    }
  }
}

TEST(Quantizer, ReconstructionsScoreLikeTheirCodes) {
  for (const std::size_t d : {50, 384, 1000}) {
    const std::vector<float> x = gaussian_vectors(4, d, 2), q = gaussian_vectors(3, d, 3);
    for (const Estimator estimator :
         {Estimator::kTurboQuant, Estimator::kQjl, Estimator::kMse, Estimator::kTrellis}) {
      for (const Projection projection : {Projection::kOrthogonal, Projection::kGaussian}) {
        for (int bits = 1; bits <= 4; ++bits) {
          QuantizerOptions o = options(d, bits);
          o.estimator = estimator;
          o.projection = projection;
          const Quantizer quantizer(o);
          const auto codes = encode(quantizer, x);
          std::vector<float> y(x.size()), products(12);
          quantizer.dequantize(codes.data(), 4, y.data());
          quantizer.inner_products(q.data(), 3, codes.data(), 4, products.data());
          for (std::size_t i = 0; i < 3; ++i) {
            for (std::size_t j = 0; j < 4; ++j) {
              // They differ by the rounding of the query to int8: half a step a coordinate, a step
              // being max|u| / 127, and max|u| below 5 standard deviations.
              const double step = 5.0 / 127;
              const double norm = std::sqrt(dot(&y[j * d], &y[j * d], d));
              EXPECT_NEAR(
                  products[i * 4 + j], dot(&q[i * d], &y[j * d], d),
                  6 * step / std::sqrt(12.0) * norm * (estimator == Estimator::kQjl ? 3 : 1));
            }
          }
        }
      }
    }
  }
}

TEST(Quantizer, ZeroVectorsScoreZero) {
  const std::vector<float> zero(96, 0.0f), x = gaussian_vectors(1, 96, 4);
  for (const Estimator estimator :
       {Estimator::kTurboQuant, Estimator::kQjl, Estimator::kMse, Estimator::kTrellis}) {
    QuantizerOptions o = options(96, 3);
    o.estimator = estimator;
    const Quantizer quantizer(o);
    EXPECT_EQ(product(quantizer, x, zero), 0);
    EXPECT_EQ(product(quantizer, zero, x), 0);
    EXPECT_EQ(product(quantizer, zero, zero), 0);
    std::vector<float> y(96);
    quantizer.dequantize(encode(quantizer, zero).data(), 1, y.data());
    EXPECT_EQ(y, zero);
  }
}

TEST(Quantizer, HugeAndTinyNormsKeepTheirScale) {
  constexpr std::size_t d = 200;
  const std::vector<float> x = gaussian_vectors(1, d, 5), q = gaussian_vectors(1, d, 6);
  const Quantizer quantizer(options(d, 4));
  const double expected = product(quantizer, q, x);
  const auto scaled = [&](float factor) {
    std::vector<float> y = x;
    for (float& v : y) v *= factor;
    return y;
  };
  EXPECT_NEAR(product(quantizer, q, scaled(1e30f)) / 1e30, expected, 1e-3 * std::fabs(expected));
  EXPECT_NEAR(product(quantizer, q, scaled(1e-30f)) / 1e-30, expected, 1e-3 * std::fabs(expected));
  // Denormal coordinates hold few bits; the order of magnitude must survive.
  EXPECT_NEAR(product(quantizer, q, scaled(1e-42f)) / 1e-42, expected,
              0.05 * dot(q.data(), q.data(), d));
  // Products beyond float saturate to infinity, never to NaN.
  std::vector<float> huge = scaled(1e30f);
  EXPECT_EQ(product(quantizer, huge, huge), std::numeric_limits<float>::infinity());
  for (float& v : huge) v = std::copysign(std::numeric_limits<float>::max(), v);
  EXPECT_FALSE(std::isnan(product(quantizer, huge, huge)));
  EXPECT_FALSE(std::isnan(product(quantizer, q, huge)));
}

// Parts of <c, x> overflow to both sides, so that their sum is no number.
TEST(Quantizer, FactorsAreFiniteNumbersWithAnyCentre) {
  constexpr std::size_t kD = 64;
  for (const auto estimator : {Estimator::kTurboQuant, Estimator::kQjl, Estimator::kTrellis}) {
    QuantizerOptions o = options(kD, 3);
    o.estimator = estimator;
    o.with_norm = true;
    const std::size_t packed = Quantizer(o).code_size();
    o.centre.resize(kD);
    for (std::size_t i = 0; i < kD; ++i) o.centre[i] = i % 3 == 0 ? -3e38f : 3e38f;
    const Quantizer quantizer(o);
    const std::vector<float> x(kD, 100);
    const std::vector<std::uint8_t> row = encode(quantizer, x);
    ASSERT_EQ(row.size(), packed + 4);
    float factors[3];  // the last two of them: <c, x> and the norm
    std::memcpy(factors, row.data() + row.size() - 12, 12);
    for (const float factor : factors) EXPECT_TRUE(std::isfinite(factor)) << factor;
  }
}

TEST(Quantizer, NaNAndInfinityAreRefusedWithTheRow) {
  constexpr std::size_t d = 40;
  const Quantizer quantizer(options(d, 2));
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x = gaussian_vectors(10, d, 7);
    x[6 * d + 39] = bad;
    x[8 * d] = bad;
    std::vector<std::uint8_t> codes(10 * quantizer.code_size());
    EXPECT_THAT([&] { quantizer.quantize(x.data(), 10, codes.data()); },
                ThrowsMessage<std::invalid_argument>(HasSubstr("row 6 ")));
    std::vector<float> out(10);
    EXPECT_THAT([&] { quantizer.inner_products(x.data(), 10, codes.data(), 1, out.data()); },
                ThrowsMessage<std::invalid_argument>(HasSubstr("query 6 ")));
  }
}

TEST(Quantizer, CodesDoNotDependOnTheBatch) {
  constexpr std::size_t d = 384, n = 700;
  const Quantizer quantizer(options(d, 3));
  const std::vector<float> x = gaussian_vectors(n, d, 9);
  const auto together = encode(quantizer, x);
  for (std::size_t i = 0; i < n; i += 97) {
    const std::vector<float> row(x.begin() + static_cast<std::ptrdiff_t>(i * d),
                                 x.begin() + static_cast<std::ptrdiff_t>((i + 1) * d));
    const auto alone = encode(quantizer, row);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), &together[i * quantizer.code_size()]));
  }
}

TEST(Quantizer, EmptyInput) {
  const Quantizer quantizer(options(16, 4));
  quantizer.quantize(nullptr, 0, nullptr);
  quantizer.dequantize(nullptr, 0, nullptr);
  quantizer.inner_products(nullptr, 0, nullptr, 0, nullptr);
}

// The error of an estimate shrinks with the distances from the centre, and what is there is exact.
TEST(Quantizer, CentredErrorsShrinkWithTheDistance) {
  constexpr std::size_t kD = 96;
  constexpr std::size_t kN = 300;
  const std::vector<float> centre = gaussian_vectors(1, kD, 11);
  QuantizerOptions o = options(kD, 2);
  const Quantizer plain(o);
  o.centre = centre;
  const Quantizer centred(o);
  EXPECT_EQ(centred.code_size(), plain.code_size() + 4);
  double errors[2] = {};
  for (const float spread : {0.0f, 0.1f, 0.5f}) {
    std::vector<float> x = gaussian_vectors(kN, kD, 12);
    std::vector<float> q = gaussian_vectors(20, kD, 13);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = centre[i % kD] + spread * x[i];
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = centre[i % kD] + spread * q[i];
    for (const Quantizer* quantizer : {&plain, &centred}) {
      std::vector<std::uint8_t> codes(kN * quantizer->code_size());
      quantizer->quantize(x.data(), kN, codes.data());
      std::vector<float> products(20 * kN);
      quantizer->inner_products(q.data(), 20, codes.data(), kN, products.data());
      double sum = 0;
      for (std::size_t i = 0; i < products.size(); ++i) {
        const double error = products[i] - dot(&q[i / kN * kD], &x[i % kN * kD], kD);
        sum += error * error / static_cast<double>(products.size());
      }
      errors[quantizer == &centred ? 1 : 0] = sum;
      std::vector<float> back(x.size());
      quantizer->dequantize(codes.data(), kN, back.data());
      double distance = 0;
      for (std::size_t i = 0; i < x.size(); ++i) distance += std::pow(back[i] - x[i], 2);
      // 2 bits leave D / (1 - D) = .133 of the squared length that is encoded.
      const double length = (quantizer == &centred ? 0 : 1) + spread * spread;
      EXPECT_NEAR(distance / static_cast<double>(x.size()), 0.133 * length, 0.03 * length + 1e-9);
    }
    // Both distances count, where without a centre one length and one distance from its direction
    // do.
    EXPECT_LE(errors[1], 1.5 * 0.133 * kD * std::pow(spread, 4) + 1e-7) << spread;
    EXPECT_GE(errors[0], 4 * errors[1]) << spread;
  }
  o.centre.pop_back();
  EXPECT_THAT([&] { Quantizer{o}; },
              ThrowsMessage<std::invalid_argument>(HasSubstr("dimension 95")));
  o.centre.push_back(std::numeric_limits<float>::infinity());
  EXPECT_THAT([&] { Quantizer{o}; }, ThrowsMessage<std::invalid_argument>(HasSubstr("centre")));
}

}  // namespace
}  // namespace turboquant
