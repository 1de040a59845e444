#include "kvcache/device_cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "kernels/cuda/error.h"
#include "kvcache/device_page.h"
#include "quantizer/levels.h"

namespace turboquant::kv {
namespace {

using cuda::kKvBatch;
using cuda::kTileTokens;
using cuda::KvState;
using cuda::StreamPointer;

void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

void validate_for_device(const CacheOptions& options, const DeviceOptions& device) {
  const std::size_t d = options.key_dim;
  require((d == 64 || d == 128 || d == 256) && options.value_dim == d,
          "on a device, heads of keys and values have the same size, 64, 128 or 256, not " +
              std::to_string(d) + " and " + std::to_string(options.value_dim));
  require(options.page_tokens == kTileTokens, "on a device, a page has 64 tokens");
  require(device.sequence_tokens >= 1 && device.sequence_tokens <= 1u << 24,
          "on a device, sequence_tokens must be 1 to 16777216");
  require(options.sink_tokens <= 4096 && options.tail_tokens <= 4096,
          "on a device, sink and tail tokens are at most 4096");
  for (const LayerOptions& layer : options.layers) {
    for (const SideOptions& side : {layer.keys, layer.values}) {
      require(side.bits >= 2 && side.bits <= 4 && side.outliers == 0,
              "on a device, keys and values have 2, 3 or 4 bits and no outlier channels");
    }
  }
}

cuda::KvSide side_of(const SideFormat& format) {
  cuda::KvSide side;
  const kernels::CodeTable& table = level_table(format.options.bits);
  side.bits = static_cast<std::uint32_t>(format.options.bits);
  side.unit_exactly = format.parts[0].scale_unit;
  side.unit = static_cast<float>(side.unit_exactly);
  std::memcpy(side.levels, table.levels, sizeof side.levels);
  for (int i = 0; i < cuda::kKvStretches; ++i) {
    const kernels::CodeTable& stretched = stretched_tables(format.options.bits)[i];
    std::memcpy(side.thresholds[i], stretched.thresholds, sizeof side.thresholds[i]);
  }
  cuda::kv_set_levels(side);
  return side;
}

// What kv_append does to a state, without it.
struct Plan {
  std::uint32_t sinks;
  std::uint32_t tail;
  std::uint32_t pages;
};

Plan plan_of(const cuda::KvLayer& layer, const KvState& state, std::uint32_t n) {
  Plan plan{};
  if (state.length < layer.sink_tokens) plan.sinks = std::min(n, layer.sink_tokens - state.sinks);
  plan.tail = state.tail + n - plan.sinks;
  if (plan.tail >= layer.ring()) plan.pages = (plan.tail - layer.tail_tokens) / layer.page_tokens;
  return plan;
}

}  // namespace

cuda::Buffer device_buffer(int device, std::size_t bytes) {
  try {
    return cuda::Buffer(device, bytes);
  } catch (const cuda::OutOfMemory& e) {
    throw NoMemory(e.what());
  }
}

DeviceCache::DeviceCache(CacheOptions options, const DeviceOptions& device)
    : host_(std::move(options)), device_(device) {
  validate_for_device(host_.options(), device);
  if (cuda::device_count() == 0) throw std::invalid_argument("there is no CUDA device");
  require(device.device >= 0 && device.device < cuda::device_count(),
          "there is no CUDA device " + std::to_string(device.device) + ", only " +
              std::to_string(cuda::device_count()));
  const cuda::DeviceGuard guard(device_.device);
  const std::size_t d = host_.options().key_dim;
  const Rotation& rotation = *host_.format(0).keys.parts[0].rotation;
  factors_ = device_buffer(device_.device, 2 * d * sizeof(float));
  cuda::copy(factors_.get(), rotation.factors(), factors_.bytes(), nullptr);
  sequences_.resize(host_.options().max_sequences);
  layers_.resize(host_.options().layers.size());
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) make_layer(layer);
  // Decoding of every batch size is prepared, so that it can be captured at once.
  std::size_t bytes = 0;
  cuda::KvAttend attend;
  attend.most_tokens = static_cast<std::uint32_t>(device_.sequence_tokens);
  const std::size_t most = std::min<std::size_t>(kKvBatch, sequences_.size());
  for (std::size_t n = 1; n <= most; ++n) {
    attend.sequences = static_cast<std::uint32_t>(n);
    bytes = std::max(bytes, cuda::kv_workspace_bytes(layers_[0].view, attend, device_.device));
  }
  workspace_ = device_buffer(device_.device, bytes);
  cuda::synchronize_device();
}

void DeviceCache::make_layer(std::size_t layer) {
  const CacheOptions& o = host_.options();
  const LayerFormat& format = host_.format(layer);
  LayerMemory& memory = layers_[layer];
  cuda::KvLayer& view = memory.view;
  view.format = {static_cast<std::uint32_t>(o.key_dim),
                 static_cast<std::uint32_t>(o.layers[layer].keys.bits),
                 static_cast<std::uint32_t>(o.layers[layer].values.bits)};
  view.kv_heads = static_cast<std::uint32_t>(o.kv_heads);
  view.group = static_cast<std::uint32_t>(host_.group());
  view.page_tokens = static_cast<std::uint32_t>(o.page_tokens);
  view.sink_tokens = static_cast<std::uint32_t>(o.sink_tokens);
  view.tail_tokens = static_cast<std::uint32_t>(o.tail_tokens);
  view.centre = o.layers[layer].keys.centre;
  view.keys = side_of(format.keys);
  view.values = side_of(format.values);
  view.factors = factors_.as<float>();
  // Every sequence may end a page early once by truncation; appended tokens fill whole ones.
  const std::size_t stride = device_.sequence_tokens / kTileTokens + 1;
  view.table_stride = static_cast<std::uint32_t>(stride);
  const std::size_t pool_tokens =
      device_.pool_tokens != 0 ? device_.pool_tokens : stride * kTileTokens * o.max_sequences;
  const std::size_t tiles = (pool_tokens + kTileTokens - 1) / kTileTokens;
  require(tiles <= UINT32_MAX, "the pool has too many pages");
  const int device = device_.device;
  memory.pool = device_buffer(device, tiles * o.kv_heads * view.format.bytes());
  memory.table = device_buffer(device, o.max_sequences * stride * sizeof(std::uint32_t));
  memory.spans = device_buffer(device, o.max_sequences * stride * sizeof(std::uint32_t));
  memory.states = device_buffer(device, o.max_sequences * sizeof(KvState));
  memory.raw = device_buffer(device, o.max_sequences * raw_bytes());
  cuda::fill(memory.states.get(), 0, memory.states.bytes(), nullptr);
  cuda::fill(memory.raw.get(), 0, memory.raw.bytes(), nullptr);
  view.pool = memory.pool.as<std::uint8_t>();
  view.table = memory.table.as<std::uint32_t>();
  view.spans = memory.spans.as<std::uint32_t>();
  view.states = memory.states.as<KvState>();
  view.raw = memory.raw.as<std::uint16_t>();
  memory.users.assign(tiles, 0);
  memory.free.resize(tiles);
  for (std::size_t i = 0; i < tiles; ++i) {
    memory.free[i] = static_cast<std::uint32_t>(tiles - 1 - i);
  }
}

std::size_t DeviceCache::raw_bytes() const {
  const CacheOptions& o = host_.options();
  return (o.sink_tokens + o.tail_tokens + o.page_tokens) * 2 * o.kv_heads * o.key_dim *
         sizeof(std::uint16_t);
}

DeviceCache::Shadows& DeviceCache::shadows(std::size_t number) {
  if (number >= sequences_.size() || sequences_[number] == nullptr) {
    throw std::out_of_range("there is no sequence " + std::to_string(number));
  }
  return *sequences_[number];
}

DeviceCache::Shadow& DeviceCache::shadow(std::size_t layer, std::size_t number) {
  if (layer >= layers_.size()) {
    throw std::out_of_range("there is no layer " + std::to_string(layer) + ", only 0 to " +
                            std::to_string(layers_.size() - 1));
  }
  return shadows(number)[layer];
}

std::size_t DeviceCache::place(Shadows made) {
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    if (sequences_[i] != nullptr) continue;
    sequences_[i] = std::make_unique<Shadows>(std::move(made));
    return i;
  }
  throw std::out_of_range("all " + std::to_string(sequences_.size()) + " sequences are in use");
}

// What the shadow says becomes what the device knows.
void DeviceCache::push(std::size_t layer, std::size_t number) {
  const Shadow& from = shadow(layer, number);
  const cuda::KvLayer& view = layers_[layer].view;
  const std::size_t row = number * view.table_stride;
  cuda::copy(view.table + row, from.tiles.data(), from.tiles.size() * sizeof(std::uint32_t),
             nullptr);
  cuda::copy(view.spans + row, from.spans.data(), from.spans.size() * sizeof(std::uint32_t),
             nullptr);
  cuda::copy(view.states + number, &from.state, sizeof from.state, nullptr);
}

std::size_t DeviceCache::create_sequence() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  const std::size_t number = place(Shadows(layers_.size()));
  cuda::synchronize_device();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) push(layer, number);
  cuda::synchronize_device();
  return number;
}

std::size_t DeviceCache::copy_sequence(std::size_t from) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  Shadows made = shadows(from);
  // Reserved pages stay with the original.
  for (Shadow& each : made) {
    each.tiles.resize(each.state.tiles);
    each.state.reserved = each.state.tiles;
  }
  const std::size_t number = place(std::move(made));
  cuda::synchronize_device();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    for (const std::uint32_t tile : shadow(layer, number).tiles) ++layers_[layer].users[tile];
    push(layer, number);
    auto* raw = layers_[layer].raw.as<std::uint8_t>();
    cuda::copy(raw + number * raw_bytes(), raw + from * raw_bytes(), raw_bytes(), nullptr);
  }
  cuda::synchronize_device();
  return number;
}

void DeviceCache::drop_tiles(std::size_t layer, Shadow& from, std::size_t keep) {
  LayerMemory& memory = layers_[layer];
  while (from.tiles.size() > keep) {
    const std::uint32_t tile = from.tiles.back();
    if (--memory.users[tile] == 0) memory.free.push_back(tile);
    from.tiles.pop_back();
  }
  from.state.reserved = static_cast<std::uint32_t>(from.tiles.size());
}

void DeviceCache::free_sequence(std::size_t number) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  shadows(number);
  const cuda::DeviceGuard guard(device_.device);
  cuda::synchronize_device();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    drop_tiles(layer, shadow(layer, number), 0);
  }
  sequences_[number].reset();
}

void DeviceCache::truncate(std::size_t number, std::size_t tokens) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    if (tokens > shadow(layer, number).state.length) {
      throw std::out_of_range("layer " + std::to_string(layer) + " of sequence " +
                              std::to_string(number) + " has " +
                              std::to_string(shadow(layer, number).state.length) +
                              " tokens, fewer than " + std::to_string(tokens));
    }
  }
  cuda::synchronize_device();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    Shadow& cut = shadow(layer, number);
    KvState& state = cut.state;
    const auto left = static_cast<std::uint32_t>(tokens);
    if (left >= state.length - state.tail) {
      state.tail = left - (state.length - state.tail);
    } else {
      state.tail = 0;
      while (!cut.spans.empty() && cut.spans.back() / 128 >= left) cut.spans.pop_back();
      if (!cut.spans.empty()) {
        const std::uint32_t first = cut.spans.back() / 128;
        cut.spans.back() = first * 128 + std::min(cut.spans.back() % 128, left - first);
      }
      state.tiles = static_cast<std::uint32_t>(cut.spans.size());
      drop_tiles(layer, cut, cut.spans.size());
      state.sinks = std::min(state.sinks, left);
    }
    state.length = left;
    push(layer, number);
  }
  cuda::synchronize_device();
}

std::size_t DeviceCache::length(std::size_t layer, std::size_t number) const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  return const_cast<DeviceCache*>(this)->shadow(layer, number).state.length;
}

std::size_t DeviceCache::tiles_after(std::size_t layer, const Shadow& of, std::size_t n) const {
  const Plan plan = plan_of(layers_[layer].view, of.state, static_cast<std::uint32_t>(n));
  return of.state.tiles + plan.pages;
}

void DeviceCache::check_room(std::size_t layer, const std::vector<std::size_t>& sequences,
                             std::size_t n) const {
  std::size_t needed = 0;
  for (const std::size_t number : sequences) {
    const Shadow& each = const_cast<DeviceCache*>(this)->shadow(layer, number);
    const std::size_t tiles = tiles_after(layer, each, n);
    if (each.state.length + n > device_.sequence_tokens ||
        tiles > layers_[layer].view.table_stride) {
      throw std::out_of_range(
          "sequence " + std::to_string(number) + " has " + std::to_string(each.state.length) +
          " tokens, and with " + std::to_string(n) + " more it would pass the " +
          std::to_string(device_.sequence_tokens) + " that the cache was made for");
    }
    if (tiles > each.tiles.size()) needed += tiles - each.tiles.size();
  }
  if (needed > layers_[layer].free.size()) {
    throw NoMemory("layer " + std::to_string(layer) + " needs " + std::to_string(needed) +
                   " more pages, and its pool has " + std::to_string(layers_[layer].free.size()));
  }
}

void DeviceCache::take_tiles(std::size_t layer, std::size_t number, std::size_t tiles,
                             StreamPointer stream) {
  Shadow& of = shadow(layer, number);
  LayerMemory& memory = layers_[layer];
  const std::size_t before = of.tiles.size();
  if (tiles <= before) return;
  while (of.tiles.size() < tiles) {
    of.tiles.push_back(memory.free.back());
    ++memory.users[memory.free.back()];
    memory.free.pop_back();
  }
  of.state.reserved = static_cast<std::uint32_t>(tiles);
  cuda::copy(memory.view.table + number * memory.view.table_stride + before,
             of.tiles.data() + before, (tiles - before) * sizeof(std::uint32_t), stream);
  cuda::copy(&memory.view.states[number].reserved, &of.state.reserved, sizeof(std::uint32_t),
             stream);
}

void DeviceCache::advance(std::size_t layer, Shadow& of, std::size_t n) const {
  const cuda::KvLayer& view = layers_[layer].view;
  const Plan plan = plan_of(view, of.state, static_cast<std::uint32_t>(n));
  KvState& state = of.state;
  std::uint32_t position = state.length - state.tail + plan.sinks;
  for (std::uint32_t i = 0; i < plan.pages; ++i, position += kTileTokens) {
    of.spans.push_back(position * 128 + kTileTokens);
  }
  state.length += static_cast<std::uint32_t>(n);
  state.sinks += plan.sinks;
  state.tiles += plan.pages;
  state.tail = plan.tail - plan.pages * kTileTokens;
  state.head = (state.head + plan.pages * kTileTokens) % view.ring();
}

void DeviceCache::append(std::size_t layer, const std::vector<std::size_t>& sequences,
                         std::size_t n, cuda::KvElement element, const void* keys,
                         const void* values, StreamPointer stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    shadow(layer, sequences[i]);
    for (std::size_t j = 0; j < i; ++j) {
      require(sequences[i] != sequences[j],
              "sequence " + std::to_string(sequences[i]) + " is named twice");
    }
  }
  if (n == 0 || sequences.empty()) return;
  require(n <= device_.sequence_tokens, "more tokens than a sequence may have");
  const cuda::DeviceGuard guard(device_.device);
  const bool captured = cuda::capturing(stream);
  if (!captured) {
    check_room(layer, sequences, n);
    for (const std::size_t number : sequences) {
      take_tiles(layer, number, tiles_after(layer, shadow(layer, number), n), stream);
    }
  }
  const CacheOptions& o = host_.options();
  const std::size_t bytes =
      n * o.kv_heads * o.key_dim * (element == cuda::KvElement::kFloat ? 4 : 2);
  for (std::size_t first = 0; first < sequences.size(); first += kKvBatch) {
    cuda::KvAppend append;
    append.sequences =
        static_cast<std::uint32_t>(std::min<std::size_t>(kKvBatch, sequences.size() - first));
    for (std::uint32_t i = 0; i < append.sequences; ++i) {
      append.sequence[i] = static_cast<std::uint32_t>(sequences[first + i]);
    }
    append.tokens = static_cast<std::uint32_t>(n);
    append.element = element;
    append.keys = static_cast<const std::uint8_t*>(keys) + first * bytes;
    append.values = static_cast<const std::uint8_t*>(values) + first * bytes;
    cuda::kv_append(layers_[layer].view, append, stream);
  }
  if (captured) return;  // nothing has happened yet; refresh() tells
  for (const std::size_t number : sequences) advance(layer, shadow(layer, number), n);
}

void DeviceCache::reserve(std::size_t number, std::size_t tokens) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  cuda::synchronize_device();
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    check_room(layer, {number}, tokens);
  }
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    take_tiles(layer, number, tiles_after(layer, shadow(layer, number), tokens), nullptr);
  }
  cuda::synchronize_device();
}

void DeviceCache::refresh() {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const cuda::DeviceGuard guard(device_.device);
  cuda::synchronize_device();
  std::uint32_t refused = 0;
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    const cuda::KvLayer& view = layers_[layer].view;
    std::vector<KvState> states(sequences_.size());
    cuda::copy(states.data(), view.states, states.size() * sizeof(KvState), nullptr);
    cuda::synchronize(nullptr);
    for (std::size_t number = 0; number < sequences_.size(); ++number) {
      if (sequences_[number] == nullptr) continue;
      Shadow& of = shadow(layer, number);
      refused += states[number].refused;
      of.state = states[number];
      of.spans.resize(of.state.tiles);
      cuda::copy(of.spans.data(), view.spans + number * view.table_stride,
                 of.spans.size() * sizeof(std::uint32_t), nullptr);
      if (of.state.refused == 0) continue;
      of.state.refused = 0;
      cuda::copy(view.states + number, &of.state, sizeof of.state, nullptr);
    }
  }
  cuda::synchronize_device();
  if (refused > 0) {
    throw NoMemory("replayed graphs appended " + std::to_string(refused) +
                   " tokens that no pages were reserved for, and they are lost");
  }
}

MemoryUse DeviceCache::memory() const {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const CacheOptions& o = host_.options();
  MemoryUse use;
  for (const LayerMemory& memory : layers_) {
    use.allocated += memory.pool.bytes() + memory.table.bytes() + memory.spans.bytes() +
                     memory.states.bytes() + memory.raw.bytes();
  }
  use.allocated += workspace_.bytes() + factors_.bytes();
  for (const auto& each : sequences_) {
    if (each == nullptr) continue;
    for (const Shadow& of : *each) {
      use.half += of.state.length * 2 * sizeof(std::uint16_t) * o.kv_heads * o.key_dim;
    }
  }
  return use;
}

}  // namespace turboquant::kv
