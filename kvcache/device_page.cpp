#include "kvcache/device_page.h"

#include <cstring>
#include <vector>

namespace turboquant::kv {
namespace {

using cuda::kTileTokens;

constexpr std::int8_t kSame[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Rows of codes as the host has them: tokens for keys, channels for values.
struct Rows {
  std::uint32_t n, width, token_stride, channel_stride;
  Rows(bool keys, std::uint32_t dim)
      : n(keys ? kTileTokens : dim),
        width(keys ? dim : kTileTokens),
        token_stride(keys ? dim : 1),
        channel_stride(keys ? 1 : kTileTokens) {}
};

template <typename Visit>
void for_each_unit(std::uint32_t dim, const Visit& visit) {
  for (std::uint32_t unit = 0; unit < dim / 16; ++unit) {
    for (std::uint32_t lane = 0; lane < 32; ++lane) visit(unit, lane);
  }
}

void codes_to_tile(const kernels::KernelTable& kernels, const SideFormat& side,
                   const std::uint8_t* page, std::uint8_t* out) {
  const auto dim = static_cast<std::uint32_t>(side.dim);
  const auto bits = static_cast<std::uint32_t>(side.options.bits);
  const Rows rows(side.keys, dim);
  std::vector<std::uint8_t> codes(rows.n * rows.width);
  for (std::uint32_t r = 0; r < rows.n; ++r) {
    kernels.decode(
        page + side.parts[0].codes + r * kernels::packed_bytes(rows.width, side.options.bits),
        rows.width, side.options.bits, kSame,
        reinterpret_cast<std::int8_t*>(codes.data()) + r * rows.width);
  }
  for_each_unit(dim, [&](std::uint32_t unit, std::uint32_t lane) {
    std::uint32_t words[4];
    cuda::kv_pack_unit(side.keys, dim, bits, unit, lane, codes.data(), rows.token_stride,
                       rows.channel_stride, words);
    for (std::uint32_t w = 0; w < bits; ++w) {
      std::memcpy(out + cuda::kv_word_offset(bits, unit, lane, w), &words[w], 4);
    }
  });
}

void codes_to_page(const kernels::KernelTable& kernels, const SideFormat& side,
                   const std::uint8_t* tile, std::uint8_t* page) {
  const auto dim = static_cast<std::uint32_t>(side.dim);
  const auto bits = static_cast<std::uint32_t>(side.options.bits);
  const Rows rows(side.keys, dim);
  std::vector<std::uint8_t> codes(rows.n * rows.width);
  for_each_unit(dim, [&](std::uint32_t unit, std::uint32_t lane) {
    std::uint32_t words[4];
    for (std::uint32_t w = 0; w < bits; ++w) {
      std::memcpy(&words[w], tile + cuda::kv_word_offset(bits, unit, lane, w), 4);
    }
    cuda::kv_unpack_unit(side.keys, dim, bits, unit, lane, words, rows.token_stride,
                         rows.channel_stride, codes.data());
  });
  for (std::uint32_t r = 0; r < rows.n; ++r) {
    kernels.pack(
        codes.data() + r * rows.width, rows.width, side.options.bits,
        page + side.parts[0].codes + r * kernels::packed_bytes(rows.width, side.options.bits));
  }
}

}  // namespace

void tile_of_page(const kernels::KernelTable& kernels, const LayerFormat& format,
                  const cuda::KvTileFormat& tile, const std::uint8_t* page, std::uint8_t* out) {
  std::memset(out, 0, tile.bytes());
  const std::uint8_t* values = page + format.keys.bytes;
  codes_to_tile(kernels, format.keys, page, out);
  codes_to_tile(kernels, format.values, values, out + tile.values());
  std::memcpy(out + tile.key_scales(), page + format.keys.parts[0].scales, 2 * kTileTokens);
  std::memcpy(out + tile.value_scales(), values + format.values.parts[0].scales, 2 * kTileTokens);
  if (format.keys.options.centre) {
    std::memcpy(out + tile.mean(), page + format.keys.mean, 2 * format.keys.dim);
  }
}

void page_of_tile(const kernels::KernelTable& kernels, const LayerFormat& format,
                  const cuda::KvTileFormat& tile, const std::uint8_t* in, std::uint8_t* page) {
  std::memset(page, 0, format.head_bytes);
  std::uint8_t* values = page + format.keys.bytes;
  codes_to_page(kernels, format.keys, in, page);
  codes_to_page(kernels, format.values, in + tile.values(), values);
  std::memcpy(page + format.keys.parts[0].scales, in + tile.key_scales(), 2 * kTileTokens);
  std::memcpy(values + format.values.parts[0].scales, in + tile.value_scales(), 2 * kTileTokens);
  if (format.keys.options.centre) {
    std::memcpy(page + format.keys.mean, in + tile.mean(), 2 * format.keys.dim);
  }
}

}  // namespace turboquant::kv
