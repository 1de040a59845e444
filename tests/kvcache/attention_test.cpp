// Attention from codes is attention on what the codes decode to, for every geometry and option.
#include "kvcache/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "tests/forced_isa.h"
#include "tests/kvcache/kv_util.h"

namespace turboquant::kv {
namespace {

using test::Answer;
using test::normals;

// The runs that force a backend try a part of the sizes.
bool few() { return std::getenv("TQ_KV_FEW") != nullptr; }

// q may hold more queries: the first are asked.
void expect_close(const Cache& cache, std::size_t sequence, const test::Exact& exact,
                  const std::vector<float>& q, std::size_t queries, const AttentionOptions& options,
                  const std::string& what) {
  const CacheOptions& o = cache.options();
  const Answer answer = test::attend(cache, sequence, queries, q, options);
  const test::Reference expected = exact(queries, options);
  for (std::size_t r = 0; r < expected.lse.size(); ++r) {
    double squares = 0;
    for (std::size_t i = 0; i < o.value_dim; ++i) {
      const std::size_t at = r * o.value_dim + i;
      squares += std::pow(answer.out[at] - expected.out[at], 2);
    }
    ASSERT_LE(std::sqrt(squares), expected.out_error[r]) << what << ", row " << r;
    if (std::isinf(expected.lse[r])) {
      ASSERT_EQ(answer.lse[r], -HUGE_VALF) << what << ", row " << r;
    } else {
      ASSERT_NEAR(answer.lse[r], expected.lse[r], expected.lse_error[r]) << what << ", row " << r;
    }
  }
}

void expect_close(const Cache& cache, std::size_t sequence, std::size_t queries,
                  const AttentionOptions& options, const std::string& what) {
  const CacheOptions& o = cache.options();
  const auto q = normals(queries * o.query_heads * o.key_dim, 77);
  expect_close(cache, sequence, {cache, sequence, queries, q}, q, queries, options, what);
}

TEST(Attention, EveryHeadSizeAndBits) {
  for (const std::size_t dim : {1, 50, 64, 80, 96, 112, 128, 256}) {
    for (const int bits : {1, 2, 3, 4, kRawBits}) {
      if (few() && dim != 64 && dim != 80) continue;
      Cache cache(test::options(1, 2, dim, dim, bits, bits));
      const std::size_t sequence = cache.create_sequence();
      test::fill(cache, sequence, 150, 1);
      for (const std::size_t queries : {1, 20}) {
        expect_close(cache, sequence, queries, {},
                     std::to_string(dim) + " " + std::to_string(bits) + " bits, " +
                         std::to_string(queries) + " queries");
      }
    }
  }
}

TEST(Attention, KeysAndValuesOfDifferentSizesAndBits) {
  for (const int key_bits : {2, 4, kRawBits}) {
    for (const int value_bits : {1, 3, kRawBits}) {
      Cache cache(test::options(2, 3, 192, 128, key_bits, value_bits));
      const std::size_t sequence = cache.create_sequence();
      test::fill(cache, sequence, 200, 1);
      expect_close(cache, sequence, 3, {}, std::to_string(key_bits) + std::to_string(value_bits));
    }
  }
}

TEST(Attention, EveryGroupSize) {
  for (std::size_t group = 1; group <= 16; ++group) {
    Cache cache(test::options(2, group, 64, 64, 4, 4));
    const std::size_t sequence = cache.create_sequence();
    test::fill(cache, sequence, 130, 1);
    for (const std::size_t queries : {1, 7}) {
      expect_close(cache, sequence, queries, {}, std::to_string(group));
    }
  }
}

TEST(Attention, QueriesFrom1To130AroundPages) {
  Cache cache(test::options(1, 4, 64, 64, 4, 4));
  for (const std::size_t n : {63, 64, 65, 127, 128, 129, 130, 193}) {
    const std::size_t sequence = cache.create_sequence();
    test::fill(cache, sequence, n, 1);
    for (const std::size_t queries : {1, 2, 15, 16, 17, 63, 64, 65, 130}) {
      if (queries > n) continue;
      expect_close(cache, sequence, queries, {},
                   std::to_string(queries) + " of " + std::to_string(n));
    }
    cache.free_sequence(sequence);
  }
}

TEST(Attention, WindowSoftcapMaskSinks) {
  CacheOptions made = test::options(2, 4, 64, 64, 4, 4);
  made.sink_tokens = 4;
  made.tail_tokens = 20;
  Cache cache(made);
  const std::size_t sequence = cache.create_sequence();
  test::fill(cache, sequence, 300, 1);
  const std::vector<float> sinks = normals(8, 5);
  std::vector<float> mask(30 * 320);
  for (std::size_t i = 0; i < mask.size(); ++i) {
    mask[i] = i % 3 == 0 ? -HUGE_VALF : 0.01f * static_cast<float>(i % 7);
  }
  for (std::size_t i = 0; i < 320; ++i) mask[2 * 320 + i] = -HUGE_VALF;  // query 2 sees nothing
  for (const std::size_t queries : {1, 30}) {
    for (const std::size_t window : {0, 1, 63, 64, 100}) {
      for (const bool causal : {true, false}) {
        for (const float softcap : {0.0f, 2.0f}) {
          AttentionOptions options;
          options.window = window;
          options.causal = causal;
          options.softcap = softcap;
          const std::string what = std::to_string(queries) + " window " + std::to_string(window) +
                                   (causal ? " causal" : "");
          expect_close(cache, sequence, queries, options, what);
          options.sinks = sinks.data();
          expect_close(cache, sequence, queries, options, what + " sinks");
          options.mask = mask.data();
          options.mask_stride = 320;
          expect_close(cache, sequence, queries, options, what + " sinks, mask");
          options.sinks = nullptr;
          options.scale = 0.3f;
          expect_close(cache, sequence, queries, options, what + " mask, scale");
        }
      }
    }
  }
}

// One choice of everything that attention depends on beside head size and bits.
struct Combination {
  std::size_t group, tokens, queries, window;
  bool softcap, sinks;
};

// Groups of 1 to 16, page borders and their neighbours, 1 to 130 queries: all of them.
std::vector<Combination> all_combinations() {
  std::vector<Combination> made;
  for (std::size_t group = 1; group <= 16; ++group) {
    for (const std::size_t tokens : {63, 64, 65, 191, 192, 193}) {
      for (const std::size_t queries : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 130}) {
        if (queries > tokens) continue;
        for (const std::size_t window : {0, 1, 63, 64, 65, 100}) {
          for (const bool softcap : {false, true}) {
            for (const bool sinks : {false, true}) {
              made.push_back({group, tokens, queries, window, softcap, sinks});
            }
          }
        }
      }
    }
  }
  return made;
}

// A cache of so many tokens and what its last queries ask.
struct Asked {
  Asked(std::size_t dim, int bits, std::size_t group, std::size_t tokens, std::size_t queries)
      : cache(test::options(1, group, dim, dim, bits, bits)), sequence(cache.create_sequence()) {
    test::fill(cache, sequence, tokens, 1);
    q = normals(queries * group * dim, 77);
    exact.emplace(cache, sequence, queries, q);
  }
  Cache cache;
  std::size_t sequence;
  std::vector<float> q;
  std::optional<test::Exact> exact;
};

class Combinations : public ::testing::TestWithParam<std::tuple<std::size_t, int>> {};

// A sample; TQ_KV_FULL=1 tries all of them (an hour: share them out with GTEST_TOTAL_SHARDS).
TEST_P(Combinations, AgreeWithTheDequantizedCache) {
  const auto [dim, bits] = GetParam();
  if (few() && dim != 64 && dim != 80) return;
  const bool full = std::getenv("TQ_KV_FULL") != nullptr;
  std::vector<Combination> tried = all_combinations();
  if (!full) {
    std::mt19937 random(static_cast<std::uint32_t>(dim * 32) + static_cast<std::uint32_t>(bits));
    std::shuffle(tried.begin(), tried.end(), random);
    tried.resize(few() ? 1 : 3);
  }
  std::unique_ptr<Asked> asked;
  std::pair<std::size_t, std::size_t> made_for;
  for (const Combination& c : tried) {
    const std::pair<std::size_t, std::size_t> wanted{c.group, c.tokens};
    if (asked == nullptr || made_for != wanted || !full) {
      const std::size_t queries = full ? std::min<std::size_t>(130, c.tokens) : c.queries;
      asked = std::make_unique<Asked>(dim, bits, c.group, c.tokens, queries);
      made_for = wanted;
    }
    const std::vector<float> sinks = normals(c.group, 5);
    AttentionOptions options;
    options.window = c.window;
    options.softcap = c.softcap ? 2.0f : 0.0f;
    options.sinks = c.sinks ? sinks.data() : nullptr;
    expect_close(asked->cache, asked->sequence, *asked->exact, asked->q, c.queries, options,
                 "group " + std::to_string(c.group) + ", " + std::to_string(c.queries) + " of " +
                     std::to_string(c.tokens) + ", window " + std::to_string(c.window) +
                     (c.softcap ? ", softcap" : "") + (c.sinks ? ", sinks" : ""));
    if (HasFatalFailure()) return;
  }
  ASSERT_EQ(tried.size(), full ? 21888u : tried.size());
}

INSTANTIATE_TEST_SUITE_P(HeadSizesAndBits, Combinations,
                         ::testing::Combine(::testing::Values(64, 80, 96, 112, 128, 256),
                                            ::testing::Values(1, 2, 3, 4, kRawBits)));

TEST(Attention, OutlierChannels) {
  for (const int bits : {2, 3}) {
    CacheOptions made = test::options(2, 4, 128, 128, bits, bits);
    made.layers[0].keys.outliers = 32;
    made.layers[0].values.outliers = 32;
    Cache cache(made);
    const std::size_t sequence = cache.create_sequence();
    std::vector<float> keys = normals(200 * 2 * 128, 1);
    std::vector<float> values = normals(200 * 2 * 128, 2);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (i % 4 == 1) keys[i] *= 5;
      if (i % 4 == 3) values[i] *= 5;
    }
    cache.append(0, sequence, 0, 200, keys.data(), values.data());
    for (std::size_t h = 0; h < 2; ++h) {
      for (std::size_t i = 0; i < 32; ++i) {
        EXPECT_EQ(cache.channels(0, h, true)[i], 4 * i + 1);
        EXPECT_EQ(cache.channels(0, h, false)[i], 4 * i + 3);
      }
    }
    expect_close(cache, sequence, 1, {}, "decode");
    expect_close(cache, sequence, 30, {}, "prefill");
  }
}

TEST(Attention, ManySequencesAndThreadsGiveTheBitsOfOne) {
  Cache cache(test::options(2, 4, 64, 64, 4, 4));
  const CacheOptions& o = cache.options();
  std::vector<std::size_t> sequences;
  const std::vector<std::size_t> queries = {1, 5, 33};
  for (std::uint32_t i = 0; i < 3; ++i) {
    sequences.push_back(cache.create_sequence());
    test::fill(cache, sequences.back(), 100 + 50 * i, i);
  }
  const auto q = normals(39 * o.query_heads * o.key_dim, 3);
  for (const int threads : {1, 2, 5}) {
    std::vector<float> out(39 * o.query_heads * o.value_dim);
    std::vector<float> lse(39 * o.query_heads);
    AttentionOptions options;
    options.threads = threads;
    attend(cache, 0, {3, sequences.data(), queries.data()}, options, q.data(), out.data(),
           lse.data());
    std::size_t done = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      const std::vector<float> own(
          q.begin() + static_cast<std::ptrdiff_t>(done * o.query_heads * o.key_dim), q.end());
      const Answer alone = test::attend(cache, sequences[i], queries[i], own);
      for (std::size_t j = 0; j < alone.out.size(); ++j) {
        ASSERT_EQ(out[done * o.query_heads * o.value_dim + j], alone.out[j]);
      }
      for (std::size_t j = 0; j < alone.lse.size(); ++j) {
        ASSERT_EQ(lse[done * o.query_heads + j], alone.lse[j]);
      }
      done += queries[i];
    }
  }
}

// A key bias that all tokens share must not cost precision: 100 times the residual.
TEST(Attention, CentredKeysForgetACommonBias) {
  const std::size_t n = 256;
  const auto residuals = normals(n * 64, 1);
  const auto values = normals(n * 64, 2);
  const auto q = normals(64, 3);
  std::vector<float> bias = normals(64, 4);
  for (float& b : bias) b *= 100;
  double q_bias = 0;
  for (std::size_t i = 0; i < 64; ++i) q_bias += double{q[i]} * bias[i];
  for (std::size_t i = 0; i < 64; ++i) bias[i] -= static_cast<float>(q_bias / 64) * q[i];
  double error[2] = {};
  for (const bool biased : {false, true}) {
    Cache cache(test::options(1, 1, 64, 64, 4, kRawBits));
    const std::size_t sequence = cache.create_sequence();
    std::vector<float> keys = residuals;
    if (biased) {
      for (std::size_t i = 0; i < keys.size(); ++i) keys[i] += bias[i % 64];
    }
    cache.append(0, sequence, 0, n, keys.data(), values.data());
    const Answer answer = test::attend(cache, sequence, 1, q);
    CacheOptions raw = test::options(1, 1, 64, 64, kRawBits, kRawBits);
    Cache exact(raw);
    const std::size_t other = exact.create_sequence();
    exact.append(0, other, 0, n, keys.data(), values.data());
    const Answer truth = test::attend(exact, other, 1, q);
    for (std::size_t i = 0; i < 64; ++i) {
      error[biased ? 1 : 0] += std::pow(answer.out[i] - truth.out[i], 2);
    }
  }
  EXPECT_LT(std::sqrt(error[1]), 2 * std::sqrt(error[0]));
}

TEST(Attention, BadArguments) {
  Cache cache(test::options(1, 1, 64, 64, 4, 4));
  const std::size_t sequence = cache.create_sequence();
  test::fill(cache, sequence, 10, 1);
  std::vector<float> q(64 * 11, 1);
  EXPECT_THROW(test::attend(cache, sequence, 11, q), std::invalid_argument);
  EXPECT_THROW(test::attend(cache, sequence, 0, q), std::invalid_argument);
  EXPECT_THROW(test::attend(cache, 5, 1, q), std::out_of_range);
  EXPECT_THROW(test::attend(cache, sequence, 1, q, {}, 1), std::invalid_argument);
  q[3] = NAN;
  EXPECT_THROW(test::attend(cache, sequence, 1, q), std::invalid_argument);
  q[3] = 1;
  AttentionOptions options;
  options.softcap = -1;
  EXPECT_THROW(test::attend(cache, sequence, 1, q, options), std::invalid_argument);
}

}  // namespace
}  // namespace turboquant::kv
