#include "index/selector_mask.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "turboquant/faiss_compat.h"

namespace turboquant {
namespace {

void expect_equals_is_member(const faiss::IDSelector& selector) {
  for (const std::size_t n : {0, 1, 7, 8, 63, 64, 65, 127, 128, 300}) {
    const auto mask = selector_mask(selector, n);
    ASSERT_EQ(mask.size(), (n + 63) / 64);
    for (std::size_t i = 0; i < 64 * mask.size(); ++i) {
      const bool selected = (mask[i / 64] >> (i % 64) & 1) != 0;
      EXPECT_EQ(selected, i < n && selector.is_member(static_cast<std::int64_t>(i))) << i;
    }
  }
}

TEST(SelectorMask, Ranges) {
  for (const auto& [from, to] : std::vector<std::pair<int, int>>{
           {0, 300}, {0, 0}, {-5, 3}, {10, 64}, {64, 128}, {63, 65}, {100, 90}, {290, 1000}}) {
    expect_equals_is_member(faiss::IDSelectorRange(from, to));
  }
}

TEST(SelectorMask, Bitmaps) {
  std::mt19937 random(3);
  std::vector<std::uint8_t> bits(40);
  for (auto& byte : bits) byte = static_cast<std::uint8_t>(random());
  expect_equals_is_member(faiss::IDSelectorBitmap(bits.size(), bits.data()));
  expect_equals_is_member(faiss::IDSelectorBitmap(5, bits.data()));
  expect_equals_is_member(faiss::IDSelectorBitmap(0, nullptr));
}

TEST(SelectorMask, ListsAndSets) {
  const std::vector<std::int64_t> ids = {0, 63, 64, 64, 299, 300, -1, 1LL << 40};
  expect_equals_is_member(faiss::IDSelectorArray(ids.size(), ids.data()));
  expect_equals_is_member(faiss::IDSelectorBatch(ids.size(), ids.data()));
  expect_equals_is_member(faiss::IDSelectorArray(0, nullptr));
}

TEST(SelectorMask, Combinations) {
  const faiss::IDSelectorRange a(20, 100);
  const faiss::IDSelectorRange b(64, 200);
  expect_equals_is_member(faiss::IDSelectorAll());
  expect_equals_is_member(faiss::IDSelectorNot(&a));
#ifdef TURBOQUANT_FAISS_HAS_SELECTOR_LOGIC
  expect_equals_is_member(faiss::IDSelectorAnd(&a, &b));
  expect_equals_is_member(faiss::IDSelectorOr(&a, &b));
  expect_equals_is_member(faiss::IDSelectorXOr(&a, &b));
#endif
}

struct EveryThird : faiss::IDSelector {
  bool is_member(std::int64_t id) const override { return id % 3 == 0; }
};

TEST(SelectorMask, OfAUsersClass) {
  const EveryThird third;
  expect_equals_is_member(third);
  expect_equals_is_member(faiss::IDSelectorNot(&third));
}

}  // namespace
}  // namespace turboquant
