#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "kvcache/attention.h"
#include "kvcache/cache.h"
#include "turboquant/kvcache.h"

namespace kv = turboquant::kv;

struct tq_kv_cache {
  kv::Cache cache;
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

void attend(const tq_kv_cache* cache, const tq_kv_attention& a) {
  require(a.struct_size == sizeof(tq_kv_attention),
          "the attention was not set up by tq_kv_attention_init of this version");
  if (a.sequences == 0) return;
  require(a.sequence != nullptr && a.queries != nullptr, "sequence or queries is null");
  require(a.q != nullptr && a.out != nullptr, "q or out is null");
  require(a.causal <= 1, "causal must be 0 or 1");
  require(a.threads <= 65536, "there are at most 65536 threads");
  const std::vector<std::size_t> sequences(a.sequence, a.sequence + a.sequences);
  const std::vector<std::size_t> queries(a.queries, a.queries + a.sequences);
  kv::AttentionOptions options;
  options.scale = a.scale;
  options.causal = a.causal == 1;
  options.window = a.window;
  options.softcap = a.softcap;
  options.mask = a.mask;
  options.mask_stride = a.mask_stride;
  options.sinks = a.sinks;
  options.threads = static_cast<int>(a.threads);
  kv::attend(cache->cache, a.layer, {a.sequences, sequences.data(), queries.data()}, options, a.q,
             a.out, a.lse);
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
    *cache = new tq_kv_cache{kv::Cache(options_of(*config))};
  });
}

void tq_kv_destroy(tq_kv_cache* cache) { delete cache; }

tq_kv_status tq_kv_sequence_create(tq_kv_cache* cache, uint32_t* sequence) {
  return guarded([&] {
    require(cache != nullptr && sequence != nullptr, "cache or sequence is null");
    *sequence = static_cast<uint32_t>(cache->cache.create_sequence());
  });
}

tq_kv_status tq_kv_sequence_copy(tq_kv_cache* cache, uint32_t from, uint32_t* sequence) {
  return guarded([&] {
    require(cache != nullptr && sequence != nullptr, "cache or sequence is null");
    *sequence = static_cast<uint32_t>(cache->cache.copy_sequence(from));
  });
}

tq_kv_status tq_kv_sequence_truncate(tq_kv_cache* cache, uint32_t sequence, size_t tokens) {
  return guarded([&] {
    require(cache != nullptr, "cache is null");
    cache->cache.truncate(sequence, tokens);
  });
}

tq_kv_status tq_kv_sequence_free(tq_kv_cache* cache, uint32_t sequence) {
  return guarded([&] {
    require(cache != nullptr, "cache is null");
    cache->cache.free_sequence(sequence);
  });
}

tq_kv_status tq_kv_sequence_length(const tq_kv_cache* cache, uint32_t layer, uint32_t sequence,
                                   size_t* tokens) {
  return guarded([&] {
    require(cache != nullptr && tokens != nullptr, "cache or tokens is null");
    *tokens = cache->cache.length(layer, sequence);
  });
}

tq_kv_status tq_kv_append(tq_kv_cache* cache, uint32_t layer, uint32_t sequence, size_t position,
                          size_t n, const float* keys, const float* values) {
  return guarded([&] {
    require(cache != nullptr, "cache is null");
    require(n == 0 || (keys != nullptr && values != nullptr), "keys or values is null");
    cache->cache.append(layer, sequence, position, n, keys, values);
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
    cache->cache.dequantize(layer, sequence, keys, values);
  });
}

tq_kv_status tq_kv_get_memory(const tq_kv_cache* cache, tq_kv_memory* memory) {
  return guarded([&] {
    require(cache != nullptr && memory != nullptr, "cache or memory is null");
    const kv::MemoryUse use = cache->cache.memory();
    *memory = {use.allocated, use.half};
  });
}

tq_kv_status tq_kv_sequence_save(const tq_kv_cache* cache, uint32_t sequence, void* bytes,
                                 size_t capacity, size_t* needed) {
  return guarded([&] {
    require(cache != nullptr && needed != nullptr, "cache or needed is null");
    require(bytes != nullptr || capacity == 0, "bytes is null");
    const std::vector<std::uint8_t> saved = cache->cache.serialize(sequence);
    *needed = saved.size();
    if (saved.size() > capacity) {
      throw std::out_of_range("the sequence takes " + std::to_string(saved.size()) +
                              " bytes, and there is room for " + std::to_string(capacity));
    }
    std::memcpy(bytes, saved.data(), saved.size());
  });
}

tq_kv_status tq_kv_sequence_restore(tq_kv_cache* cache, const void* bytes, size_t n,
                                    uint32_t* sequence) {
  return guarded([&] {
    require(cache != nullptr && sequence != nullptr, "cache or sequence is null");
    require(bytes != nullptr, "bytes is null");
    *sequence =
        static_cast<uint32_t>(cache->cache.restore(static_cast<const std::uint8_t*>(bytes), n));
  });
}

const char* tq_kv_last_error(void) { return last_error.c_str(); }

}  // extern "C"
