// The pages of a layer as bytes whose codes are packed; docs/kv_format.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvcache/page.h"

namespace turboquant::kv {

/// pages: [format.page_bytes] bytes each.
std::vector<std::uint8_t> pack_pages(const LayerFormat& format, std::size_t kv_heads,
                                     const std::vector<const std::uint8_t*>& pages);

/// The least bytes of so many packed pages.
std::size_t least_packed_bytes(const LayerFormat& format, std::size_t kv_heads, std::size_t pages);

/// Fills the pages from bytes[size], all of which must be used. False when they are damaged.
bool unpack_pages(const LayerFormat& format, std::size_t kv_heads, const std::uint8_t* bytes,
                  std::size_t size, const std::vector<std::uint8_t*>& pages);

}  // namespace turboquant::kv
