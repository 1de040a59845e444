// Times the engine on a .fbin file (int32 rows, int32 dimension, float32 data) and prints one JSON
// object: add, batch search, one query, and a plain read of the same bytes. bench/peers/run.py
// runs it beside other systems.
//   scan_bench base.fbin queries.fbin bits k repetitions
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "kernels/kernel_table.h"
#include "quantizer/scanner.h"

namespace {

struct Matrix {
  std::int32_t n = 0;
  std::int32_t d = 0;
  std::vector<float> data;
  std::size_t rows() const { return static_cast<std::size_t>(n); }
  std::size_t width() const { return static_cast<std::size_t>(d); }
};

Matrix read_fbin(const char* path) {
  std::ifstream file(path, std::ios::binary);
  Matrix m;
  file.read(reinterpret_cast<char*>(&m.n), 4);
  file.read(reinterpret_cast<char*>(&m.d), 4);
  m.data.resize(m.rows() * m.width());
  file.read(reinterpret_cast<char*>(m.data.data()),
            static_cast<std::streamsize>(m.data.size() * sizeof(float)));
  if (!file) {
    std::fprintf(stderr, "cannot read %s\n", path);
    std::exit(1);
  }
  return m;
}

// Smallest and median seconds of `repetitions` runs after one warm-up.
template <typename Work>
std::pair<double, double> timed(int repetitions, const Work& work) {
  work();
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

volatile std::uint64_t read_sink;

// What the memory gives: every thread adds up its share of the bytes, eight streams of words.
void plain_read(const std::vector<std::uint8_t>& bytes) {
  const std::size_t words = bytes.size() / 64;
  std::uint64_t total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total)
  for (std::size_t i = 0; i < words; ++i) {
    typedef std::uint64_t Line __attribute__((vector_size(64), aligned(1), may_alias));
    const Line line = *reinterpret_cast<const Line*>(bytes.data() + 64 * i);
    total += line[0] + line[1] + line[2] + line[3] + line[4] + line[5] + line[6] + line[7];
  }
  read_sink = total;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: scan_bench base.fbin queries.fbin bits k repetitions\n");
    return 2;
  }
  const Matrix base = read_fbin(argv[1]);
  const Matrix queries = read_fbin(argv[2]);
  const auto k = static_cast<std::size_t>(std::atoi(argv[4]));
  const int repetitions = std::atoi(argv[5]);
  turboquant::QuantizerOptions options;
  options.dimension = base.width();
  options.bits = std::atoi(argv[3]);
  const turboquant::Quantizer quantizer(options);

  std::vector<std::uint8_t> codes(base.rows() * quantizer.code_size());
  const auto add =
      timed(repetitions, [&] { quantizer.quantize(base.data.data(), base.rows(), codes.data()); });
  const turboquant::CodeRows rows{codes.data(), base.rows(), nullptr};
  std::vector<float> scores(queries.rows() * k);
  std::vector<std::int64_t> ids(queries.rows() * k);
  const auto search = [&](const float* q, std::size_t nq) {
    turboquant::search_topk(quantizer, turboquant::Metric::kInnerProduct, q, nq, rows, k,
                            scores.data(), ids.data());
  };
  const auto batch = timed(repetitions, [&] { search(queries.data.data(), queries.rows()); });
  std::size_t next = 0;
  const auto one = timed(20 * repetitions, [&] {
    search(&queries.data[(next++ % queries.rows()) * queries.width()], 1);
  });
  const auto read = timed(20 * repetitions, [&] { plain_read(codes); });
  const double products =
      static_cast<double>(base.rows() * queries.rows()) * static_cast<double>(base.width());
  std::printf(
      "{\"system\": \"TQ%d %s\", \"threads\": %d, \"add_s\": %.5f, \"batch_s\": %.5f, "
      "\"batch_median_s\": %.5f, \"one_ms\": %.4f, \"one_median_ms\": %.4f, \"read_ms\": %.4f, "
      "\"gmacs\": %.1f, \"bytes_per_vector\": %zu}\n",
      options.bits, turboquant::kernels::active().name, omp_get_max_threads(), add.first,
      batch.first, batch.second, one.first * 1e3, one.second * 1e3, read.first * 1e3,
      products / batch.first * 1e-9, quantizer.code_size());
}
