#include "kvcache/device_page.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "tests/kvcache/kv_util.h"

namespace turboquant::kv::test {
namespace {

using Case = std::tuple<std::size_t, int, int>;  // head size, bits of keys and of values

class DevicePage : public ::testing::TestWithParam<Case> {};

// A page's codes, scales and means survive the way to a tile and back.
TEST_P(DevicePage, GoesToATileAndComesBack) {
  const auto [dim, key_bits, value_bits] = GetParam();
  Cache cache(options(1, 1, dim, dim, key_bits, value_bits));
  const std::size_t sequence = cache.create_sequence();
  fill(cache, sequence, 64, 5);
  const std::uint8_t* page = cache.sequence(sequence).layers[0].pages.at(0).page->data();
  const LayerFormat& format = cache.format(0);
  const cuda::KvTileFormat tile_format{static_cast<std::uint32_t>(dim),
                                       static_cast<std::uint32_t>(key_bits),
                                       static_cast<std::uint32_t>(value_bits)};
  std::vector<std::uint8_t> tile(tile_format.bytes());
  tile_of_page(cache.kernels(), format, tile_format, page, tile.data());
  std::vector<std::uint8_t> back(format.head_bytes, 0xee);
  page_of_tile(cache.kernels(), format, tile_format, tile.data(), back.data());
  EXPECT_EQ(back, std::vector<std::uint8_t>(page, page + format.head_bytes));
  // And no bit of a tile is without meaning: as many bytes as the page has.
  EXPECT_EQ(tile.size(), format.head_bytes);
}

// Every code of a side has one place.
TEST_P(DevicePage, EveryCodeHasOnePlace) {
  const auto [dim, key_bits, value_bits] = GetParam();
  for (const bool keys : {true, false}) {
    std::set<std::pair<std::uint32_t, std::uint32_t>> seen;
    for (std::uint32_t fragment = 0; fragment < dim / 4; ++fragment) {
      for (std::uint32_t lane = 0; lane < 32; ++lane) {
        for (std::uint32_t i = 0; i < 8; ++i) {
          const auto at = cuda::kv_place(keys, static_cast<std::uint32_t>(dim), fragment, lane, i);
          seen.insert({at.token, at.channel});
        }
      }
    }
    EXPECT_EQ(seen.size(), 64 * dim);
    EXPECT_EQ(*seen.rbegin(), std::make_pair(63u, static_cast<std::uint32_t>(dim) - 1));
  }
}

INSTANTIATE_TEST_SUITE_P(All, DevicePage,
                         ::testing::Combine(::testing::Values<std::size_t>(64, 128, 256),
                                            ::testing::Values(2, 3, 4),
                                            ::testing::Values(2, 3, 4)));

}  // namespace
}  // namespace turboquant::kv::test
