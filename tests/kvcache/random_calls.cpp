#include "tests/kvcache/random_calls.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

#include "turboquant/kvcache.h"

namespace turboquant::kv::test {
namespace {

class Bytes {
 public:
  Bytes(const std::uint8_t* at, std::size_t left) : at_(at), left_(left) {}
  bool left() const { return left_ > 0; }
  std::uint32_t below(std::uint32_t n) {
    if (left_ == 0) return 0;
    --left_;
    return *at_++ % n;
  }

 private:
  const std::uint8_t* at_;
  std::size_t left_;
};

void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what + "; last error: " + tq_kv_last_error());
}

void expect(tq_kv_status status, tq_kv_status wanted, const char* call) {
  require(status == wanted, std::string(call) + " gave " + std::to_string(status) + ", not " +
                                std::to_string(wanted));
  require(status == TQ_KV_OK || std::string(tq_kv_last_error()).size() > 10,
          std::string(call) + " failed without a sentence");
}

struct Destroy {
  void operator()(tq_kv_cache* cache) const { tq_kv_destroy(cache); }
};
using CachePointer = std::unique_ptr<tq_kv_cache, Destroy>;

CachePointer create(const tq_kv_config& config) {
  tq_kv_cache* cache = nullptr;
  expect(tq_kv_create(&config, &cache), TQ_KV_OK, "create");
  return CachePointer(cache);
}

struct Tokens {
  std::vector<float> keys, values;  // [n][kv_heads][dim]
  std::size_t n = 0;
};

// What a page's tokens decode to, and how many of them are in use.
struct PageModel {
  std::shared_ptr<const Tokens> decoded;
  std::size_t used = 0;
};

struct LayerModel {
  Tokens sinks, tail;  // as they were given
  std::vector<PageModel> pages;
  std::size_t length() const {
    std::size_t n = sinks.n + tail.n;
    for (const PageModel& page : pages) n += page.used;
    return n;
  }
};
using SequenceModel = std::vector<LayerModel>;

class Run {
 public:
  explicit Run(Bytes bytes) : bytes_(bytes) {
    configure();
    cache_ = create(config_);
  }

  void all() {
    for (int calls = 0; bytes_.left() && calls < 200; ++calls) {
      step();
      check_lengths();
    }
    for (const auto& [number, model] : models_) check_contents(number, model);
    while (!models_.empty()) free_one(models_.begin()->first);
    tq_kv_memory memory;
    expect(tq_kv_get_memory(cache_.get(), &memory), TQ_KV_OK, "get_memory");
    require(memory.allocated == 0 && memory.half == 0, "an empty cache holds memory");
  }

 private:
  void configure() {
    expect(tq_kv_config_init(&config_), TQ_KV_OK, "config_init");
    constexpr std::uint32_t kDims[] = {1, 5, 16, 64};
    constexpr std::uint32_t kBits[] = {1, 2, 3, 4, TQ_KV_RAW_BITS};
    config_.layers = 1 + bytes_.below(2);
    config_.kv_heads = 1 + bytes_.below(2);
    config_.query_heads = config_.kv_heads * (1 + bytes_.below(3));
    config_.key_dim = kDims[bytes_.below(4)];
    config_.value_dim = kDims[bytes_.below(4)];
    config_.max_sequences = 1 + bytes_.below(4);
    config_.sink_tokens = bytes_.below(6);
    config_.tail_tokens = bytes_.below(21);
    config_.layer.keys = {kBits[bytes_.below(5)], 0, bytes_.below(2)};
    config_.layer.values = {kBits[bytes_.below(5)], 0, 0};
    key_width_ = config_.kv_heads * config_.key_dim;
    value_width_ = config_.kv_heads * config_.value_dim;
  }

  void step() {
    switch (bytes_.below(10)) {
      case 0:
        return create_one();
      case 1:
        return copy_one();
      case 2:
        return truncate_one();
      case 3:
        return bytes_.below(3) == 0 ? free_one(any()) : attend_one();
      case 4:
        return save_one();
      case 5:
        return attend_one();
      case 6:
        return misuse();
      default:
        return append_one();
    }
  }

  // A number that is mostly a sequence's.
  std::uint32_t any() {
    if (models_.empty() || bytes_.below(16) == 0) return 1 + bytes_.below(200);
    auto at = models_.begin();
    std::advance(at, bytes_.below(static_cast<std::uint32_t>(models_.size())));
    return at->first;
  }
  bool known(std::uint32_t number) const { return models_.count(number) != 0; }
  tq_kv_status place_status() const {
    return models_.size() < config_.max_sequences ? TQ_KV_OK : TQ_KV_OUT_OF_RANGE;
  }
  void place(tq_kv_status status, std::uint32_t number, SequenceModel model) {
    if (status != TQ_KV_OK) return;
    require(number < config_.max_sequences && !known(number), "a sequence's number is in use");
    models_[number] = std::move(model);
  }

  void create_one() {
    std::uint32_t number = 0;
    const tq_kv_status wanted = place_status();
    expect(tq_kv_sequence_create(cache_.get(), &number), wanted, "sequence_create");
    place(wanted, number, SequenceModel(config_.layers));
  }

  void copy_one() {
    const std::uint32_t from = any();
    std::uint32_t number = 0;
    const tq_kv_status wanted = known(from) ? place_status() : TQ_KV_OUT_OF_RANGE;
    expect(tq_kv_sequence_copy(cache_.get(), from, &number), wanted, "sequence_copy");
    if (wanted == TQ_KV_OK) place(wanted, number, models_[from]);
  }

  void free_one(std::uint32_t number) {
    expect(tq_kv_sequence_free(cache_.get(), number), known(number) ? TQ_KV_OK : TQ_KV_OUT_OF_RANGE,
           "sequence_free");
    models_.erase(number);
  }

  static void cut(Tokens& tokens, std::size_t n, std::size_t key_width, std::size_t value_width) {
    tokens.n = n;
    tokens.keys.resize(n * key_width);
    tokens.values.resize(n * value_width);
  }

  void truncate_one() {
    const std::uint32_t number = any();
    const std::size_t tokens = bytes_.below(256);
    bool fits = known(number);
    if (fits) {
      for (const LayerModel& layer : models_[number]) fits = fits && tokens <= layer.length();
    }
    expect(tq_kv_sequence_truncate(cache_.get(), number, tokens),
           fits ? TQ_KV_OK : TQ_KV_OUT_OF_RANGE, "sequence_truncate");
    if (!fits) return;
    for (LayerModel& layer : models_[number]) {
      std::size_t surplus = layer.length() - tokens;
      const std::size_t from_tail = std::min(surplus, layer.tail.n);
      cut(layer.tail, layer.tail.n - from_tail, key_width_, value_width_);
      surplus -= from_tail;
      while (surplus > 0 && !layer.pages.empty()) {
        const std::size_t from_page = std::min(surplus, layer.pages.back().used);
        layer.pages.back().used -= from_page;
        if (layer.pages.back().used == 0) layer.pages.pop_back();
        surplus -= from_page;
      }
      cut(layer.sinks, layer.sinks.n - surplus, key_width_, value_width_);
    }
  }

  float value() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<std::int32_t>(state_ >> 33)) / (1 << 29) - 2;
  }

  // The tokens of a page as a cache of its own, with neither sinks nor tail, decodes them.
  std::shared_ptr<const Tokens> decode_page(const Tokens& tokens) {
    tq_kv_config config = config_;
    config.layers = config.max_sequences = 1;
    config.sink_tokens = config.tail_tokens = 0;
    const CachePointer cache = create(config);
    std::uint32_t number = 0;
    expect(tq_kv_sequence_create(cache.get(), &number), TQ_KV_OK, "sequence_create");
    expect(tq_kv_append(cache.get(), 0, number, 0, config.page_tokens, tokens.keys.data(),
                        tokens.values.data()),
           TQ_KV_OK, "append");
    auto decoded = std::make_shared<Tokens>(tokens);
    expect(tq_kv_dequantize(cache.get(), 0, number, decoded->keys.data(), decoded->values.data()),
           TQ_KV_OK, "dequantize");
    return decoded;
  }

  static void move_front(Tokens& from, std::size_t n, std::size_t key_width,
                         std::size_t value_width, Tokens& to) {
    const auto keys = from.keys.begin() + static_cast<std::ptrdiff_t>(n * key_width);
    const auto values = from.values.begin() + static_cast<std::ptrdiff_t>(n * value_width);
    to.keys.insert(to.keys.end(), from.keys.begin(), keys);
    to.values.insert(to.values.end(), from.values.begin(), values);
    to.n += n;
    from.keys.erase(from.keys.begin(), keys);
    from.values.erase(from.values.begin(), values);
    from.n -= n;
  }

  void append_one() {
    const std::uint32_t number = any();
    const std::uint32_t layer = bytes_.below(16) == 0 ? 7 : bytes_.below(config_.layers);
    Tokens tokens;
    tokens.n = bytes_.below(4) == 0 ? bytes_.below(200) : bytes_.below(4);
    for (std::size_t i = 0; i < tokens.n * key_width_; ++i) tokens.keys.push_back(value());
    for (std::size_t i = 0; i < tokens.n * value_width_; ++i) tokens.values.push_back(value());
    if (!known(number) || layer >= config_.layers) {
      expect(tq_kv_append(cache_.get(), layer, number, 0, tokens.n, tokens.keys.data(),
                          tokens.values.data()),
             TQ_KV_OUT_OF_RANGE, "append");
      return;
    }
    LayerModel& model = models_[number][layer];
    const std::size_t length = model.length();
    expect(tq_kv_append(cache_.get(), layer, number, length, tokens.n, tokens.keys.data(),
                        tokens.values.data()),
           TQ_KV_OK, "append");
    if (model.length() < config_.sink_tokens) {
      const std::size_t n = std::min(tokens.n, config_.sink_tokens - model.length());
      move_front(tokens, n, key_width_, value_width_, model.sinks);
    }
    move_front(tokens, tokens.n, key_width_, value_width_, model.tail);
    while (model.tail.n >= config_.tail_tokens + config_.page_tokens) {
      Tokens page;
      move_front(model.tail, config_.page_tokens, key_width_, value_width_, page);
      model.pages.push_back({decode_page(page), page.n});
    }
  }

  static void expect_near(const float* got, const std::vector<float>& wanted, std::size_t n,
                          float tolerance, const char* what) {
    for (std::size_t i = 0; i < n; ++i) {
      require(std::fabs(got[i] - wanted[i]) <= tolerance * std::fabs(wanted[i]),
              std::string(what) + " differ from the model's");
    }
  }

  Tokens dequantize(std::uint32_t number, std::uint32_t layer, std::size_t n) {
    Tokens all;
    all.n = n;
    all.keys.resize(n * key_width_ + 1);
    all.values.resize(n * value_width_ + 1);
    expect(tq_kv_dequantize(cache_.get(), layer, number, all.keys.data(), all.values.data()),
           TQ_KV_OK, "dequantize");
    return all;
  }

  // Coded tokens bit for bit, raw ones to a half's rounding.
  void check_contents(std::uint32_t number, const SequenceModel& model) {
    for (std::uint32_t layer = 0; layer < config_.layers; ++layer) {
      const LayerModel& own = model[layer];
      const Tokens all = dequantize(number, layer, own.length());
      const float* keys = all.keys.data();
      const float* values = all.values.data();
      const auto check = [&](const Tokens& tokens, std::size_t n, float tolerance) {
        expect_near(keys, tokens.keys, n * key_width_, tolerance, "keys");
        expect_near(values, tokens.values, n * value_width_, tolerance, "values");
        keys += n * key_width_;
        values += n * value_width_;
      };
      const float half = 1.0f / 1024;
      check(own.sinks, own.sinks.n, half);
      for (const PageModel& page : own.pages) check(*page.decoded, page.used, 0);
      check(own.tail, own.tail.n, half);
    }
  }

  void save_one() {
    const std::uint32_t from = any();
    std::size_t needed = 0;
    if (!known(from)) {
      expect(tq_kv_sequence_save(cache_.get(), from, nullptr, 0, &needed), TQ_KV_OUT_OF_RANGE,
             "sequence_save");
      return;
    }
    const auto save = bytes_.below(2) == 0 ? tq_kv_sequence_save : tq_kv_sequence_save_packed;
    expect(save(cache_.get(), from, nullptr, 0, &needed), TQ_KV_OUT_OF_RANGE, "sequence_save");
    std::vector<std::uint8_t> saved(needed);
    expect(save(cache_.get(), from, saved.data(), needed, &needed), TQ_KV_OK, "sequence_save");
    std::uint32_t number = 0;
    if (bytes_.below(2) == 0) {
      const tq_kv_status wanted = place_status();
      expect(tq_kv_sequence_restore(cache_.get(), saved.data(), needed, &number), wanted,
             "sequence_restore");
      if (wanted == TQ_KV_OK) place(wanted, number, models_[from]);
      return;
    }
    for (std::uint32_t i = bytes_.below(5); i > 0; --i) {
      const std::size_t at = (bytes_.below(256) * 256 + bytes_.below(256)) * 7;
      saved[at % needed] ^= static_cast<std::uint8_t>(1 + bytes_.below(255));
    }
    saved.resize(needed - bytes_.below(3));
    if (tq_kv_sequence_restore(cache_.get(), saved.data(), saved.size(), &number) != TQ_KV_OK)
      return;
    require(!known(number), "a restored sequence took another's number");
    expect(tq_kv_sequence_free(cache_.get(), number), TQ_KV_OK, "sequence_free");
  }

  void attend_one() {
    const std::uint32_t number = any();
    const std::uint32_t layer = bytes_.below(config_.layers);
    const std::size_t length = known(number) ? models_[number][layer].length() : 0;
    const std::uint32_t queries = bytes_.below(40);
    tq_kv_attention a;
    expect(tq_kv_attention_init(&a), TQ_KV_OK, "attention_init");
    std::vector<float> q(40 * config_.query_heads * config_.key_dim);
    std::vector<float> out(40 * config_.query_heads * config_.value_dim);
    std::vector<float> lse(40 * config_.query_heads);
    for (float& x : q) x = value();
    a.layer = layer;
    a.sequences = 1;
    a.sequence = &number;
    a.queries = &queries;
    a.q = q.data();
    a.out = out.data();
    a.lse = lse.data();
    a.causal = bytes_.below(2);
    a.window = bytes_.below(2) * bytes_.below(100);
    a.threads = 1;
    const tq_kv_status wanted = !known(number)                     ? TQ_KV_OUT_OF_RANGE
                                : queries == 0 || queries > length ? TQ_KV_INVALID_ARGUMENT
                                                                   : TQ_KV_OK;
    expect(tq_kv_attend(cache_.get(), &a), wanted, "attend");
    if (wanted != TQ_KV_OK) return;
    const Tokens all = dequantize(number, layer, length);
    for (std::size_t i = 0; i < queries; ++i) {
      for (std::size_t h = 0; h < config_.query_heads; ++h) check_row(a, all, queries, i, h);
    }
  }

  void check_row(const tq_kv_attention& a, const Tokens& all, std::size_t queries, std::size_t i,
                 std::size_t h) {
    const std::size_t kv = h / (config_.query_heads / config_.kv_heads);
    const std::size_t end = a.causal != 0 ? all.n - queries + i + 1 : all.n;
    const std::size_t begin = a.window != 0 && end > a.window ? end - a.window : 0;
    const std::size_t row = i * config_.query_heads + h;
    const float* q = a.q + row * config_.key_dim;
    std::vector<double> weights;
    double largest = -HUGE_VAL;
    double key_norm = 0;
    double query_norm = 0;
    for (std::size_t c = 0; c < config_.key_dim; ++c) query_norm += double{q[c]} * q[c];
    for (std::size_t t = begin; t < end; ++t) {
      const float* key = all.keys.data() + t * key_width_ + kv * config_.key_dim;
      double dot = 0;
      double norm = 0;
      for (std::size_t c = 0; c < config_.key_dim; ++c) {
        dot += double{q[c]} * key[c];
        norm += double{key[c]} * key[c];
      }
      key_norm = std::max(key_norm, norm);
      weights.push_back(dot / std::sqrt(config_.key_dim));
      largest = std::max(largest, weights.back());
    }
    double total = 0;
    for (double& w : weights) total += w = std::exp(w - largest);
    // A query is rounded to 127 steps of its largest coordinate.
    const double score_error = std::sqrt(query_norm * key_norm / config_.key_dim) / 127 * 2 + 1e-4;
    require(std::fabs(a.lse[row] - largest - std::log(total)) <= score_error,
            "the log-sum-exp differs from the model's");
    for (std::size_t c = 0; c < config_.value_dim; ++c) {
      double sum = 0;
      double size = 0;
      for (std::size_t t = begin; t < end; ++t) {
        const double v = all.values[t * value_width_ + kv * config_.value_dim + c];
        sum += weights[t - begin] / total * v;
        size = std::max(size, std::fabs(v));
      }
      // Values of a token share a scale, so one's error may be of the size of another's.
      const double most = 4 * std::sqrt(static_cast<double>(config_.value_dim));
      require(std::fabs(a.out[row * config_.value_dim + c] - sum) <=
                  size * 2 * score_error + most * 0.01,
              "an output differs from the model's");
    }
  }

  void misuse() {
    const std::uint32_t number = any();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> bad(std::max(key_width_, value_width_), nan);
    std::size_t n = 0;
    tq_kv_attention a{};
    switch (bytes_.below(6)) {
      case 0:
        if (!known(number)) return;
        return expect(tq_kv_append(cache_.get(), 0, number, models_[number][0].length(), 1,
                                   bad.data(), bad.data()),
                      TQ_KV_INVALID_ARGUMENT, "append of NaN");
      case 1:
        if (!known(number)) return;
        return expect(tq_kv_append(cache_.get(), 0, number, models_[number][0].length() + 1, 0,
                                   nullptr, nullptr),
                      TQ_KV_INVALID_ARGUMENT, "append at a wrong position");
      case 2:
        return expect(tq_kv_attend(cache_.get(), &a), TQ_KV_INVALID_ARGUMENT, "attend of zeros");
      case 3:
        return expect(tq_kv_sequence_length(nullptr, 0, number, &n), TQ_KV_INVALID_ARGUMENT,
                      "length of null");
      case 4:
        return expect(tq_kv_sequence_length(cache_.get(), config_.layers, 0, &n),
                      TQ_KV_OUT_OF_RANGE, "length of a layer too many");
      default:
        return expect(tq_kv_dequantize(cache_.get(), 0, 1000, &a.scale, &a.scale),
                      TQ_KV_OUT_OF_RANGE, "dequantize of no sequence");
    }
  }

  void check_lengths() {
    std::size_t tokens = 0;
    for (const auto& [number, model] : models_) {
      for (std::uint32_t layer = 0; layer < config_.layers; ++layer) {
        std::size_t length = 0;
        expect(tq_kv_sequence_length(cache_.get(), layer, number, &length), TQ_KV_OK, "length");
        require(length == model[layer].length(), "a length differs from the model's");
        tokens += length;
      }
    }
    tq_kv_memory memory;
    expect(tq_kv_get_memory(cache_.get(), &memory), TQ_KV_OK, "get_memory");
    require(memory.half == tokens * 2 * (key_width_ + value_width_), "bytes of halves are wrong");
  }

  Bytes bytes_;
  tq_kv_config config_{};
  CachePointer cache_;
  std::size_t key_width_ = 0, value_width_ = 0;
  std::map<std::uint32_t, SequenceModel> models_;
  std::uint64_t state_ = 1;
};

}  // namespace

std::string random_calls(const std::uint8_t* bytes, std::size_t n) {
  try {
    Run(Bytes(bytes, n)).all();
    return "";
  } catch (const std::runtime_error& e) {
    return e.what();
  }
}

}  // namespace turboquant::kv::test
