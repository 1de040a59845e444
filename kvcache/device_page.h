// Pages of the host's format and tiles of a device, one head at a time.
#pragma once

#include <cstdint>

#include "kernels/cuda/kv_layout.h"
#include "kvcache/page.h"

namespace turboquant::kv {

/// The tile of a head from its part of a page of 64 tokens.
void tile_of_page(const kernels::KernelTable& kernels, const LayerFormat& format,
                  const cuda::KvTileFormat& tile, const std::uint8_t* page, std::uint8_t* out);

/// The inverse. `page` has format.head_bytes bytes, all of which are written.
void page_of_tile(const kernels::KernelTable& kernels, const LayerFormat& format,
                  const cuda::KvTileFormat& tile, const std::uint8_t* in, std::uint8_t* page);

}  // namespace turboquant::kv
