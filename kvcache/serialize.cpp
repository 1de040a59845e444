// A sequence as bytes; docs/kv_format.md.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/cache.h"
#include "kvcache/packed_pages.h"
#include "packing/streams.h"

namespace turboquant::kv {
namespace {

constexpr char kMagic[8] = {'T', 'Q', 'K', 'V', 'S', 'E', 'Q', '1'};
constexpr char kPackedMagic[8] = {'T', 'Q', 'K', 'V', 'S', 'E', 'Q', '2'};

class Writer {
 public:
  void number(std::uint64_t value) { bytes(&value, sizeof value); }
  void bytes(const void* data, std::size_t n) {
    const auto* from = static_cast<const std::uint8_t*>(data);
    out_.insert(out_.end(), from, from + n);
  }
  std::vector<std::uint8_t> take() { return std::move(out_); }

 private:
  std::vector<std::uint8_t> out_;
};

class Reader {
 public:
  Reader(const std::uint8_t* at, std::size_t left) : at_(at), left_(left) {}
  std::uint64_t number() {
    std::uint64_t value = 0;
    bytes(&value, sizeof value);
    return value;
  }
  std::size_t number_up_to(std::uint64_t most, const char* name) {
    const std::uint64_t value = number();
    if (value > most) {
      throw std::invalid_argument("the bytes of the sequence say " + std::to_string(value) + " " +
                                  name + ", and at most " + std::to_string(most) + " can be");
    }
    return static_cast<std::size_t>(value);
  }
  void bytes(void* to, std::size_t n) {
    require(n);
    if (n != 0) std::memcpy(to, at_, n);
    at_ += n;
    left_ -= n;
  }
  void require(std::size_t n) const {
    if (n > left_) throw std::invalid_argument("the bytes of the sequence end too early");
  }
  const std::uint8_t* skip(std::size_t n) {
    require(n);
    const std::uint8_t* from = at_;
    at_ += n;
    left_ -= n;
    return from;
  }
  std::size_t left() const { return left_; }
  bool at_end() const { return left_ == 0; }

 private:
  const std::uint8_t* at_;
  std::size_t left_;
};

// Everything that the codes depend on.
void write_geometry(const CacheOptions& options, Writer& out) {
  for (const std::size_t value :
       {options.layers.size(), options.kv_heads, options.key_dim, options.value_dim,
        options.page_tokens, options.sink_tokens, options.tail_tokens}) {
    out.number(value);
  }
  out.number(options.seed);
  out.number(Rotation::kVersion);
  for (const LayerOptions& layer : options.layers) {
    for (const SideOptions* side : {&layer.keys, &layer.values}) {
      out.number(static_cast<std::uint64_t>(side->bits));
      out.number(side->outliers);
      out.number(side->centre ? 1 : 0);
    }
  }
}

void write_raw(const RawTokens& raw, Writer& out) {
  out.number(raw.n);
  out.bytes(raw.keys.data(), 2 * raw.keys.size());
  out.bytes(raw.values.data(), 2 * raw.values.size());
}

// Halves that attention can add up: no infinity, no NaN.
bool all_finite(const std::vector<std::uint16_t>& halves) {
  for (const std::uint16_t h : halves) {
    if ((h >> 10 & 31) == 31) return false;
  }
  return true;
}

RawTokens read_raw(Reader& in, std::size_t most, std::size_t key_width, std::size_t value_width) {
  RawTokens raw;
  raw.n = in.number_up_to(most, "raw tokens");
  in.require(2 * raw.n * (key_width + value_width));
  raw.keys.resize(raw.n * key_width);
  raw.values.resize(raw.n * value_width);
  in.bytes(raw.keys.data(), 2 * raw.keys.size());
  in.bytes(raw.values.data(), 2 * raw.values.size());
  if (!all_finite(raw.keys) || !all_finite(raw.values)) {
    throw std::invalid_argument("the bytes of the sequence hold a raw token that is not finite");
  }
  return raw;
}

// Of one layer. The tokens in use of a page stand before it, or packed, before all pages.
void write_pages(const LayerFormat& format, std::size_t kv_heads, const std::vector<PageRef>& pages,
                 bool pack, Writer& out) {
  out.number(pages.size());
  if (!pack) {
    for (const PageRef& ref : pages) {
      out.number(ref.tokens);
      out.bytes(ref.page->data(), format.page_bytes);
    }
    return;
  }
  std::vector<const std::uint8_t*> bytes;
  for (const PageRef& ref : pages) {
    out.number(ref.tokens);
    bytes.push_back(ref.page->data());
  }
  const std::vector<std::uint8_t> packed = pack_pages(format, kv_heads, bytes);
  out.number(packed.size());
  out.bytes(packed.data(), packed.size());
}

std::size_t read_tokens(Reader& in, std::size_t most) {
  const std::size_t tokens = in.number_up_to(most, "tokens of a page");
  if (tokens == 0) throw std::invalid_argument("the sequence has a page without tokens");
  return tokens;
}

void read_pages(const LayerFormat& format, std::size_t page_tokens,
                const std::shared_ptr<std::atomic<std::size_t>>& allocated, Reader& in,
                std::vector<PageRef>& to) {
  const std::size_t pages = in.number_up_to(in.left() / format.page_bytes, "pages");
  for (std::size_t p = 0; p < pages; ++p) {
    PageRef ref;
    ref.tokens = read_tokens(in, page_tokens);
    in.require(format.page_bytes);
    const auto page = std::make_shared<Page>(format.page_bytes, allocated);
    in.bytes(page->data(), format.page_bytes);
    ref.page = page;
    to.push_back(std::move(ref));
  }
}

void read_packed_pages(const LayerFormat& format, std::size_t kv_heads, std::size_t page_tokens,
                       const std::shared_ptr<std::atomic<std::size_t>>& allocated, Reader& in,
                       std::vector<PageRef>& to) {
  const std::size_t least = std::max<std::size_t>(1, least_packed_bytes(format, kv_heads, 1));
  const std::size_t pages = in.number_up_to(in.left() / least, "pages");
  std::vector<std::size_t> tokens(pages);
  for (std::size_t& n : tokens) n = read_tokens(in, page_tokens);
  const std::size_t size = in.number_up_to(in.left(), "bytes of packed pages");
  if (size < least_packed_bytes(format, kv_heads, pages)) {
    throw std::invalid_argument("the bytes of the sequence end too early");
  }
  std::vector<std::shared_ptr<Page>> made;
  std::vector<std::uint8_t*> bytes;
  for (std::size_t p = 0; p < pages; ++p) {
    made.push_back(std::make_shared<Page>(format.page_bytes, allocated));
    bytes.push_back(made.back()->data());
  }
  if (!unpack_pages(format, kv_heads, in.skip(size), size, bytes)) {
    throw std::invalid_argument(packing::can_code()
                                    ? "the packed pages of the sequence are damaged"
                                    : "the pages of the sequence are packed, and this library was "
                                      "built without zstd");
  }
  for (std::size_t p = 0; p < pages; ++p) {
    PageRef ref;
    ref.tokens = tokens[p];
    ref.page = made[p];
    to.push_back(std::move(ref));
  }
}

// Empty, or each channel once.
std::vector<std::uint16_t> read_channels(Reader& in, const SideFormat& format) {
  const std::size_t n = in.number_up_to(format.dim, "channels");
  std::vector<std::uint16_t> channels(n);
  in.bytes(channels.data(), 2 * n);
  if (n == 0) return channels;
  std::vector<bool> seen(format.dim);
  for (const std::uint16_t channel : channels) {
    if (channel >= format.dim || seen[channel]) {
      throw std::invalid_argument("the sequence has a wrong list of outlier channels");
    }
    seen[channel] = true;
  }
  if (n != format.dim || format.options.outliers == 0) {
    throw std::invalid_argument("the sequence has a wrong list of outlier channels");
  }
  return channels;
}

}  // namespace

std::vector<std::uint8_t> Cache::serialize(std::size_t number, bool pack) const {
  const Sequence& from = sequence(number);
  Writer out;
  out.bytes(pack ? kPackedMagic : kMagic, sizeof kMagic);
  write_geometry(options_, out);
  for (std::size_t layer = 0; layer < from.layers.size(); ++layer) {
    const LayerState& state = from.layers[layer];
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const ChannelOrder& order : channels_[layer]) {
        for (const std::vector<std::uint16_t>* chosen : {&order.keys, &order.values}) {
          out.number(chosen->size());
          out.bytes(chosen->data(), 2 * chosen->size());
        }
      }
    }
    write_raw(state.sinks, out);
    write_pages(formats_[layer], options_.kv_heads, state.pages, pack, out);
    write_raw(state.tail, out);
  }
  return out.take();
}

// All of them or none. paged[layer]: the sequence has pages there.
void Cache::adopt_channels(std::vector<std::vector<ChannelOrder>> read,
                           const std::vector<bool>& paged) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto check = [](const std::vector<std::uint16_t>& mine,
                        const std::vector<std::uint16_t>& other, const SideFormat& format,
                        bool needed) {
    if (other.empty() && needed && format.options.outliers > 0) {
      throw std::invalid_argument("the sequence has pages, but not their outlier channels");
    }
    if (!other.empty() && !mine.empty() && mine != other) {
      throw std::invalid_argument("the sequence has other outlier channels than this cache");
    }
  };
  for (std::size_t layer = 0; layer < read.size(); ++layer) {
    for (std::size_t h = 0; h < read[layer].size(); ++h) {
      const ChannelOrder& own = channels_[layer][h];
      check(own.keys, read[layer][h].keys, formats_[layer].keys, paged[layer]);
      check(own.values, read[layer][h].values, formats_[layer].values, paged[layer]);
    }
  }
  for (std::size_t layer = 0; layer < read.size(); ++layer) {
    for (std::size_t h = 0; h < read[layer].size(); ++h) {
      ChannelOrder& own = channels_[layer][h];
      if (own.keys.empty()) own.keys = std::move(read[layer][h].keys);
      if (own.values.empty()) own.values = std::move(read[layer][h].values);
    }
  }
}

std::size_t Cache::restore(const std::uint8_t* bytes, std::size_t n) {
  Reader in(bytes, n);
  char magic[sizeof kMagic];
  in.bytes(magic, sizeof magic);
  const bool packed = std::memcmp(magic, kPackedMagic, sizeof magic) == 0;
  if (!packed && std::memcmp(magic, kMagic, sizeof magic) != 0) {
    throw std::invalid_argument("these are not the bytes of a sequence");
  }
  Writer own;
  write_geometry(options_, own);
  const std::vector<std::uint8_t> expected = own.take();
  std::vector<std::uint8_t> found(expected.size());
  in.bytes(found.data(), found.size());
  if (found != expected) {
    throw std::invalid_argument("the sequence comes from a cache of other options");
  }
  auto made = std::make_unique<Sequence>();
  std::vector<std::vector<ChannelOrder>> channels;
  std::vector<bool> paged;
  for (std::size_t layer = 0; layer < options_.layers.size(); ++layer) {
    std::vector<ChannelOrder> orders(options_.kv_heads);
    for (ChannelOrder& order : orders) {
      order.keys = read_channels(in, formats_[layer].keys);
      order.values = read_channels(in, formats_[layer].values);
    }
    LayerState state;
    state.sinks = read_raw(in, options_.sink_tokens, key_width(), value_width());
    if (packed) {
      read_packed_pages(formats_[layer], options_.kv_heads, options_.page_tokens, page_bytes_, in,
                        state.pages);
    } else {
      read_pages(formats_[layer], options_.page_tokens, page_bytes_, in, state.pages);
    }
    for (const PageRef& ref : state.pages) state.paged += ref.tokens;
    state.tail =
        read_raw(in, options_.tail_tokens + options_.page_tokens - 1, key_width(), value_width());
    paged.push_back(!state.pages.empty());
    channels.push_back(std::move(orders));
    made->layers.push_back(std::move(state));
  }
  if (!in.at_end()) throw std::invalid_argument("the bytes of the sequence go on after its end");
  const std::size_t number = place(std::move(made));
  try {
    adopt_channels(std::move(channels), paged);
  } catch (...) {
    free_sequence(number);
    throw;
  }
  return number;
}

}  // namespace turboquant::kv
