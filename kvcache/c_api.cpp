#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "kvcache/attention.h"
#include "kvcache/cache.h"
#ifdef TQ_HAVE_CUDA
#include "kvcache/device_cache.h"
#endif
#include "turboquant/kvcache.h"

namespace kv = turboquant::kv;

#ifndef TQ_HAVE_CUDA
namespace turboquant::kv {
class DeviceCache {};  // there are none
}  // namespace turboquant::kv
#endif

// One of the two.
struct tq_kv_cache {
  std::unique_ptr<kv::Cache> host;
  std::unique_ptr<kv::DeviceCache> device;

  // The cache that there is, for what both can do.
  template <typename Work>
  void visit(const Work& work) const {
#ifdef TQ_HAVE_CUDA
    if (device != nullptr) return work(*device);
#endif
    work(*host);
  }
};

namespace {

thread_local std::string last_error;

void require(bool holds, const char* sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

void remember(const char* sentence) noexcept {
  try {
    last_error = sentence;
  } catch (...) {
    last_error.clear();
  }
}

// The one place where exceptions become codes.
template <typename Work>
tq_kv_status guarded(const Work& work) noexcept {
  try {
    work();
    return TQ_KV_OK;
  } catch (const std::invalid_argument& e) {
    remember(e.what());
    return TQ_KV_INVALID_ARGUMENT;
  } catch (const std::out_of_range& e) {
    remember(e.what());
    return TQ_KV_OUT_OF_RANGE;
#ifdef TQ_HAVE_CUDA
  } catch (const kv::NoMemory& e) {
    remember(e.what());
    return TQ_KV_NO_MEMORY;
#endif
  } catch (const std::bad_alloc&) {
    remember("there is not enough memory");
    return TQ_KV_NO_MEMORY;
  } catch (const std::exception& e) {
    remember(e.what());
    return TQ_KV_INTERNAL;
  } catch (...) {
    remember("an unknown exception");
    return TQ_KV_INTERNAL;
  }
}

void save(const tq_kv_cache* cache, uint32_t sequence, bool pack, void* bytes, size_t capacity,
          size_t* needed) {
  require(cache != nullptr && needed != nullptr, "cache or needed is null");
  require(bytes != nullptr || capacity == 0, "bytes is null");
  std::vector<std::uint8_t> saved;
  cache->visit([&](auto& c) { saved = c.serialize(sequence, pack); });
  *needed = saved.size();
  if (saved.size() > capacity) {
    throw std::out_of_range("the sequence takes " + std::to_string(saved.size()) +
                            " bytes, and there is room for " + std::to_string(capacity));
  }
  std::memcpy(bytes, saved.data(), saved.size());
}

kv::SideOptions side_of(const tq_kv_side& side) {
  require(side.centre <= 1, "centre must be 0 or 1");
  require(side.bits <= TQ_KV_RAW_BITS, "bits must be 1 to 4, or 16 for half precision");
  kv::SideOptions options;
  options.bits = static_cast<int>(side.bits);
  options.outliers = side.outliers;
  options.centre = side.centre == 1;
  return options;
}

kv::CacheOptions options_of(const tq_kv_config& config) {
  require(config.struct_size == sizeof(tq_kv_config),
          "the configuration was not set up by tq_kv_config_init of this version");
  kv::CacheOptions options;
  options.kv_heads = config.kv_heads;
  options.query_heads = config.query_heads;
  options.key_dim = config.key_dim;
  options.value_dim = config.value_dim;
  options.max_sequences = config.max_sequences;
  options.page_tokens = config.page_tokens;
  options.sink_tokens = config.sink_tokens;
  options.tail_tokens = config.tail_tokens;
  options.seed = config.seed;
  require(config.layers <= 4096, "a cache has at most 4096 layers");
  for (std::uint32_t i = 0; i < config.layers; ++i) {
    const tq_kv_layer& layer = config.per_layer != nullptr ? config.per_layer[i] : config.layer;
    options.layers.push_back({side_of(layer.keys), side_of(layer.values)});
  }
  return options;
}

struct Attention {
  std::vector<std::size_t> sequences;
  std::vector<std::size_t> queries;
  kv::AttentionOptions options;
  kv::AttentionBatch batch() const { return {sequences.size(), sequences.data(), queries.data()}; }
};

Attention attention_of(const tq_kv_attention& a) {
  require(a.struct_size == sizeof(tq_kv_attention),
          "the attention was not set up by tq_kv_attention_init of this version");
  Attention made;
  if (a.sequences == 0) return made;
  require(a.sequence != nullptr && a.queries != nullptr, "sequence or queries is null");
  require(a.q != nullptr, "q or out is null");
  require(a.causal <= 1, "causal must be 0 or 1");
  require(a.threads <= 65536, "there are at most 65536 threads");
  made.sequences.assign(a.sequence, a.sequence + a.sequences);
  made.queries.assign(a.queries, a.queries + a.sequences);
  made.options.scale = a.scale;
  made.options.causal = a.causal == 1;
  made.options.window = a.window;
  made.options.softcap = a.softcap;
  made.options.mask = a.mask;
  made.options.mask_stride = a.mask_stride;
  made.options.sinks = a.sinks;
  made.options.threads = static_cast<int>(a.threads);
  return made;
}

#ifdef TQ_HAVE_CUDA
kv::DeviceCache& on_device(tq_kv_cache* cache) {
  require(cache != nullptr, "cache is null");
  require(cache->device != nullptr, "the cache is not on a device");
  return *cache->device;
}

kv::DeviceOptions device_options_of(const tq_kv_device_config& device) {
  require(device.struct_size == sizeof(tq_kv_device_config),
          "the device was not set up by tq_kv_device_config_init of this version");
  kv::DeviceOptions options;
  options.device = device.device;
  options.sequence_tokens = device.sequence_tokens;
  options.pool_tokens = device.pool_tokens;
  return options;
}

turboquant::cuda::KvElement element_of(const tq_kv_device_call* call) {
  require(call != nullptr, "call is null");
  require(call->struct_size == sizeof(tq_kv_device_call),
          "the call was not set up by tq_kv_device_call_init of this version");
  require(call->element <= TQ_KV_BFLOAT16, "element must be float, half or bfloat16");
  return static_cast<turboquant::cuda::KvElement>(call->element);
}
#endif

[[noreturn]] [[maybe_unused]] void refuse_devices() {
  throw std::invalid_argument("this library was built without CUDA");
}

void attend(const tq_kv_cache* cache, const tq_kv_attention& a) {
  const Attention made = attention_of(a);
  if (a.sequences == 0) return;
  require(a.out != nullptr, "q or out is null");
#ifdef TQ_HAVE_CUDA
  if (cache->device != nullptr) {
    kv::DeviceAttention attention;
    attention.q = a.q;
    attention.out = a.out;
    attention.lse = a.lse;
    cache->device->attend(a.layer, made.batch(), made.options, attention, nullptr);
    return;
  }
#endif
  kv::attend(*cache->host, a.layer, made.batch(), made.options, a.q, a.out, a.lse);
}

}  // namespace

extern "C" {

tq_kv_status tq_kv_config_init(tq_kv_config* config) {
  return guarded([&] {
    require(config != nullptr, "config is null");
    std::memset(config, 0, sizeof *config);
    config->struct_size = sizeof *config;
    config->max_sequences = 1;
    config->page_tokens = 64;
    config->sink_tokens = 4;
    config->tail_tokens = 64;
    config->layer = {{4, 0, 1}, {4, 0, 0}};
  });
}

tq_kv_status tq_kv_create(const tq_kv_config* config, tq_kv_cache** cache) {
  return guarded([&] {
    require(config != nullptr && cache != nullptr, "config or cache is null");
    *cache = new tq_kv_cache{std::make_unique<kv::Cache>(options_of(*config)), nullptr};
  });
}

void tq_kv_destroy(tq_kv_cache* cache) { delete cache; }

tq_kv_status tq_kv_sequence_create(tq_kv_cache* cache, uint32_t* sequence) {
  return guarded([&] {
    require(cache != nullptr && sequence != nullptr, "cache or sequence is null");
    cache->visit([&](auto& c) { *sequence = static_cast<uint32_t>(c.create_sequence()); });
  });
}

tq_kv_status tq_kv_sequence_copy(tq_kv_cache* cache, uint32_t from, uint32_t* sequence) {
  return guarded([&] {
    require(cache != nullptr && sequence != nullptr, "cache or sequence is null");
    cache->visit([&](auto& c) { *sequence = static_cast<uint32_t>(c.copy_sequence(from)); });
  });
}

tq_kv_status tq_kv_sequence_truncate(tq_kv_cache* cache, uint32_t sequence, size_t tokens) {
  return guarded([&] {
    require(cache != nullptr, "cache is null");
    cache->visit([&](auto& c) { c.truncate(sequence, tokens); });
  });
}

tq_kv_status tq_kv_sequence_free(tq_kv_cache* cache, uint32_t sequence) {
  return guarded([&] {
    require(cache != nullptr, "cache is null");
    cache->visit([&](auto& c) { c.free_sequence(sequence); });
  });
}

tq_kv_status tq_kv_sequence_length(const tq_kv_cache* cache, uint32_t layer, uint32_t sequence,
                                   size_t* tokens) {
  return guarded([&] {
    require(cache != nullptr && tokens != nullptr, "cache or tokens is null");
    cache->visit([&](auto& c) { *tokens = c.length(layer, sequence); });
  });
}

tq_kv_status tq_kv_append(tq_kv_cache* cache, uint32_t layer, uint32_t sequence, size_t position,
                          size_t n, const float* keys, const float* values) {
  return guarded([&] {
    require(cache != nullptr, "cache is null");
    require(n == 0 || (keys != nullptr && values != nullptr), "keys or values is null");
#ifdef TQ_HAVE_CUDA
    if (cache->device != nullptr) {
      if (position != cache->device->length(layer, sequence)) {
        throw std::invalid_argument("the next position is the layer's length");
      }
      cache->device->append(layer, {sequence}, n, turboquant::cuda::KvElement::kFloat, keys, values,
                            nullptr);
      return;
    }
#endif
    cache->host->append(layer, sequence, position, n, keys, values);
  });
}

tq_kv_status tq_kv_attention_init(tq_kv_attention* attention) {
  return guarded([&] {
    require(attention != nullptr, "attention is null");
    std::memset(attention, 0, sizeof *attention);
    attention->struct_size = sizeof *attention;
    attention->causal = 1;
  });
}

tq_kv_status tq_kv_attend(const tq_kv_cache* cache, const tq_kv_attention* attention) {
  return guarded([&] {
    require(cache != nullptr && attention != nullptr, "cache or attention is null");
    attend(cache, *attention);
  });
}

tq_kv_status tq_kv_dequantize(const tq_kv_cache* cache, uint32_t layer, uint32_t sequence,
                              float* keys, float* values) {
  return guarded([&] {
    require(cache != nullptr && keys != nullptr && values != nullptr,
            "cache, keys or values is null");
    cache->visit([&](auto& c) { c.dequantize(layer, sequence, keys, values); });
  });
}

tq_kv_status tq_kv_get_memory(const tq_kv_cache* cache, tq_kv_memory* memory) {
  return guarded([&] {
    require(cache != nullptr && memory != nullptr, "cache or memory is null");
    kv::MemoryUse use;
    cache->visit([&](auto& c) { use = c.memory(); });
    *memory = {use.allocated, use.half};
  });
}

tq_kv_status tq_kv_sequence_save(const tq_kv_cache* cache, uint32_t sequence, void* bytes,
                                 size_t capacity, size_t* needed) {
  return guarded([&] { save(cache, sequence, false, bytes, capacity, needed); });
}

tq_kv_status tq_kv_sequence_save_packed(const tq_kv_cache* cache, uint32_t sequence, void* bytes,
                                        size_t capacity, size_t* needed) {
  return guarded([&] { save(cache, sequence, true, bytes, capacity, needed); });
}

tq_kv_status tq_kv_sequence_restore(tq_kv_cache* cache, const void* bytes, size_t n,
                                    uint32_t* sequence) {
  return guarded([&] {
    require(cache != nullptr && sequence != nullptr, "cache or sequence is null");
    require(bytes != nullptr, "bytes is null");
    cache->visit([&](auto& c) {
      *sequence = static_cast<uint32_t>(c.restore(static_cast<const std::uint8_t*>(bytes), n));
    });
  });
}

tq_kv_status tq_kv_device_config_init(tq_kv_device_config* device) {
  return guarded([&] {
    require(device != nullptr, "device is null");
    std::memset(device, 0, sizeof *device);
    device->struct_size = sizeof *device;
    device->sequence_tokens = 32768;
  });
}

tq_kv_status tq_kv_device_call_init(tq_kv_device_call* call) {
  return guarded([&] {
    require(call != nullptr, "call is null");
    std::memset(call, 0, sizeof *call);
    call->struct_size = sizeof *call;
  });
}

#ifdef TQ_HAVE_CUDA

tq_kv_status tq_kv_create_on_device(const tq_kv_config* config, const tq_kv_device_config* device,
                                    tq_kv_cache** cache) {
  return guarded([&] {
    require(config != nullptr && device != nullptr && cache != nullptr,
            "config, device or cache is null");
    *cache = new tq_kv_cache{nullptr, std::make_unique<kv::DeviceCache>(
                                          options_of(*config), device_options_of(*device))};
  });
}

tq_kv_status tq_kv_append_on_device(tq_kv_cache* cache, uint32_t layer, uint32_t sequences,
                                    const uint32_t* sequence, size_t tokens, const void* keys,
                                    const void* values, const tq_kv_device_call* call) {
  return guarded([&] {
    kv::DeviceCache& device = on_device(cache);
    const auto element = element_of(call);
    if (sequences == 0 || tokens == 0) return;
    require(sequence != nullptr && keys != nullptr && values != nullptr,
            "sequence, keys or values is null");
    device.append(layer, std::vector<std::size_t>(sequence, sequence + sequences), tokens, element,
                  keys, values, call->stream);
  });
}

tq_kv_status tq_kv_attend_on_device(tq_kv_cache* cache, const tq_kv_attention* attention,
                                    const tq_kv_device_call* call) {
  return guarded([&] {
    kv::DeviceCache& device = on_device(cache);
    require(attention != nullptr, "attention is null");
    kv::DeviceAttention asked;
    asked.element = element_of(call);
    const Attention made = attention_of(*attention);
    if (attention->sequences == 0) return;
    require(attention->out != nullptr, "q or out is null");
    asked.q = attention->q;
    asked.out = attention->out;
    asked.lse = attention->lse;
    device.attend(attention->layer, made.batch(), made.options, asked, call->stream);
  });
}

tq_kv_status tq_kv_scores_on_device(tq_kv_cache* cache, const tq_kv_attention* attention,
                                    uint16_t* scores, size_t stride,
                                    const tq_kv_device_call* call) {
  return guarded([&] {
    kv::DeviceCache& device = on_device(cache);
    require(attention != nullptr && scores != nullptr, "attention or scores is null");
    kv::DeviceAttention asked;
    asked.element = element_of(call);
    const Attention made = attention_of(*attention);
    if (attention->sequences == 0) return;
    asked.q = attention->q;
    asked.scores = scores;
    asked.score_stride = stride;
    device.attend(attention->layer, made.batch(), made.options, asked, call->stream);
  });
}

tq_kv_status tq_kv_reserve(tq_kv_cache* cache, uint32_t sequence, size_t tokens) {
  return guarded([&] { on_device(cache).reserve(sequence, tokens); });
}

tq_kv_status tq_kv_refresh(tq_kv_cache* cache) {
  return guarded([&] { on_device(cache).refresh(); });
}

#else

tq_kv_status tq_kv_create_on_device(const tq_kv_config*, const tq_kv_device_config*,
                                    tq_kv_cache**) {
  return guarded(refuse_devices);
}
tq_kv_status tq_kv_append_on_device(tq_kv_cache*, uint32_t, uint32_t, const uint32_t*, size_t,
                                    const void*, const void*, const tq_kv_device_call*) {
  return guarded(refuse_devices);
}
tq_kv_status tq_kv_attend_on_device(tq_kv_cache*, const tq_kv_attention*,
                                    const tq_kv_device_call*) {
  return guarded(refuse_devices);
}
tq_kv_status tq_kv_scores_on_device(tq_kv_cache*, const tq_kv_attention*, uint16_t*, size_t,
                                    const tq_kv_device_call*) {
  return guarded(refuse_devices);
}
tq_kv_status tq_kv_reserve(tq_kv_cache*, uint32_t, size_t) { return guarded(refuse_devices); }
tq_kv_status tq_kv_refresh(tq_kv_cache*) { return guarded(refuse_devices); }

#endif

const char* tq_kv_last_error(void) { return last_error.c_str(); }

}  // extern "C"
