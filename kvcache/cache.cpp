#include "kvcache/cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace turboquant::kv {
namespace {

// A flush moves the tail once per page, so the tail's buffer is never larger than it must be.
void drop_front(std::vector<std::uint16_t>& halves, std::size_t n) {
  std::memmove(halves.data(), halves.data() + n, (halves.size() - n) * sizeof(std::uint16_t));
  halves.resize(halves.size() - n);
}

void require_finite(const float* x, std::size_t rows, std::size_t width, std::size_t position,
                    const char* name) {
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t i = 0; i < width; ++i) {
      if (std::isfinite(x[r * width + i])) continue;
      throw std::invalid_argument(std::string("the ") + name + " of position " +
                                  std::to_string(position + r) + " hold NaN or infinity");
    }
  }
}

void resize_raw(RawTokens& raw, std::size_t n, std::size_t key_width, std::size_t value_width) {
  raw.n = n;
  raw.keys.resize(n * key_width);
  raw.values.resize(n * value_width);
}

}  // namespace

Cache::Cache(CacheOptions options)
    : options_(std::move(options)),
      kernels_(kernels::active()),
      page_bytes_(std::make_shared<std::atomic<std::size_t>>(0)) {
  validate(options_);
  for (const LayerOptions& layer : options_.layers) formats_.emplace_back(options_, layer);
  sequences_.resize(options_.max_sequences);
  channels_.assign(options_.layers.size(), std::vector<ChannelOrder>(options_.kv_heads));
}

std::size_t Cache::place(std::unique_ptr<Sequence> sequence) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (std::size_t i = 0; i < sequences_.size(); ++i) {
    if (sequences_[i] != nullptr) continue;
    for (LayerState& state : sequence->layers) {
      state.counted = {};  // a copy's are the original's
      count_locked(state, use_of(state));
    }
    sequences_[i] = std::move(sequence);
    return i;
  }
  throw std::out_of_range("all " + std::to_string(sequences_.size()) + " sequences are in use");
}

std::size_t Cache::create_sequence() {
  auto made = std::make_unique<Sequence>();
  made->layers.resize(options_.layers.size());
  return place(std::move(made));
}

std::size_t Cache::copy_sequence(std::size_t number) {
  return place(std::make_unique<Sequence>(sequence(number)));
}

void Cache::free_sequence(std::size_t number) {
  Sequence& freed = mutable_sequence(number);
  const std::lock_guard<std::mutex> lock(mutex_);
  for (LayerState& state : freed.layers) count_locked(state, {});
  sequences_[number].reset();
}

MemoryUse Cache::use_of(const LayerState& state) const {
  MemoryUse use;
  for (const RawTokens* raw : {&state.sinks, &state.tail}) {
    use.allocated += sizeof(std::uint16_t) * (raw->keys.capacity() + raw->values.capacity());
  }
  use.allocated += state.pages.capacity() * sizeof(PageRef);
  use.half = state.length() * sizeof(std::uint16_t) * (key_width() + value_width());
  return use;
}

void Cache::count(LayerState& state) {
  const MemoryUse now = use_of(state);
  const std::lock_guard<std::mutex> lock(mutex_);
  count_locked(state, now);
}

void Cache::count_locked(LayerState& state, const MemoryUse& now) {
  counted_.allocated += now.allocated - state.counted.allocated;
  counted_.half += now.half - state.counted.half;
  state.counted = now;
}

Sequence& Cache::mutable_sequence(std::size_t number) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (number >= sequences_.size() || sequences_[number] == nullptr) {
    throw std::out_of_range("there is no sequence " + std::to_string(number));
  }
  return *sequences_[number];
}

const Sequence& Cache::sequence(std::size_t number) const {
  return const_cast<Cache*>(this)->mutable_sequence(number);
}

void Cache::check_layer(std::size_t layer) const {
  if (layer >= formats_.size()) {
    throw std::out_of_range("there is no layer " + std::to_string(layer) + ", only 0 to " +
                            std::to_string(formats_.size() - 1));
  }
}

LayerState& Cache::layer_state(std::size_t layer, std::size_t number) {
  check_layer(layer);
  return mutable_sequence(number).layers[layer];
}

std::size_t Cache::length(std::size_t layer, std::size_t number) const {
  check_layer(layer);
  return sequence(number).layers[layer].length();
}

const std::uint16_t* Cache::channels(std::size_t layer, std::size_t head, bool keys) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const ChannelOrder& order = channels_[layer][head];
  const std::vector<std::uint16_t>& chosen = keys ? order.keys : order.values;
  return chosen.empty() ? nullptr : chosen.data();
}

void Cache::append_raw(RawTokens& raw, std::size_t n, const std::uint16_t* keys,
                       const std::uint16_t* values) const {
  raw.keys.insert(raw.keys.end(), keys, keys + n * key_width());
  raw.values.insert(raw.values.end(), values, values + n * value_width());
  raw.n += n;
}

void Cache::append(std::size_t layer, std::size_t number, std::size_t position, std::size_t n,
                   const float* keys, const float* values) {
  LayerState& state = layer_state(layer, number);
  if (position != state.length()) {
    throw std::invalid_argument("layer " + std::to_string(layer) + " of sequence " +
                                std::to_string(number) + " has " + std::to_string(state.length()) +
                                " tokens, so the next position is that, not " +
                                std::to_string(position));
  }
  require_finite(keys, n, key_width(), position, "keys");
  require_finite(values, n, value_width(), position, "values");
  // In runs that fill the sinks or the tail, so that one token at a time gives the same pages.
  const std::size_t full = options_.tail_tokens + options_.page_tokens;
  std::vector<std::uint16_t> key_halves;
  std::vector<std::uint16_t> value_halves;
  for (std::size_t done = 0; done < n;) {
    const bool sink = state.length() < options_.sink_tokens;
    RawTokens& raw = sink ? state.sinks : state.tail;
    const std::size_t room = (sink ? options_.sink_tokens : full) - raw.n;
    const std::size_t run = std::min(n - done, room);
    key_halves.resize(run * key_width());
    value_halves.resize(run * value_width());
    kernels_.to_half(keys + done * key_width(), key_halves.size(), key_halves.data());
    kernels_.to_half(values + done * value_width(), value_halves.size(), value_halves.data());
    append_raw(raw, run, key_halves.data(), value_halves.data());
    done += run;
    if (state.tail.n == full) release_page(layer, state);
  }
  count(state);
}

void Cache::choose_outliers(std::size_t layer, const RawTokens& raw) {
  const LayerFormat& format = formats_[layer];
  const std::lock_guard<std::mutex> lock(mutex_);
  for (std::size_t h = 0; h < options_.kv_heads; ++h) {
    ChannelOrder& order = channels_[layer][h];
    if (format.keys.options.outliers > 0 && order.keys.empty()) {
      order.keys = choose_channels(kernels_, format.keys, raw.keys.data() + h * options_.key_dim,
                                   key_width());
    }
    if (format.values.options.outliers > 0 && order.values.empty()) {
      order.values = choose_channels(kernels_, format.values,
                                     raw.values.data() + h * options_.value_dim, value_width());
    }
  }
}

// The oldest tokens of the tail become a page.
void Cache::release_page(std::size_t layer, LayerState& state) {
  const LayerFormat& format = formats_[layer];
  choose_outliers(layer, state.tail);
  const auto page = std::make_shared<Page>(format.page_bytes, page_bytes_);
  const auto heads = static_cast<std::ptrdiff_t>(options_.kv_heads);
#pragma omp parallel for schedule(static) if (heads > 1 && key_width() >= 256)
  for (std::ptrdiff_t head = 0; head < heads; ++head) {
    const auto h = static_cast<std::size_t>(head);
    std::uint8_t* at = page->data() + h * format.head_bytes;
    encode_side(kernels_, format.keys, channels(layer, h, true),
                state.tail.keys.data() + h * options_.key_dim, key_width(), at);
    encode_side(kernels_, format.values, channels(layer, h, false),
                state.tail.values.data() + h * options_.value_dim, value_width(),
                at + format.keys.bytes);
  }
  state.pages.push_back({page, options_.page_tokens});
  state.paged += options_.page_tokens;
  drop_front(state.tail.keys, options_.page_tokens * key_width());
  drop_front(state.tail.values, options_.page_tokens * value_width());
  state.tail.n -= options_.page_tokens;
}

void Cache::truncate(std::size_t number, std::size_t tokens) {
  Sequence& cut = mutable_sequence(number);
  for (std::size_t layer = 0; layer < cut.layers.size(); ++layer) {
    if (tokens > cut.layers[layer].length()) {
      throw std::out_of_range("layer " + std::to_string(layer) + " of sequence " +
                              std::to_string(number) + " has " +
                              std::to_string(cut.layers[layer].length()) + " tokens, fewer than " +
                              std::to_string(tokens));
    }
  }
  for (LayerState& state : cut.layers) {
    const std::size_t before_tail = state.sinks.n + state.paged;
    if (tokens >= before_tail) {
      resize_raw(state.tail, tokens - before_tail, key_width(), value_width());
      continue;
    }
    resize_raw(state.tail, 0, key_width(), value_width());
    while (state.paged > 0 && tokens < state.sinks.n + state.paged) {
      PageRef& last = state.pages.back();
      const std::size_t surplus = state.sinks.n + state.paged - tokens;
      if (surplus < last.tokens) {
        last.tokens -= surplus;
        state.paged -= surplus;
      } else {
        state.paged -= last.tokens;
        state.pages.pop_back();
      }
    }
    if (tokens < state.sinks.n) resize_raw(state.sinks, tokens, key_width(), value_width());
  }
  for (LayerState& state : cut.layers) count(state);
}

void Cache::dequantize(std::size_t layer, std::size_t number, float* keys, float* values) const {
  check_layer(layer);
  const LayerState& state = sequence(number).layers[layer];
  const LayerFormat& format = formats_[layer];
  const auto raw = [&](const RawTokens& tokens) {
    kernels_.to_float(tokens.keys.data(), tokens.n * key_width(), keys);
    kernels_.to_float(tokens.values.data(), tokens.n * value_width(), values);
    keys += tokens.n * key_width();
    values += tokens.n * value_width();
  };
  raw(state.sinks);
  std::vector<float> page_keys(options_.page_tokens * key_width());
  std::vector<float> page_values(options_.page_tokens * value_width());
  for (const PageRef& ref : state.pages) {
    for (std::size_t h = 0; h < options_.kv_heads; ++h) {
      const std::uint8_t* at = ref.page->data() + h * format.head_bytes;
      decode_side(kernels_, format.keys, channels(layer, h, true), at,
                  page_keys.data() + h * options_.key_dim, key_width());
      decode_side(kernels_, format.values, channels(layer, h, false), at + format.keys.bytes,
                  page_values.data() + h * options_.value_dim, value_width());
    }
    keys = std::copy_n(page_keys.data(), ref.tokens * key_width(), keys);
    values = std::copy_n(page_values.data(), ref.tokens * value_width(), values);
  }
  raw(state.tail);
}

MemoryUse Cache::memory() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  MemoryUse use = counted_;
  use.allocated += page_bytes_->load(std::memory_order_relaxed);
  return use;
}

}  // namespace turboquant::kv
