// Sequences of DeviceCache between the device and the host's format.
#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "kvcache/device_cache.h"
#include "kvcache/device_page.h"

namespace turboquant::kv {

using cuda::KvState;

std::size_t DeviceCache::download(std::size_t number) {
  const CacheOptions& o = host_.options();
  cuda::synchronize_device();
  auto made = std::make_unique<Sequence>();
  made->layers.resize(layers_.size());
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    const Shadow& from = shadow(layer, number);
    const KvState& state = from.state;
    const LayerMemory& memory = layers_[layer];
    LayerState& to = made->layers[layer];
    const std::size_t width = o.kv_heads * o.key_dim;
    std::vector<std::uint16_t> raw(raw_bytes() / sizeof(std::uint16_t));
    cuda::copy(raw.data(), memory.raw.as<std::uint8_t>() + number * raw_bytes(), raw_bytes(),
               nullptr);
    std::vector<std::uint8_t> tile(o.kv_heads * memory.view.format.bytes());
    for (std::uint32_t i = 0; i < state.tiles; ++i) {
      cuda::copy(tile.data(), memory.view.pool + from.tiles[i] * tile.size(), tile.size(), nullptr);
      cuda::synchronize(nullptr);
      const auto page = host_.new_page(layer);
      for (std::size_t h = 0; h < o.kv_heads; ++h) {
        page_of_tile(host_.kernels(), host_.format(layer), memory.view.format,
                     tile.data() + h * memory.view.format.bytes(),
                     page->data() + h * host_.format(layer).head_bytes);
      }
      to.pages.push_back({page, from.spans[i] % 128});
      to.paged += from.spans[i] % 128;
    }
    cuda::synchronize(nullptr);
    const auto take = [&](RawTokens& tokens, std::size_t slot) {
      const std::uint16_t* at = raw.data() + slot * 2 * width;
      tokens.keys.insert(tokens.keys.end(), at, at + width);
      tokens.values.insert(tokens.values.end(), at + width, at + 2 * width);
      ++tokens.n;
    };
    for (std::uint32_t i = 0; i < state.sinks; ++i) take(to.sinks, i);
    for (std::uint32_t i = 0; i < state.tail; ++i) {
      take(to.tail, memory.view.sink_tokens + (state.head + i) % memory.view.ring());
    }
  }
  return host_.place(std::move(made));
}

void DeviceCache::upload(const Sequence& from, std::size_t number) {
  const CacheOptions& o = host_.options();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    const LayerState& state = from.layers[layer];
    if (state.pages.size() > layers_[layer].view.table_stride ||
        state.length() > device_.sequence_tokens) {
      throw std::out_of_range("the sequence has " + std::to_string(state.length()) +
                              " tokens, more than the " + std::to_string(device_.sequence_tokens) +
                              " that the cache was made for");
    }
    if (state.pages.size() > layers_[layer].free.size()) {
      throw NoMemory("layer " + std::to_string(layer) + " needs " +
                     std::to_string(state.pages.size()) + " pages, and its pool has " +
                     std::to_string(layers_[layer].free.size()));
    }
  }
  cuda::synchronize_device();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    const LayerState& state = from.layers[layer];
    Shadow& to = shadow(layer, number);
    const LayerMemory& memory = layers_[layer];
    take_tiles(layer, number, state.pages.size(), nullptr);
    std::vector<std::uint8_t> tile(o.kv_heads * memory.view.format.bytes());
    auto position = static_cast<std::uint32_t>(state.sinks.n);
    for (std::size_t i = 0; i < state.pages.size(); ++i) {
      for (std::size_t h = 0; h < o.kv_heads; ++h) {
        tile_of_page(host_.kernels(), host_.format(layer), memory.view.format,
                     state.pages[i].page->data() + h * host_.format(layer).head_bytes,
                     tile.data() + h * memory.view.format.bytes());
      }
      cuda::copy(memory.view.pool + to.tiles[i] * tile.size(), tile.data(), tile.size(), nullptr);
      cuda::synchronize(nullptr);
      to.spans.push_back(position * 128 + static_cast<std::uint32_t>(state.pages[i].tokens));
      position += static_cast<std::uint32_t>(state.pages[i].tokens);
    }
    const std::size_t width = o.kv_heads * o.key_dim;
    std::vector<std::uint16_t> raw(raw_bytes() / sizeof(std::uint16_t));
    const auto put = [&](const RawTokens& tokens, std::size_t i, std::size_t slot) {
      std::copy_n(tokens.keys.data() + i * width, width, raw.data() + slot * 2 * width);
      std::copy_n(tokens.values.data() + i * width, width, raw.data() + (slot * 2 + 1) * width);
    };
    for (std::size_t i = 0; i < state.sinks.n; ++i) put(state.sinks, i, i);
    for (std::size_t i = 0; i < state.tail.n; ++i) put(state.tail, i, o.sink_tokens + i);
    cuda::copy(memory.raw.as<std::uint8_t>() + number * raw_bytes(), raw.data(), raw_bytes(),
               nullptr);
    cuda::synchronize(nullptr);
    to.state.length = static_cast<std::uint32_t>(state.length());
    to.state.sinks = static_cast<std::uint32_t>(state.sinks.n);
    to.state.tiles = static_cast<std::uint32_t>(state.pages.size());
    to.state.tail = static_cast<std::uint32_t>(state.tail.n);
    to.state.head = 0;
    push(layer, number);
  }
  cuda::synchronize_device();
}

void DeviceCache::dequantize(std::size_t layer, std::size_t number, float* keys, float* values) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  shadow(layer, number);
  const std::size_t there = download(number);
  host_.dequantize(layer, there, keys, values);
  host_.free_sequence(there);
}

std::vector<std::uint8_t> DeviceCache::serialize(std::size_t number, bool pack) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  shadows(number);
  const std::size_t there = download(number);
  std::vector<std::uint8_t> bytes = host_.serialize(there, pack);
  host_.free_sequence(there);
  return bytes;
}

std::size_t DeviceCache::restore(const std::uint8_t* bytes, std::size_t n) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  const std::size_t there = host_.restore(bytes, n);
  std::optional<std::size_t> number;
  try {
    number = create_sequence();
    upload(host_.sequence(there), *number);
  } catch (...) {
    host_.free_sequence(there);
    if (number) free_sequence(*number);
    throw;
  }
  host_.free_sequence(there);
  return *number;
}

}  // namespace turboquant::kv
