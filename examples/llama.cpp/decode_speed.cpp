// Attention of one query token over a cache, one thread: llama.cpp's flash attention on f16 and
// q4_0 and ours on 4-bit codes, taking turns. 32 query heads over 8 kv heads of size 128.
//
//   decode_speed [TOKENS...]     4096 and 32768 if none are given
//
// Prints milliseconds (least, median), how many times faster ours is by the medians, the bytes that
// each takes, and how far each output is from that of f16 (share of its length).
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <turboquant/kvcache.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr int kDim = 128;
constexpr int kKvHeads = 8;
constexpr int kHeads = 32;
constexpr int kRounds = 9;

void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "decode_speed: %s\n", what);
  std::exit(1);
}

std::vector<float> normals(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> made(n);
  for (float& x : made) x = normal(random);
  return made;
}

// llama.cpp's cache of one layer, and the graph that attends to it.
class Flash {
 public:
  Flash(ggml_type type, int tokens, const std::vector<float>& keys,
        const std::vector<float>& values, const std::vector<float>& q) {
    context_ = ggml_init({1 << 20, nullptr, true});
    ggml_tensor* query = ggml_new_tensor_3d(context_, GGML_TYPE_F32, kDim, 1, kHeads);
    ggml_tensor* k = ggml_new_tensor_3d(context_, type, kDim, kKvHeads, tokens);
    ggml_tensor* v = ggml_new_tensor_3d(context_, type, kDim, kKvHeads, tokens);
    ggml_tensor* mask = ggml_new_tensor_2d(context_, GGML_TYPE_F16, tokens, 1);
    out_ = ggml_flash_attn_ext(context_, query, ggml_permute(context_, k, 0, 2, 1, 3),
                               ggml_permute(context_, v, 0, 2, 1, 3), mask,
                               1 / std::sqrt(static_cast<float>(kDim)), 0, 0);
    ggml_prec_set_acc(out_, GGML_PREC_F32);
    graph_ = ggml_new_graph(context_);
    ggml_build_forward_expand(graph_, out_);
    backend_ = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend_, 1);
    buffer_ = ggml_backend_alloc_ctx_tensors(context_, backend_);
    check(buffer_ != nullptr, "no memory");
    ggml_backend_tensor_set(query, q.data(), 0, ggml_nbytes(query));
    ggml_backend_tensor_memset(mask, 0, 0, ggml_nbytes(mask));
    set(k, keys);
    set(v, values);
    bytes_ = ggml_nbytes(k) + ggml_nbytes(v);
  }
  Flash(const Flash&) = delete;
  Flash& operator=(const Flash&) = delete;
  ~Flash() {
    ggml_backend_buffer_free(buffer_);
    ggml_backend_free(backend_);
    ggml_free(context_);
  }

  void run() {
    check(ggml_backend_graph_compute(backend_, graph_) == GGML_STATUS_SUCCESS,
          "it was not computed");
  }
  std::vector<float> out() const {
    std::vector<float> copy(kDim * kHeads);
    ggml_backend_tensor_get(out_, copy.data(), 0, copy.size() * sizeof(float));
    return copy;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  static void set(ggml_tensor* to, const std::vector<float>& from) {
    std::vector<char> coded(ggml_nbytes(to));
    const auto rows = static_cast<std::int64_t>(from.size()) / kDim;
    ggml_quantize_chunk(to->type, from.data(), coded.data(), 0, rows, kDim, nullptr);
    ggml_backend_tensor_set(to, coded.data(), 0, coded.size());
  }

  ggml_context* context_;
  ggml_tensor* out_;
  ggml_cgraph* graph_;
  ggml_backend_t backend_;
  ggml_backend_buffer_t buffer_;
  std::size_t bytes_;
};

class Ours {
 public:
  Ours(int tokens, const std::vector<float>& keys, const std::vector<float>& values,
       const std::vector<float>& q)
      : q_(q), out_(kDim * kHeads) {
    tq_kv_config config;
    tq_kv_config_init(&config);
    config.layers = 1;
    config.query_heads = kHeads;
    config.kv_heads = kKvHeads;
    config.key_dim = config.value_dim = kDim;
    check(tq_kv_create(&config, &cache_) == TQ_KV_OK, tq_kv_last_error());
    check(tq_kv_sequence_create(cache_, &sequence_) == TQ_KV_OK, tq_kv_last_error());
    check(tq_kv_append(cache_, 0, sequence_, 0, static_cast<std::size_t>(tokens), keys.data(),
                       values.data()) == TQ_KV_OK,
          tq_kv_last_error());
  }
  Ours(const Ours&) = delete;
  Ours& operator=(const Ours&) = delete;
  ~Ours() { tq_kv_destroy(cache_); }

  void run() {
    const std::uint32_t queries = 1;
    tq_kv_attention attention;
    tq_kv_attention_init(&attention);
    attention.sequences = 1;
    attention.sequence = &sequence_;
    attention.queries = &queries;
    attention.q = q_.data();
    attention.out = out_.data();
    attention.threads = 1;
    check(tq_kv_attend(cache_, &attention) == TQ_KV_OK, tq_kv_last_error());
  }
  const std::vector<float>& out() const { return out_; }
  std::size_t bytes() const {
    tq_kv_memory memory;
    check(tq_kv_get_memory(cache_, &memory) == TQ_KV_OK, tq_kv_last_error());
    return memory.allocated;
  }

 private:
  tq_kv_cache* cache_ = nullptr;
  std::uint32_t sequence_ = 0;
  std::vector<float> q_, out_;
};

template <class System>
void time(System& system, std::vector<double>& times) {
  const auto start = std::chrono::steady_clock::now();
  system.run();
  const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
  times.push_back(taken.count());
}

double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double length = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(a[i] - b[i], 2);
    length += std::pow(b[i], 2);
  }
  return std::sqrt(difference / length);
}

void compare(int tokens) {
  const std::size_t numbers = static_cast<std::size_t>(tokens) * kKvHeads * kDim;
  const auto keys = normals(numbers, 1);
  const auto values = normals(numbers, 2);
  const auto q = normals(kHeads * kDim, 3);
  Flash half(GGML_TYPE_F16, tokens, keys, values, q);
  Flash q4(GGML_TYPE_Q4_0, tokens, keys, values, q);
  Ours ours(tokens, keys, values, q);
  std::vector<double> times[3];
  for (int round = 0; round <= kRounds; ++round) {
    time(half, times[0]);
    time(q4, times[1]);
    time(ours, times[2]);
    if (round == 0) {
      for (auto& each : times) each.clear();
    }
  }
  const char* names[] = {"llama.cpp f16", "llama.cpp q4_0", "ours 4/4"};
  const std::size_t bytes[] = {half.bytes(), q4.bytes(), ours.bytes()};
  const double far[] = {0, distance(q4.out(), half.out()), distance(ours.out(), half.out())};
  for (int i = 0; i < 3; ++i) {
    std::printf("| %d | %s | %.2f / %.2f | %.2f | %zu | %.4f |\n", tokens, names[i],
                *std::min_element(times[i].begin(), times[i].end()), median(times[i]),
                median(times[i]) / median(times[2]), bytes[i], far[i]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int> lengths;
  for (int i = 1; i < argc; ++i) lengths.push_back(std::atoi(argv[i]));
  if (lengths.empty()) lengths = {4096, 32768};
  for (const int tokens : lengths) {
    check(tokens > 0 && tokens % 32 == 0, "tokens must be a multiple of 32");
    compare(tokens);
    std::fflush(stdout);
  }
}
