// Perplexity of windows of 2,048 tokens, and how far the next-token distributions are from those of
// an earlier run: every position counts, the cache is empty at the start of a window.
//
//   window_perplexity MODEL TEXT WINDOWS FILE [TYPE]
//
// FILE: log-probabilities; written if it is not there, else compared with. TYPE: of llama.cpp's
// cache, f16 or q4_0. With LD_PRELOAD=libturboquant_llama.so the cache is ours. THREADS: 2 if
// unset.
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace {

constexpr int kWindow = 2048;

void check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "window_perplexity: %s\n", what);
  std::exit(1);
}

std::vector<llama_token> tokens_of(const llama_vocab* vocab, const char* path) {
  std::ifstream file(path, std::ios::binary);
  check(file.good(), "the text cannot be read");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<llama_token> tokens(text.size());
  const int n = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), tokens.data(),
                               static_cast<int>(tokens.size()), false, false);
  check(n >= 0, "the text cannot be made to tokens");
  tokens.resize(static_cast<std::size_t>(n));
  return tokens;
}

void log_softmax(const float* logits, std::vector<float>& to) {
  const float largest = *std::max_element(logits, logits + to.size());
  double sum = 0;
  for (std::size_t i = 0; i < to.size(); ++i) sum += std::exp(double{logits[i]} - largest);
  const double shift = largest + std::log(sum);
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = static_cast<float>(logits[i] - shift);
}

// Sums over positions.
struct Sums {
  double loss = 0, divergence = 0;
  long positions = 0, same_top = 0;
};

class Measure {
 public:
  Measure(llama_context* context, std::size_t vocabulary, const char* path)
      : context_(context), ours_(vocabulary), theirs_(vocabulary) {
    file_.reset(std::fopen(path, "rb"));
    compares_ = file_ != nullptr;
    if (!compares_) file_.reset(std::fopen(path, "wb"));
    check(file_ != nullptr, "the file of log-probabilities can be neither read nor made");
  }

  void window(const llama_token* tokens) {
    llama_memory_clear(llama_get_memory(context_), true);
    llama_batch batch = llama_batch_init(kWindow, 0, 1);
    batch.n_tokens = kWindow;
    for (int i = 0; i < kWindow; ++i) {
      batch.token[i] = tokens[i];
      batch.pos[i] = i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = 1;
    }
    check(llama_decode(context_, batch) == 0, "the model was not computed");
    llama_batch_free(batch);
    for (int i = 0; i + 1 < kWindow; ++i) {
      position(llama_get_logits_ith(context_, i), static_cast<std::size_t>(tokens[i + 1]));
    }
  }

  void print() const {
    const double n = static_cast<double>(sums_.positions);
    std::printf("perplexity %.4f", std::exp(sums_.loss / n));
    if (compares_) {
      std::printf(", KL %.5f, same top token %.2f%%", sums_.divergence / n,
                  100 * static_cast<double>(sums_.same_top) / n);
    }
    std::printf(", %ld positions\n", sums_.positions);
  }

 private:
  void position(const float* logits, std::size_t next) {
    log_softmax(logits, ours_);
    sums_.loss -= ours_[next];
    ++sums_.positions;
    if (!compares_) {
      check(std::fwrite(ours_.data(), sizeof(float), ours_.size(), file_.get()) == ours_.size(),
            "the log-probabilities cannot be written");
      return;
    }
    check(std::fread(theirs_.data(), sizeof(float), theirs_.size(), file_.get()) == theirs_.size(),
          "the file has fewer log-probabilities");
    for (std::size_t i = 0; i < ours_.size(); ++i) {
      sums_.divergence += std::exp(double{theirs_[i]}) * (double{theirs_[i]} - ours_[i]);
    }
    const auto top = [](const std::vector<float>& x) {
      return std::max_element(x.begin(), x.end()) - x.begin();
    };
    if (top(ours_) == top(theirs_)) ++sums_.same_top;
  }

  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  llama_context* context_;
  std::vector<float> ours_, theirs_;
  std::unique_ptr<std::FILE, Close> file_;
  bool compares_ = false;
  Sums sums_;
};

void log_sizes(ggml_log_level level, const char* text, void*) {
  if (level >= GGML_LOG_LEVEL_ERROR || std::strstr(text, "KV buffer size") != nullptr) {
    std::fputs(text, stderr);
  }
}

}  // namespace

int main(int argc, char** argv) {
  check(argc == 5 || argc == 6, "window_perplexity MODEL TEXT WINDOWS FILE [TYPE]");
  llama_log_set(log_sizes, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  check(model != nullptr, "the model cannot be read");
  const llama_vocab* vocab = llama_model_get_vocab(model);
  const std::vector<llama_token> tokens = tokens_of(vocab, argv[2]);

  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = kWindow;
  params.n_ubatch = 512;
  const char* threads = std::getenv("THREADS");
  params.n_threads = params.n_threads_batch = threads != nullptr ? std::atoi(threads) : 2;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  const std::string type = argc == 6 ? argv[5] : "f16";
  check(type == "f16" || type == "q4_0", "the type is f16 or q4_0");
  params.type_k = params.type_v = type == "f16" ? GGML_TYPE_F16 : GGML_TYPE_Q4_0;
  llama_context* context = llama_init_from_model(model, params);
  check(context != nullptr, "no context");

  const int windows = std::atoi(argv[3]);
  check(windows > 0 && static_cast<std::size_t>(windows) * kWindow <= tokens.size(),
        "the text has fewer windows");
  Measure measure(context, static_cast<std::size_t>(llama_vocab_n_tokens(vocab)), argv[4]);
  for (int i = 0; i < windows; ++i) measure.window(tokens.data() + std::ptrdiff_t{i} * kWindow);
  measure.print();
  llama_free(context);
  llama_model_free(model);
}
