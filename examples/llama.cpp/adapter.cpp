// The compressed cache inside llama.cpp's programs, which do not know of it:
//
//   LD_PRELOAD=libturboquant_llama.so llama-perplexity -m model.gguf -f text.txt
//
// Takes the place of llama_init_from_model. In a llama.cpp with our patch, attention calls this
// library instead of writing and reading its own cache, whose memory is then saved. In one without,
// the context's cb_eval sees each flash attention after it was computed from halves, and its output
// is replaced; that saves nothing and shows that the quality is the cache's alone.
//
// TURBOQUANT_KV_BITS: keys/values, "4/4" if unset. TURBOQUANT_KV_SINKS, TURBOQUANT_KV_TAIL: tokens
// in half precision, 4 and 64. TURBOQUANT_KV_CALLBACK=1: cb_eval also where the patch is there.
// What is not understood ends the program with a sentence.
#include <dlfcn.h>
#include <ggml.h>
#include <llama.h>
#include <turboquant/kvcache.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "turboquant: %s\n", why.c_str());
  std::abort();
}

void check(tq_kv_status status) {
  if (status != TQ_KV_OK) refuse(tq_kv_last_error());
}

unsigned number(const char* name, unsigned otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  char* end = nullptr;
  const unsigned long value = std::strtoul(text, &end, 10);
  if (end == text || *end != '\0' || value > 1u << 20) refuse(std::string(name) + "=" + text);
  return static_cast<unsigned>(value);
}

float element(const char* at, ggml_type type) {
  if (type == GGML_TYPE_F32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  if (type != GGML_TYPE_F16) refuse(std::string("tensors of type ") + ggml_type_name(type));
  ggml_fp16_t value;
  std::memcpy(&value, at, sizeof value);
  return ggml_fp16_to_fp32(value);
}

// A tensor as rows [token][head] of one stream; nb are the steps in bytes.
struct Rows {
  const char* data;
  ggml_type type;
  std::size_t dim, heads, token_step, head_step, element_step;

  void copy(std::size_t first, std::size_t n, std::vector<float>& to) const {
    to.resize(n * heads * dim);
    float* out = to.data();
    for (std::size_t t = first; t < first + n; ++t) {
      for (std::size_t h = 0; h < heads; ++h) {
        const char* row = data + t * token_step + h * head_step;
        for (std::size_t i = 0; i < dim; ++i) *out++ = element(row + i * element_step, type);
      }
    }
  }
};

// What one stream (a sequence of llama.cpp's) asks of one layer.
struct Step {
  Rows q, k, v;
  std::size_t key_row = 0;      // of k and v where the new tokens begin
  bool rows_are_cells = false;  // key_row is then the position itself
  const char* mask = nullptr;   // row by row: 0 where a query sees a cell, -infinity elsewhere
  ggml_type mask_type = GGML_TYPE_F16;
  std::size_t cells = 0, mask_step = 0;
  std::size_t queries = 0;
  std::int64_t stream = 0;
  float scale = 0, softcap = 0;
  const float* sinks = nullptr;
  float* out = nullptr;  // [queries][heads][value size]
};

// The position of a query: it must see the cells 0 to its own and nothing else.
std::size_t position(const Step& step, std::size_t query) {
  const char* row = step.mask + query * step.mask_step;
  const std::size_t size = ggml_type_size(step.mask_type);
  std::size_t seen = 0;
  while (seen < step.cells && element(row + seen * size, step.mask_type) == 0) ++seen;
  for (std::size_t i = seen; i < step.cells; ++i) {
    const float m = element(row + i * size, step.mask_type);
    if (!(std::isinf(m) && m < 0)) {
      refuse(
          "one sequence per stream, causal, without window or ALiBi, is what is understood here");
    }
  }
  if (seen == 0) refuse("a query that sees nothing");
  return seen - 1;
}

class Layer {
 public:
  explicit Layer(const Step& step) {
    tq_kv_config config;
    check(tq_kv_config_init(&config));
    const char* bits = std::getenv("TURBOQUANT_KV_BITS");
    if (bits != nullptr && std::sscanf(bits, "%" SCNu32 "/%" SCNu32, &config.layer.keys.bits,
                                       &config.layer.values.bits) != 2) {
      refuse(std::string("TURBOQUANT_KV_BITS must be like 4/4, not ") + bits);
    }
    config.layer.keys.centre = config.layer.keys.bits == TQ_KV_RAW_BITS ? 0 : 1;
    config.layers = 1;
    config.query_heads = static_cast<std::uint32_t>(step.q.heads);
    config.kv_heads = static_cast<std::uint32_t>(step.k.heads);
    config.key_dim = static_cast<std::uint32_t>(step.k.dim);
    config.value_dim = static_cast<std::uint32_t>(step.v.dim);
    config.max_sequences = 256;
    config.sink_tokens = number("TURBOQUANT_KV_SINKS", config.sink_tokens);
    config.tail_tokens = number("TURBOQUANT_KV_TAIL", config.tail_tokens);
    tq_kv_cache* cache = nullptr;
    check(tq_kv_create(&config, &cache));
    cache_.reset(cache);
  }

  void run(const Step& step) {
    const std::size_t first = position(step, 0);
    for (std::size_t i = 1; i < step.queries; ++i) {
      if (position(step, i) != first + i) refuse("positions in a batch that do not follow");
    }
    const std::uint32_t sequence = this->sequence(step.stream);
    append(step, sequence, first);
    attend(step, sequence);
  }

  tq_kv_memory memory() const {
    tq_kv_memory memory;
    check(tq_kv_get_memory(cache_.get(), &memory));
    return memory;
  }

 private:
  std::uint32_t sequence(std::int64_t stream) {
    const auto found = sequences_.find(stream);
    if (found != sequences_.end()) return found->second;
    std::uint32_t made = 0;
    check(tq_kv_sequence_create(cache_.get(), &made));
    return sequences_[stream] = made;
  }

  void append(const Step& step, std::uint32_t sequence, std::size_t first) {
    std::size_t length = 0;
    check(tq_kv_sequence_length(cache_.get(), 0, sequence, &length));
    if (length < first) refuse("tokens that came into the cache on another way than a batch");
    // The program went back: a new text, or a part of a draft that was not taken.
    if (length > first) check(tq_kv_sequence_truncate(cache_.get(), sequence, first));
    const std::size_t row = step.rows_are_cells ? first : step.key_row;
    step.k.copy(row, step.queries, keys_);
    step.v.copy(row, step.queries, values_);
    check(
        tq_kv_append(cache_.get(), 0, sequence, first, step.queries, keys_.data(), values_.data()));
  }

  void attend(const Step& step, std::uint32_t sequence) {
    step.q.copy(0, step.queries, q_);
    const std::uint32_t queries = static_cast<std::uint32_t>(step.queries);
    tq_kv_attention attention;
    check(tq_kv_attention_init(&attention));
    attention.sequences = 1;
    attention.sequence = &sequence;
    attention.queries = &queries;
    attention.q = q_.data();
    attention.out = step.out;
    attention.scale = step.scale;
    attention.softcap = step.softcap;
    attention.sinks = step.sinks;
    check(tq_kv_attend(cache_.get(), &attention));
  }

  struct Destroy {
    void operator()(tq_kv_cache* cache) const { tq_kv_destroy(cache); }
  };
  std::unique_ptr<tq_kv_cache, Destroy> cache_;
  std::map<std::int64_t, std::uint32_t> sequences_;
  std::vector<float> q_, keys_, values_;
};

// One model and one context at a time.
class Adapter {
 public:
  ~Adapter() {
    if (peak_.allocated == 0) return;
    std::fprintf(stderr,
                 "turboquant: %zu layers, at most %zu bytes; half precision %zu: %.2f times\n",
                 layers_.size(), peak_.allocated, peak_.half,
                 static_cast<double>(peak_.half) / static_cast<double>(peak_.allocated));
  }

  void run(int il, const Step& step) {
    auto& layer = layers_[il];
    if (layer == nullptr) layer = std::make_unique<Layer>(step);
    layer->run(step);
    if (il != layers_.rbegin()->first) return;
    tq_kv_memory sum{};
    for (const auto& [number, each] : layers_) {
      const tq_kv_memory memory = each->memory();
      sum.allocated += memory.allocated;
      sum.half += memory.half;
    }
    if (sum.half >= peak_.half) peak_ = sum;
  }

  void clear() { layers_.clear(); }

 private:
  std::map<int, std::unique_ptr<Layer>> layers_;
  tq_kv_memory peak_{};
};

Adapter& adapter() {
  static Adapter made;
  return made;
}

Rows rows(const ggml_tensor* t, int token_axis, int head_axis, std::size_t stream_offset) {
  return {static_cast<const char*>(t->data) + stream_offset,
          t->type,
          static_cast<std::size_t>(t->ne[0]),
          static_cast<std::size_t>(t->ne[head_axis]),
          t->nb[token_axis],
          t->nb[head_axis],
          t->nb[0]};
}

void set_mask(Step& step, const ggml_tensor* mask, std::size_t stream) {
  if (mask == nullptr) refuse("attention without a mask");
  step.mask = static_cast<const char*>(mask->data) + stream * mask->nb[3];
  step.mask_type = mask->type;
  step.mask_step = mask->nb[1];
  step.cells = static_cast<std::size_t>(mask->ne[0]);
}

// Without the patch: q [d, n, heads, stream], k and v views of the cache [d, cells, heads, stream].
void replace_output(ggml_tensor* node) {
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
  if (k->view_src == nullptr) return;  // not from a cache
  int il = -1;
  if (std::sscanf(k->view_src->name, "cache_k_l%d", &il) != 1) {
    refuse(std::string("a cache by the name of ") + k->view_src->name);
  }
  float numbers[3];  // scale, the largest bias of ALiBi, softcap
  std::memcpy(numbers, node->op_params, sizeof numbers);
  if (numbers[1] != 0) refuse("ALiBi");
  for (std::size_t s = 0; s < static_cast<std::size_t>(q->ne[3]); ++s) {
    Step step{rows(q, 1, 2, s * q->nb[3]), rows(k, 1, 2, s * k->nb[3]),
              rows(v, 1, 2, s * v->nb[3])};
    set_mask(step, node->src[3], s);
    step.rows_are_cells = true;
    step.queries = static_cast<std::size_t>(q->ne[1]);
    step.stream = static_cast<std::int64_t>(k->view_offs / k->nb[3] + s);
    step.scale = numbers[0];
    step.softcap = numbers[2];
    if (node->src[4] != nullptr) step.sinks = static_cast<const float*>(node->src[4]->data);
    step.out = reinterpret_cast<float*>(static_cast<char*>(node->data) + s * node->nb[3]);
    adapter().run(il, step);
  }
}

bool on_node(ggml_tensor* node, bool ask, void*) {
  if (node->op != GGML_OP_FLASH_ATTN_EXT) return !ask;
  if (!ask) replace_output(node);
  return true;
}

// With the patch: q [d, heads, tokens], k and v [d, kv heads, tokens] of the batch alone, the mask,
// the numbers of the tokens' cells (of keys, of values), and perhaps learned sinks.
struct LayerNumbers {
  int il;
  float scale, softcap;
};

void attend_layer(ggml_tensor* node, int ith, int, void* data) {
  if (ith != 0) return;
  const auto& layer = *static_cast<const LayerNumbers*>(data);
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3];
  const std::size_t streams = static_cast<std::size_t>(mask->ne[3]);
  const std::size_t n = static_cast<std::size_t>(q->ne[2]) / streams;
  for (std::size_t s = 0; s < streams; ++s) {
    Step step{rows(q, 2, 1, s * n * q->nb[2]), rows(k, 2, 1, 0), rows(v, 2, 1, 0)};
    set_mask(step, mask, s);
    step.key_row = s * n;
    step.queries = n;
    const auto* cells = static_cast<const std::int64_t*>(node->src[4]->data);
    step.stream = cells[s * n] - static_cast<std::int64_t>(position(step, 0));
    step.scale = layer.scale;
    step.softcap = layer.softcap;
    if (node->src[6] != nullptr) step.sinks = static_cast<const float*>(node->src[6]->data);
    step.out = static_cast<float*>(node->data) + s * n * step.q.heads * step.v.dim;
    adapter().run(layer.il, step);
  }
}

void* layer_numbers(int il, float scale, float softcap) {
  static std::map<int, LayerNumbers> kept;
  kept[il] = {il, scale, softcap};
  return &kept[il];
}

template <class Function>
Function next(void* where, const char* name) {
  return reinterpret_cast<Function>(dlsym(where, name));
}

}  // namespace

extern "C" llama_context* llama_init_from_model(llama_model* model, llama_context_params params) {
  using Init = llama_context* (*)(llama_model*, llama_context_params);
  using SetAttention = void (*)(ggml_custom_op_t, void* (*)(int, float, float));
  const auto init = next<Init>(RTLD_NEXT, "llama_init_from_model");
  if (init == nullptr) refuse("this program has no llama_init_from_model to call");
  adapter().clear();
  const auto set = next<SetAttention>(RTLD_DEFAULT, "llama_set_external_attention");
  if (set != nullptr && number("TURBOQUANT_KV_CALLBACK", 0) == 0) {
    set(attend_layer, layer_numbers);
    std::fprintf(stderr, "turboquant: llama.cpp's own cache is not used\n");
  } else {
    params.cb_eval = on_node;
    params.cb_eval_user_data = nullptr;
    params.type_k = params.type_v = GGML_TYPE_F16;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    std::fprintf(stderr, "turboquant: replaces what attention over llama.cpp's own cache gives\n");
  }
  return init(model, params);
}
