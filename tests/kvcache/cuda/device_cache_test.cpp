#include "kvcache/device_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "kernels/cuda/error.h"
#include "tests/kvcache/cuda/device_util.h"

namespace turboquant::kv::test {
namespace {

struct Shape {
  std::size_t kv_heads, group, dim;
  int key_bits, value_bits;
  std::size_t sinks, tail, tokens;
};

CacheOptions options_of(const Shape& s) {
  CacheOptions made = options(s.kv_heads, s.group, s.dim, s.dim, s.key_bits, s.value_bits);
  made.sink_tokens = s.sinks;
  made.tail_tokens = s.tail;
  return made;
}

// Both compute the same integer scores; what differs is the rounding of weights: to 16 bits of a
// page's largest here; there 7 bits while that loses no more than a thousandth of all weights.
void expect_near(const Answer& device, const Answer& host, const Reference& exact,
                 std::size_t dim) {
  ASSERT_EQ(device.out.size(), host.out.size());
  for (std::size_t r = 0; r < host.lse.size(); ++r) {
    double to_host = 0;
    double to_exact = 0;
    double norm = 0;
    for (std::size_t i = 0; i < dim; ++i) {
      const std::size_t at = r * dim + i;
      ASSERT_TRUE(std::isfinite(device.out[at])) << "row " << r << ", channel " << i;
      to_host += std::pow(device.out[at] - host.out[at], 2);
      to_exact += std::pow(device.out[at] - exact.out[at], 2);
      norm += std::pow(host.out[at], 2);
    }
    // The length of a value is about sqrt(dim).
    EXPECT_LE(std::sqrt(to_host), 2e-3 * std::sqrt(static_cast<double>(dim))) << "row " << r;
    EXPECT_LE(std::sqrt(to_exact), exact.out_error[r]) << "row " << r;
    if (std::isinf(host.lse[r])) {
      EXPECT_EQ(device.lse[r], host.lse[r]) << "row " << r;
      EXPECT_EQ(norm, 0) << "row " << r;
      continue;
    }
    EXPECT_NEAR(device.lse[r], host.lse[r], 1e-4 * (1 + std::fabs(host.lse[r]))) << "row " << r;
    EXPECT_NEAR(device.lse[r], exact.lse[r], exact.lse_error[r]) << "row " << r;
  }
}

class DeviceShapes : public ::testing::TestWithParam<Shape> {};

TEST_P(DeviceShapes, PagesAreTheHostsBytesAndAttentionIsTheHosts) {
  TQ_NEEDS_DEVICE();
  const Shape& s = GetParam();
  Cache host(options_of(s));
  DeviceCache device(options_of(s), device_options(s.tokens + 64));
  const std::size_t sequence = host.create_sequence();
  ASSERT_EQ(device.create_sequence(), sequence);
  // Many at once, then one at a time, then some.
  const std::size_t many = s.tokens * 2 / 3;
  std::uint32_t seed = 1;
  append_to_both(host, device, sequence, many, seed);
  for (std::size_t i = 0; i < std::min<std::size_t>(70, s.tokens - many); ++i) {
    append_to_both(host, device, sequence, 1, ++seed * 10);
  }
  const std::size_t left = s.tokens - host.length(0, sequence);
  append_to_both(host, device, sequence, left / 2, 4001);
  append_to_both(host, device, sequence, left - left / 2, 4003);
  ASSERT_EQ(device.length(0, sequence), s.tokens);
  EXPECT_EQ(device.serialize(sequence), host.serialize(sequence));

  const std::size_t query_heads = s.kv_heads * s.group;
  for (const std::size_t queries : {std::size_t{1}, std::size_t{5}}) {
    if (queries > s.tokens) continue;
    const auto q = normals(queries * query_heads * s.dim, 77);
    expect_near(attend_on_device(device, {sequence}, {queries}, q),
                attend(host, sequence, queries, q), reference(host, sequence, queries, q), s.dim);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, DeviceShapes,
    ::testing::Values(Shape{2, 4, 128, 4, 4, 4, 64, 1000}, Shape{2, 4, 128, 3, 3, 0, 0, 640},
                      Shape{1, 1, 64, 4, 3, 4, 64, 700}, Shape{2, 8, 64, 2, 4, 0, 17, 515},
                      Shape{1, 16, 128, 4, 4, 4, 64, 900}, Shape{1, 7, 128, 3, 4, 1, 3, 400},
                      Shape{2, 2, 256, 4, 4, 4, 64, 700}, Shape{1, 5, 256, 2, 2, 0, 0, 256},
                      Shape{1, 12, 64, 3, 2, 4, 100, 800}, Shape{1, 4, 128, 4, 2, 4, 64, 3},
                      Shape{3, 3, 256, 3, 3, 4, 64, 333}, Shape{1, 4, 128, 4, 4, 0, 0, 9000},
                      Shape{1, 8, 256, 3, 4, 4, 64, 500}, Shape{2, 8, 128, 4, 3, 4, 64, 600}));

class DeviceOptionsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    TQ_NEEDS_DEVICE();
    host_ = std::make_unique<Cache>(options_of(shape_));
    device_ = std::make_unique<DeviceCache>(options_of(shape_), device_options(4096));
    sequence_ = host_->create_sequence();
    device_->create_sequence();
    append_to_both(*host_, *device_, sequence_, shape_.tokens, 9);
  }
  void compare(const AttentionOptions& options, std::size_t queries) {
    const auto q = normals(queries * 8 * shape_.dim, 31);
    expect_near(attend_on_device(*device_, {sequence_}, {queries}, q, options),
                attend(*host_, sequence_, queries, q, options),
                reference(*host_, sequence_, queries, q, options), shape_.dim);
  }
  const Shape shape_{2, 4, 128, 4, 4, 4, 64, 777};
  std::unique_ptr<Cache> host_;
  std::unique_ptr<DeviceCache> device_;
  std::size_t sequence_ = 0;
};

TEST_F(DeviceOptionsTest, Windows) {
  for (const std::size_t window : {1, 5, 64, 100, 300, 5000}) {
    AttentionOptions options;
    options.window = window;
    compare(options, 1);
    compare(options, 130);
  }
}

TEST_F(DeviceOptionsTest, SoftcapScaleSinksAndNoCausality) {
  AttentionOptions options;
  options.softcap = 2;
  compare(options, 3);
  options.causal = false;
  options.scale = 0.3f;
  compare(options, 3);
  const std::vector<float> sinks{0, 1, -2, 3, 10, -100, 0.5f, 2};
  options.sinks = sinks.data();
  compare(options, 3);
}

TEST_F(DeviceOptionsTest, Masks) {
  const std::size_t queries = 3;
  std::vector<float> mask = normals(queries * 800, 3);
  for (std::size_t i = 0; i < mask.size(); i += 3) mask[i] = -HUGE_VALF;
  std::fill_n(mask.begin() + 800, 800, -HUGE_VALF);  // the second query sees nothing
  AttentionOptions options;
  options.mask = mask.data();
  options.mask_stride = 800;
  compare(options, queries);
}

TEST_F(DeviceOptionsTest, AllQueriesOfAPrompt) { compare({}, shape_.tokens); }

TEST_F(DeviceOptionsTest, TruncationInEveryPartOfASequence) {
  for (const std::size_t tokens : {770, 700, 650, 500, 449, 68, 67, 4, 3, 1}) {
    host_->truncate(sequence_, tokens);
    device_->truncate(sequence_, tokens);
    compare({}, 1);
    EXPECT_EQ(device_->serialize(sequence_), host_->serialize(sequence_)) << tokens << " tokens";
    append_to_both(*host_, *device_, sequence_, tokens > 100 ? 40 : 200,
                   static_cast<std::uint32_t>(tokens));
    compare({}, 2);
  }
}

TEST_F(DeviceOptionsTest, CopiesShareAndThenPart) {
  ASSERT_EQ(host_->copy_sequence(sequence_), device_->copy_sequence(sequence_));
  append_to_both(*host_, *device_, 1, 200, 55);
  append_to_both(*host_, *device_, 0, 100, 56);
  for (const std::size_t sequence : {0, 1}) {
    EXPECT_EQ(device_->serialize(sequence), host_->serialize(sequence));
  }
  host_->free_sequence(0);
  device_->free_sequence(0);
  EXPECT_EQ(device_->serialize(1), host_->serialize(1));
  EXPECT_THROW(device_->length(0, 0), std::out_of_range);
}

TEST_F(DeviceOptionsTest, SavedSequencesMoveBetweenHostAndDevice) {
  const std::vector<std::uint8_t> saved = host_->serialize(sequence_);
  const std::size_t there = device_->restore(saved.data(), saved.size());
  EXPECT_EQ(device_->serialize(there), saved);
  const std::size_t width = shape_.tokens * shape_.kv_heads * shape_.dim;
  std::vector<float> keys(width), values(width), host_keys(width), host_values(width);
  device_->dequantize(0, there, keys.data(), values.data());
  host_->dequantize(0, sequence_, host_keys.data(), host_values.data());
  EXPECT_EQ(keys, host_keys);
  EXPECT_EQ(values, host_values);
}

TEST_F(DeviceOptionsTest, BatchesOfDifferentLengthsAndQueries) {
  std::vector<std::size_t> sequences{sequence_};
  for (const std::size_t tokens : {1, 66, 300, 1500}) {
    ASSERT_EQ(host_->create_sequence(), device_->create_sequence());
    append_to_both(*host_, *device_, sequences.size(), tokens,
                   static_cast<std::uint32_t>(100 + tokens));
    sequences.push_back(sequences.size());
  }
  const std::vector<std::size_t> queries{1, 1, 1, 7, 300};
  const auto q = normals(310 * 8 * shape_.dim, 8);
  const Answer device = attend_on_device(*device_, sequences, queries, q);
  Answer host{std::vector<float>(device.out.size()), std::vector<float>(device.lse.size())};
  kv::attend(*host_, 0, {sequences.size(), sequences.data(), queries.data()}, {}, q.data(),
             host.out.data(), host.lse.data());
  for (std::size_t i = 0; i < host.out.size(); ++i) {
    ASSERT_NEAR(device.out[i], host.out[i], 5e-3) << i;
  }
  for (std::size_t i = 0; i < host.lse.size(); ++i) {
    ASSERT_NEAR(device.lse[i], host.lse[i], 1e-3) << i;
  }
}

// One token that has nearly all weight beside many with very little each, which coarse digits of
// weights would drop.
TEST_F(DeviceOptionsTest, SmallWeightsAreNotLost) {
  const std::size_t n = 2000, width = shape_.kv_heads * shape_.dim;
  std::vector<float> keys(n * width), values(n * width, 0.0f);
  const auto direction = normals(shape_.dim, 4);
  for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
    for (std::size_t i = 0; i < shape_.dim; ++i) {
      keys[100 * width + h * shape_.dim + i] = direction[i];
      for (std::size_t t = 0; t < n; ++t) {
        values[t * width + h * shape_.dim + i] = t == 100 ? direction[i] : 1.0f;
      }
    }
  }
  ASSERT_EQ(host_->create_sequence(), device_->create_sequence());
  host_->append(0, 1, 0, n, keys.data(), values.data());
  const DeviceArray<float> on_keys(keys), on_values(values);
  device_->append(0, {1}, n, cuda::KvElement::kFloat, on_keys.get(), on_values.get(), nullptr);
  std::vector<float> q;
  for (std::size_t h = 0; h < 8; ++h) q.insert(q.end(), direction.begin(), direction.end());
  AttentionOptions options;
  options.scale = 0.06f;
  expect_near(attend_on_device(*device_, {1}, {1}, q, options), attend(*host_, 1, 1, q, options),
              reference(*host_, 1, 1, q, options), shape_.dim);
}

// Each tile has a larger score than all before it, by more than the digits of weights span in the
// end, and values are of very different lengths.
TEST_F(DeviceOptionsTest, ScoresThatGrow) {
  const std::size_t n = 2000, width = shape_.kv_heads * shape_.dim;
  std::vector<float> keys = normals(n * width, 7), values = normals(n * width, 8);
  const auto direction = normals(shape_.dim, 4);
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t i = 0; i < width; ++i) {
      keys[t * width + i] =
          0.1f * keys[t * width + i] + direction[i % shape_.dim] * static_cast<float>(t) / 2000.0f;
      values[t * width + i] *= std::pow(10.0f, -static_cast<float>(t % 3));
    }
  }
  ASSERT_EQ(host_->create_sequence(), device_->create_sequence());
  host_->append(0, 1, 0, n, keys.data(), values.data());
  const DeviceArray<float> on_keys(keys), on_values(values);
  device_->append(0, {1}, n, cuda::KvElement::kFloat, on_keys.get(), on_values.get(), nullptr);
  for (const std::size_t queries : {1, 3, 12}) {
    std::vector<float> q;
    for (std::size_t r = 0; r < 8 * queries; ++r) {
      for (const float x : direction) q.push_back(x * static_cast<float>(r + 1) / 8.0f);
    }
    AttentionOptions options;
    options.scale = 0.3f;
    expect_near(attend_on_device(*device_, {1}, {queries}, q, options),
                attend(*host_, 1, queries, q, options), reference(*host_, 1, queries, q, options),
                shape_.dim);
  }
}

TEST_F(DeviceOptionsTest, ScoresAreThoseOfTheAttention) {
  const std::size_t stride = 800;
  const auto q = normals(8 * shape_.dim, 12);
  const DeviceArray<float> on_q(q);
  const DeviceArray<std::uint16_t> scores(std::vector<std::uint16_t>(8 * stride, 0x7e00));
  DeviceAttention attention;
  attention.q = on_q.get();
  attention.scores = scores.get();
  attention.score_stride = stride;
  const std::size_t one = 1;
  device_->attend(0, {1, &sequence_, &one}, {}, attention, nullptr);
  const std::vector<std::uint16_t> halves = scores.values();
  std::vector<float> got(halves.size());
  host_->kernels().to_float(halves.data(), halves.size(), got.data());
  const std::size_t width = shape_.tokens * shape_.kv_heads * shape_.dim;
  std::vector<float> keys(width), values(width);
  host_->dequantize(0, sequence_, keys.data(), values.data());
  for (std::size_t h = 0; h < 8; ++h) {
    for (std::size_t t = 0; t < shape_.tokens; ++t) {
      double dot = 0;
      for (std::size_t i = 0; i < shape_.dim; ++i) {
        dot += double{q[h * shape_.dim + i]} * keys[(t * 2 + h / 4) * shape_.dim + i];
      }
      // A query rounded to int8: about 0.3 of its step, times the length of a key.
      ASSERT_NEAR(got[h * stride + t], dot / std::sqrt(128.0), 0.05) << h << ", " << t;
    }
  }
}

TEST_F(DeviceOptionsTest, WrongCallsAreRefusedAndChangeNothing) {
  const auto before = device_->serialize(sequence_);
  const DeviceArray<float> tokens(std::vector<float>(5000 * 256));
  const auto append = [&](std::size_t layer, const std::vector<std::size_t>& sequences,
                          std::size_t n) {
    device_->append(layer, sequences, n, cuda::KvElement::kFloat, tokens.get(), tokens.get(),
                    nullptr);
  };
  EXPECT_THROW(append(1, {0}, 1), std::out_of_range);
  EXPECT_THROW(append(0, {3}, 1), std::out_of_range);
  EXPECT_THROW(append(0, {0, 0}, 1), std::invalid_argument);
  EXPECT_THROW(append(0, {0}, 4000), std::out_of_range);  // of 4,096 a sequence
  EXPECT_THROW(device_->truncate(0, 778), std::out_of_range);
  EXPECT_THROW(attend_on_device(*device_, {0}, {778}, std::vector<float>(778 * 8 * 128)),
               std::invalid_argument);
  EXPECT_EQ(device_->serialize(sequence_), before);
}

TEST(DeviceCacheMemory, AFullPoolLosesNothing) {
  TQ_NEEDS_DEVICE();
  const Shape s{1, 4, 128, 4, 4, 4, 64, 0};
  Cache host(options_of(s));
  DeviceCache device(options_of(s), device_options(4096, 256));
  host.create_sequence();
  device.create_sequence();
  append_to_both(host, device, 0, 300, 3);
  const DeviceArray<float> tokens(normals(400 * 128, 1));
  const auto append = [&](std::size_t n) {
    device.append(0, {0}, n, cuda::KvElement::kFloat, tokens.get(), tokens.get(), nullptr);
  };
  EXPECT_THROW(append(400), NoMemory);
  EXPECT_EQ(device.serialize(0), host.serialize(0));
  append_to_both(host, device, 0, 80, 8);
  EXPECT_EQ(device.serialize(0), host.serialize(0));
  try {
    for (int i = 0; i < 200; ++i) append(1);
    FAIL() << "a pool of 4 pages took more";
  } catch (const NoMemory& e) {
    EXPECT_NE(std::string(e.what()).find("pool"), std::string::npos) << e.what();
  }
}

TEST(DeviceCacheMemory, TooLittleForAPoolIsSaidAndChangesNothing) {
  TQ_NEEDS_DEVICE();
  const Shape s{8, 1, 128, 4, 4, 4, 64, 0};
  cuda::synchronize_device();
  const std::size_t free = cuda::free_memory(0);
  CacheOptions many = options_of(s);
  many.max_sequences = 64;
  EXPECT_THROW(DeviceCache(many, device_options(1 << 24)), NoMemory);
  EXPECT_EQ(cuda::free_memory(0), free);
}

TEST(DeviceCacheErrors, WhatADeviceCannotDoIsRefused) {
  const auto refused = [](CacheOptions made, const char* word) {
    try {
      DeviceCache cache(std::move(made), device_options(1000));
      FAIL() << "no error about " << word;
    } catch (const std::invalid_argument& e) {
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    }
  };
  refused(options(1, 1, 80, 80, 4, 4), "64, 128 or 256");
  refused(options(1, 1, 128, 64, 4, 4), "same size");
  refused(options(1, 1, 128, 128, 1, 4), "bits");
  refused(options(1, 1, 128, 128, 4, kRawBits), "bits");
  CacheOptions outliers = options(1, 1, 128, 128, 3, 3);
  outliers.layers[0].keys.outliers = 4;
  refused(outliers, "outlier");
  CacheOptions long_pages = options(1, 1, 128, 128, 4, 4);
  long_pages.page_tokens = 128;
  refused(long_pages, "64 tokens");
  if (cuda::device_count() == 0) refused(options(1, 1, 128, 128, 4, 4), "no CUDA device");
}

}  // namespace
}  // namespace turboquant::kv::test
