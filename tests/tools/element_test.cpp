#include "tools/io/element.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "quantizer/half.h"

namespace turboquant::io {
namespace {

// The value of a half from its definition, without the tricks of the implementation.
double half_value(std::uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  const double sign = (half & 0x8000) ? -1.0 : 1.0;
  if (exponent == 31) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(Half, EveryValueIsExactAndComesBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const double expected = half_value(half);
    const float value = half_to_float(half);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(value)))) << bits;
      continue;
    }
    ASSERT_EQ(value, expected) << bits;
    ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
    ASSERT_EQ(float_to_half(value), half) << bits;
  }
}

TEST(Half, RoundsToNearestAndTiesToEven) {
  for (std::uint32_t bits = 0; bits + 1 < 0x7c00; ++bits) {
    const auto low = static_cast<std::uint16_t>(bits);
    const auto high = static_cast<std::uint16_t>(bits + 1);
    const auto middle = static_cast<float>((half_value(low) + half_value(high)) / 2);
    EXPECT_EQ(float_to_half(middle), (bits & 1) ? high : low) << bits;
    EXPECT_EQ(float_to_half(std::nextafter(middle, 0.0F)), low) << bits;
    EXPECT_EQ(float_to_half(std::nextafter(middle, 1e9F)), high) << bits;
    EXPECT_EQ(float_to_half(-middle), 0x8000 | ((bits & 1) ? high : low)) << bits;
  }
}

TEST(Half, TooLargeBecomesInfinity) {
  EXPECT_EQ(float_to_half(65519.996F), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0F), 0x7c00);
  EXPECT_EQ(float_to_half(3e38F), 0x7c00);
  EXPECT_EQ(float_to_half(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(float_to_half(1e-30F), 0);
}

TEST(Element, NamesAndSizes) {
  for (const char* name : {"f2", "f4", "f8", "i1", "u1", "i4", "u4", "i8", "u8"}) {
    const auto element = parse_element(name);
    ASSERT_TRUE(element) << name;
    EXPECT_EQ(element_name(*element), name);
    EXPECT_EQ(element_size(*element), static_cast<std::size_t>(name[1] - '0'));
    EXPECT_EQ(is_float(*element), name[0] == 'f');
  }
  EXPECT_FALSE(parse_element("f3"));
  EXPECT_FALSE(parse_element(""));
}

TEST(Element, UnalignedBytesConvert) {
  std::vector<char> bytes(1 + 3 * sizeof(double));
  const double values[] = {1.5, -2.25, 1e300};
  std::memcpy(bytes.data() + 1, values, sizeof values);
  float out[3];
  to_floats(Element::kF8, bytes.data() + 1, 3, out);
  EXPECT_EQ(out[0], 1.5F);
  EXPECT_EQ(out[1], -2.25F);
  EXPECT_TRUE(std::isinf(out[2]));
}

TEST(Element, IntegersKeepTheirRange) {
  const std::uint64_t large[] = {5, std::uint64_t{1} << 63};
  std::int64_t out[2];
  EXPECT_EQ(to_integers(Element::kU8, large, 2, out), 1U);
  EXPECT_EQ(out[0], 5);
  EXPECT_EQ(to_integers(Element::kI8, large, 2, out), 2U);
  EXPECT_EQ(out[1], std::numeric_limits<std::int64_t>::min());

  struct Case {
    Element element;
    std::int64_t low;
    std::int64_t high;
  };
  for (const Case& c :
       {Case{Element::kI1, -128, 127}, Case{Element::kU1, 0, 255},
        Case{Element::kI4, -2147483648LL, 2147483647LL}, Case{Element::kU4, 0, 4294967295LL}}) {
    const std::int64_t in[] = {c.low, c.high, c.high + 1};
    const std::int64_t below[] = {c.low - 1};
    std::int64_t stored[3] = {};
    std::int64_t back[2];
    EXPECT_EQ(from_integers(c.element, in, 3, stored), 2U) << element_name(c.element);
    EXPECT_EQ(to_integers(c.element, stored, 2, back), 2U);
    EXPECT_EQ(back[0], c.low);
    EXPECT_EQ(back[1], c.high);
    EXPECT_EQ(from_integers(c.element, below, 1, stored), 0U);
  }
  const std::int64_t negative[] = {-1};
  std::uint64_t stored[1];
  EXPECT_EQ(from_integers(Element::kU8, negative, 1, stored), 0U);
}

}  // namespace
}  // namespace turboquant::io
