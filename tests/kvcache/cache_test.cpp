// What a cache keeps: appending, sharing, cutting, saving; bytes; refusals.
#include "kvcache/cache.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

#include "packing/streams.h"
#include "tests/kvcache/kv_util.h"

namespace {

std::atomic<std::size_t> allocated_bytes{0};

[[maybe_unused]] void* counted(void* at) {
  if (at == nullptr) throw std::bad_alloc();
  allocated_bytes += malloc_usable_size(at);
  return at;
}

[[maybe_unused]] void uncounted(void* at) noexcept {
  if (at == nullptr) return;
  allocated_bytes -= malloc_usable_size(at);
  std::free(at);
}

}  // namespace

// Every allocation of this program is counted, unless the thread sanitizer does so.
#if defined(__has_feature)
#define TQ_HAS_FEATURE(name) __has_feature(name)
#else
#define TQ_HAS_FEATURE(name) 0
#endif
#if !TQ_HAS_FEATURE(thread_sanitizer)
#define TQ_COUNTS_MEMORY
void* operator new(std::size_t n) { return counted(std::malloc(n)); }
void* operator new(std::size_t n, std::align_val_t alignment) {
  const auto a = static_cast<std::size_t>(alignment);
  return counted(std::aligned_alloc(a, (n + a - 1) / a * a));
}
void* operator new(std::size_t n, const std::nothrow_t&) noexcept {
  void* at = std::malloc(n);
  return at == nullptr ? nullptr : counted(at);
}
void operator delete(void* at, const std::nothrow_t&) noexcept { uncounted(at); }
void operator delete(void* at) noexcept { uncounted(at); }
void operator delete(void* at, std::size_t) noexcept { uncounted(at); }
void operator delete(void* at, std::align_val_t) noexcept { uncounted(at); }
void operator delete(void* at, std::size_t, std::align_val_t) noexcept { uncounted(at); }
#endif

namespace turboquant::kv {
namespace {

using test::normals;

CacheOptions with_outliers() {
  CacheOptions made = test::options(2, 2, 64, 48, 3, 4);
  made.layers.resize(2);
  made.layers[1] = {{2, 16, true}, {3, 8, false}};
  made.sink_tokens = 3;
  made.tail_tokens = 10;
  return made;
}

struct Contents {
  std::vector<float> keys;
  std::vector<float> values;
  bool operator==(const Contents& other) const {
    return keys == other.keys && values == other.values;
  }
};

Contents contents(const Cache& cache, std::size_t sequence, std::size_t layer) {
  const CacheOptions& o = cache.options();
  const std::size_t n = cache.length(layer, sequence);
  Contents all{std::vector<float>(n * o.kv_heads * o.key_dim),
               std::vector<float>(n * o.kv_heads * o.value_dim)};
  cache.dequantize(layer, sequence, all.keys.data(), all.values.data());
  return all;
}

TEST(Cache, OneByOneIsAllAtOnce) {
  Cache cache(with_outliers());
  const std::size_t bulk = cache.create_sequence();
  const std::size_t single = cache.create_sequence();
  const std::size_t n = 300;
  const auto keys = normals(n * 2 * 64, 1);
  const auto values = normals(n * 2 * 48, 2);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    cache.append(layer, bulk, 0, n, keys.data(), values.data());
    for (std::size_t t = 0; t < n; ++t) {
      cache.append(layer, single, t, 1, keys.data() + t * 128, values.data() + t * 96);
    }
  }
  EXPECT_EQ(cache.serialize(bulk), cache.serialize(single));
}

TEST(Cache, ErrorOfTheCodesIsThatOfTheQuantizer) {
  // Squared sine of the angle between a Gaussian vector of size 128 and its best codes; nearest
  // levels have .360, .115, .0335, .0092.
  const double sine[] = {0, .3604, .1141, .0316, .0079};
  for (const int bits : {1, 2, 3, 4}) {
    CacheOptions made = test::options(2, 1, 128, 128, bits, bits);
    Cache cache(made);
    const std::size_t sequence = cache.create_sequence();
    const std::size_t n = 1024;
    const auto keys = normals(n * 256, 1);
    const auto values = normals(n * 256, 2);
    cache.append(0, sequence, 0, n, keys.data(), values.data());
    const Contents all = contents(cache, sequence, 0);
    double key_error = 0;
    double value_error = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      key_error += std::pow(all.keys[i] - keys[i], 2) / static_cast<double>(keys.size());
      value_error += std::pow(all.values[i] - values[i], 2) / static_cast<double>(keys.size());
    }
    // Least squares at 4 bits, matched norm below; a page of 64 keys loses 1/64 to its mean.
    const double expected = bits == 4 ? sine[bits] : 2 * (1 - std::sqrt(1 - sine[bits]));
    EXPECT_NEAR(value_error, expected, 0.02 * expected) << bits;
    EXPECT_NEAR(key_error, expected * 63 / 64, 0.02 * expected) << bits;
  }
}

TEST(Cache, BytesOf4BitsAre3Point7TimesFewer) {
  CacheOptions made = test::options(2, 4, 128, 128, 4, 4);
  made.sink_tokens = 4;
  made.tail_tokens = 64;
  Cache cache(made);
  const std::size_t sequence = cache.create_sequence();
  for (int i = 0; i < 32; ++i) test::fill(cache, sequence, 1024, 1);
  const MemoryUse use = cache.memory();
  EXPECT_EQ(use.half, 32768u * 2 * 2 * 128 * 2);
  EXPECT_GE(static_cast<double>(use.half) / static_cast<double>(use.allocated), 3.7);
  const std::size_t page = cache.format(0).page_bytes;
  EXPECT_EQ(page, 2u * 64 * (64 + 2 + 64 + 2) + 2u * 256);
  cache.free_sequence(sequence);
  EXPECT_EQ(cache.memory().allocated, 0u);
}

TEST(Cache, OutlierChannelsAreChosenOnceAndApart) {
  CacheOptions made = test::options(1, 1, 64, 64, 2, 2);
  made.layers[0].keys.outliers = made.layers[0].values.outliers = 8;
  Cache cache(made);
  std::vector<float> keys = normals(64 * 64, 1);
  std::vector<float> values = normals(64 * 64, 2);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (i % 64 < 8) keys[i] *= 20;
    if (i % 64 >= 32 && i % 64 < 40) values[i] *= 20;
  }
  const std::size_t sequence = cache.create_sequence();
  cache.append(0, sequence, 0, 64, keys.data(), values.data());
  const auto chosen = [&](bool side) {
    const std::uint16_t* order = cache.channels(0, 0, side);
    return std::vector<std::uint16_t>(order, order + 8);
  };
  const std::vector<std::uint16_t> first = {0, 1, 2, 3, 4, 5, 6, 7};
  const std::vector<std::uint16_t> other = {32, 33, 34, 35, 36, 37, 38, 39};
  EXPECT_EQ(chosen(true), first);
  EXPECT_EQ(chosen(false), other);
  // Later pages, and other sequences, whatever they hold, are coded by the same channels.
  const Contents before = contents(cache, sequence, 0);
  cache.append(0, sequence, 64, 64, values.data(), keys.data());
  const std::size_t second = cache.create_sequence();
  cache.append(0, second, 0, 64, values.data(), keys.data());
  EXPECT_EQ(chosen(true), first);
  EXPECT_EQ(chosen(false), other);
  const Contents after = contents(cache, sequence, 0);
  EXPECT_TRUE(std::equal(before.keys.begin(), before.keys.end(), after.keys.begin()));
}

// Appending touches no page that is there: the work per token does not grow.
TEST(Cache, PagesAreEncodedOnce) {
  CacheOptions made = test::options(1, 1, 64, 64, 3, 3);
  Cache cache(made);
  const std::size_t sequence = cache.create_sequence();
  test::fill(cache, sequence, 64 * 5, 1);
  const auto pages = std::as_const(cache).sequence(sequence).layers[0].pages;
  test::fill(cache, sequence, 64 * 5, 2);
  const auto& grown = std::as_const(cache).sequence(sequence).layers[0].pages;
  ASSERT_EQ(grown.size(), 10u);
  for (std::size_t i = 0; i < pages.size(); ++i) EXPECT_EQ(grown[i].page, pages[i].page);
}

// Codes at their bits, scales, means, padding: every width is smaller than half precision.
TEST(Cache, BytesByBits) {
  for (const std::size_t dim : {50, 64, 80, 128}) {
    for (const int bits : {1, 2, 3, 4}) {
      Cache cache(test::options(3, 2, dim, dim, bits, bits));
      const std::size_t sequence = cache.create_sequence();
      test::fill(cache, sequence, 64 * 16, 1);
      const MemoryUse use = cache.memory();
      const std::size_t codes = 64 * 16 * 3 * 2 * dim * static_cast<std::size_t>(bits) / 8;
      const std::size_t scales = 64 * 16 * 3 * 2 * 2;
      const std::size_t means = 16 * 3 * dim * 2;
      EXPECT_GE(use.allocated, codes + scales + means);
      // A page's tokens wait in half precision until they fill it. Each of 5 planes a page and head
      // may end with 15 bytes of padding, a row of codes with 7/8 of one.
      const std::size_t waiting = 64 * 3 * 2 * dim * 2;
      EXPECT_LE(use.allocated, codes + scales + means + waiting + 16 * 3 * (5 * 15 + 64) + 4096);
      EXPECT_LT(use.allocated, use.half);
    }
  }
}

// What a cache says it holds is what it asked the allocator for.
TEST(Cache, BytesAreTheAllocators) {
  for (const int bits : {2, 4, kRawBits}) {
    CacheOptions made = test::options(2, 1, 128, 128, bits, bits);
    made.sink_tokens = 4;
    made.tail_tokens = 64;
    Cache cache(made);
    const std::size_t sequence = cache.create_sequence();
    std::vector<float> x = normals(4096 * 2 * 128, 1);
    const std::size_t before = allocated_bytes.load();
    cache.append(0, sequence, 0, 4096, x.data(), x.data());
    const auto grown = static_cast<double>(allocated_bytes.load() - before);
    const auto said = static_cast<double>(cache.memory().allocated);
#ifdef TQ_COUNTS_MEMORY
    EXPECT_NEAR(said, grown, 0.01 * grown) << bits;
#else
    EXPECT_GT(said, grown);
#endif
  }
}

// Threads with a sequence each, one cache: everybody gets what they get alone.
TEST(Cache, ThreadsWithASequenceEach) {
  constexpr std::size_t kThreads = 4;
  CacheOptions made = test::options(1, 2, 64, 64, 4, 3);
  made.tail_tokens = 20;
  Cache cache(made);
  std::vector<Contents> together(kThreads);
  std::vector<std::vector<float>> answers(kThreads);
  const auto q = normals(2 * 64, 9);
  AttentionOptions options;
  options.threads = 1;
  const auto work = [&](Cache& own, std::size_t i, Contents& seen, std::vector<float>& answer) {
    const std::size_t sequence = own.create_sequence();
    for (std::uint32_t part = 0; part < 6; ++part) {
      test::fill(own, sequence, 50, static_cast<std::uint32_t>(i) * 10 + part);
      answer = test::attend(own, sequence, 1, q, options).out;
    }
    const std::size_t copy = own.copy_sequence(sequence);
    own.truncate(copy, 30);
    own.free_sequence(copy);
    own.memory();
    seen = contents(own, sequence, 0);
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { work(cache, i, together[i], answers[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < kThreads; ++i) {
    Cache alone(made);
    Contents seen;
    std::vector<float> answer;
    work(alone, i, seen, answer);
    EXPECT_TRUE(seen == together[i]);
    EXPECT_EQ(answer, answers[i]);
  }
}

TEST(Cache, CopiesShareAndPart) {
  Cache cache(with_outliers());
  const std::size_t first = cache.create_sequence();
  test::fill(cache, first, 400, 1);
  const std::size_t before = cache.memory().allocated;
  const std::size_t copy = cache.copy_sequence(first);
  const std::size_t pages =
      cache.sequence(first).layers[0].pages.size() * cache.format(0).page_bytes;
  EXPECT_LT(cache.memory().allocated - before, pages / 2);
  const Contents shared = contents(cache, first, 1);
  EXPECT_TRUE(contents(cache, copy, 1) == shared);
  test::fill(cache, copy, 100, 5);
  EXPECT_TRUE(contents(cache, first, 1) == shared);
  const auto saved = cache.serialize(copy);
  cache.free_sequence(first);
  EXPECT_EQ(cache.serialize(copy), saved);
}

TEST(Cache, TruncateKeepsTheBitsOfWhatStays) {
  for (const std::size_t keep : {0, 2, 3, 10, 66, 67, 68, 131, 195, 250, 263, 264}) {
    Cache cache(with_outliers());
    const std::size_t sequence = cache.create_sequence();
    test::fill(cache, sequence, 264, 1);
    const Contents before = contents(cache, sequence, 1);
    cache.truncate(sequence, keep);
    ASSERT_EQ(cache.length(0, sequence), keep);
    ASSERT_EQ(cache.length(1, sequence), keep);
    const Contents after = contents(cache, sequence, 1);
    EXPECT_TRUE(std::equal(after.keys.begin(), after.keys.end(), before.keys.begin())) << keep;
    EXPECT_TRUE(std::equal(after.values.begin(), after.values.end(), before.values.begin()));
    // What was in the tail is coded later; the rest stays as it is.
    const LayerState& state = std::as_const(cache).sequence(sequence).layers[1];
    const std::size_t fixed = (state.sinks.n + state.paged) * 2 * 64;
    test::fill(cache, sequence, 200, 9);
    EXPECT_EQ(cache.length(1, sequence), keep + 200);
    const Contents longer = contents(cache, sequence, 1);
    const auto end = after.keys.begin() + static_cast<std::ptrdiff_t>(fixed);
    EXPECT_TRUE(std::equal(after.keys.begin(), end, longer.keys.begin())) << keep;
    const auto q = normals(4 * 64, 3);
    const auto answer = test::attend(cache, sequence, 1, q);
    const auto expected = test::reference(cache, sequence, 1, q);
    EXPECT_NEAR(answer.lse[0], expected.lse[0], expected.lse_error[0]);
  }
}

TEST(Cache, SaveAndRestoreGiveTheSameBits) {
  Cache cache(with_outliers());
  const std::size_t sequence = cache.create_sequence();
  test::fill(cache, sequence, 333, 1);
  cache.truncate(sequence, 120);
  test::fill(cache, sequence, 100, 2);
  const auto saved = cache.serialize(sequence);
  Cache other(with_outliers());
  const std::size_t restored = other.restore(saved.data(), saved.size());
  EXPECT_EQ(other.serialize(restored), saved);
  test::fill(cache, sequence, 90, 3);
  test::fill(other, restored, 90, 3);
  EXPECT_EQ(other.serialize(restored), cache.serialize(sequence));
}

TEST(Cache, PackedBytesHoldTheSame) {
  Cache cache(with_outliers());
  const std::size_t sequence = cache.create_sequence();
  const std::size_t empty = cache.create_sequence();
  test::fill(cache, sequence, 3000, 1);
  cache.truncate(sequence, 2900);
  for (const std::size_t each : {sequence, empty}) {
    const auto plain = cache.serialize(each);
    const auto packed = cache.serialize(each, true);
    Cache other(with_outliers());
    const std::size_t restored = other.restore(packed.data(), packed.size());
    EXPECT_EQ(other.serialize(restored), plain);
    EXPECT_EQ(other.serialize(restored, true), packed);
    if (packing::can_code() && each == sequence) {
      EXPECT_LT(packed.size(), plain.size() * 98 / 100);
    }
  }
}

class CacheBytes : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Packed, CacheBytes, testing::Bool());

TEST_P(CacheBytes, RestoreRefusesOtherBytes) {
  Cache cache(with_outliers());
  const std::size_t sequence = cache.create_sequence();
  test::fill(cache, sequence, 100, 1);
  const auto saved = cache.serialize(sequence, GetParam());
  CacheOptions different = with_outliers();
  different.seed = 1;
  Cache other(different);
  EXPECT_THROW(other.restore(saved.data(), saved.size()), std::invalid_argument);
  for (std::size_t n = 0; n < saved.size(); n += 1 + n / 16) {
    EXPECT_THROW(cache.restore(saved.data(), n), std::invalid_argument) << n;
  }
  std::vector<std::uint8_t> longer = saved;
  longer.push_back(0);
  EXPECT_THROW(cache.restore(longer.data(), longer.size()), std::invalid_argument);
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    std::vector<std::uint8_t> damaged = saved;
    for (int j = 0; j < 3; ++j) {
      const std::size_t at = random() % std::min<std::size_t>(damaged.size(), 1200);
      damaged[at] = static_cast<std::uint8_t>(damaged[at] ^ (1u << random() % 8));
    }
    try {
      cache.free_sequence(cache.restore(damaged.data(), damaged.size()));
    } catch (const std::invalid_argument&) {
    }
  }
}

// Bytes that are refused leave no outlier channels behind, nor a sequence.
TEST(Cache, RefusedBytesChangeNothing) {
  CacheOptions made = with_outliers();
  made.layers[0] = made.layers[1];
  Cache cache(made);
  const std::size_t sequence = cache.create_sequence();
  test::fill(cache, sequence, 100, 1);
  const auto saved = cache.serialize(sequence);
  Cache other(made);
  EXPECT_THROW(other.restore(saved.data(), saved.size() - 1), std::invalid_argument);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(other.channels(layer, 0, true), nullptr);
  }
  // Other data choose other channels; then the sequence cannot be taken.
  const std::size_t own = other.create_sequence();
  test::fill(other, own, 100, 50);
  const std::vector<std::uint16_t> before(other.channels(0, 0, false),
                                          other.channels(0, 0, false) + 8);
  EXPECT_THROW(other.restore(saved.data(), saved.size()), std::invalid_argument);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), other.channels(0, 0, false)));
  EXPECT_EQ(other.create_sequence(), own + 1);
}

TEST(Cache, Refusals) {
  const auto refused = [](auto change) {
    CacheOptions made = test::options(2, 2, 64, 64, 4, 4);
    change(made);
    EXPECT_THROW(Cache cache(made), std::invalid_argument);
  };
  refused([](CacheOptions& o) { o.layers.clear(); });
  refused([](CacheOptions& o) { o.query_heads = 3; });
  refused([](CacheOptions& o) { o.kv_heads = 0; });
  refused([](CacheOptions& o) { o.key_dim = 0; });
  refused([](CacheOptions& o) { o.value_dim = 1025; });
  refused([](CacheOptions& o) { o.page_tokens = 65; });
  refused([](CacheOptions& o) { o.layers[0].keys.bits = 7; });
  refused([](CacheOptions& o) { o.layers[0].values.bits = 0; });
  refused([](CacheOptions& o) { o.layers[0].values.centre = true; });
  refused([](CacheOptions& o) { o.layers[0].keys.outliers = 4; });  // 4 bits have no fifth
  refused([](CacheOptions& o) { o.layers[0].keys = {3, 64, true}; });

  Cache cache(test::options(1, 1, 64, 64, 4, 4));
  const std::size_t sequence = cache.create_sequence();
  std::vector<float> x(64 * 3);
  EXPECT_THROW(cache.append(0, sequence, 1, 3, x.data(), x.data()), std::invalid_argument);
  x[70] = INFINITY;
  EXPECT_THROW(cache.append(0, sequence, 0, 3, x.data(), x.data()), std::invalid_argument);
  EXPECT_EQ(cache.length(0, sequence), 0u);
  EXPECT_THROW(cache.append(1, sequence, 0, 1, x.data(), x.data()), std::out_of_range);
  EXPECT_THROW(cache.append(0, 1, 0, 1, x.data(), x.data()), std::out_of_range);
  EXPECT_THROW(cache.truncate(sequence, 1), std::out_of_range);
  for (int i = 0; i < 7; ++i) cache.create_sequence();
  EXPECT_THROW(cache.create_sequence(), std::out_of_range);
}

}  // namespace
}  // namespace turboquant::kv
