// One thread packing and unpacking rows of codes of Gaussian vectors (docs/packed_codes.md).
// Counters: bytes/s of unpacked rows; bits per coordinate, floats included, and their share of the
// unpacked bits.
//   micro_bench --benchmark_filter=pack
#include <benchmark/benchmark.h>
#include <omp.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "packing/rows.h"
#include "turboquant/quantizer.h"

namespace {

using turboquant::packing::RowLayout;

struct Rows {
  RowLayout layout;
  std::size_t n;
  std::vector<std::uint8_t> bytes;
};

Rows make_rows(std::size_t d, int bits) {
  constexpr std::size_t kBytes = std::size_t{16} << 20;
  turboquant::QuantizerOptions options;
  options.dimension = d;
  options.bits = bits;
  const turboquant::Quantizer codec(options);
  Rows rows{{d, bits, codec.code_size()}, kBytes / codec.code_size(), {}};
  rows.bytes.resize(rows.n * codec.code_size());
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(d);
  for (std::size_t i = 0; i < rows.n; ++i) {
    for (float& value : x) value = normal(random);
    codec.quantize(x.data(), 1, rows.bytes.data() + i * codec.code_size());
  }
  return rows;
}

void run(benchmark::State& state, std::size_t d, int bits, bool unpack) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Rows rows = make_rows(d, bits);
  const auto packed = turboquant::packing::pack_rows(rows.layout, rows.bytes.data(), rows.n);
  std::vector<std::uint8_t> out(rows.bytes.size());
  for (auto _ : state) {
    if (unpack) {
      if (!turboquant::packing::unpack_rows(rows.layout, packed.data(), packed.size(), rows.n,
                                            out.data())) {
        state.SkipWithError("damaged");
      }
    } else {
      benchmark::DoNotOptimize(
          turboquant::packing::pack_rows(rows.layout, rows.bytes.data(), rows.n));
    }
  }
  if (unpack && out != rows.bytes) state.SkipWithError("other rows came back");
  const auto coordinates = static_cast<double>(rows.n * d);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(rows.bytes.size()));
  state.counters["bits"] = 8 * static_cast<double>(packed.size()) / coordinates;
  state.counters["share"] =
      static_cast<double>(packed.size()) / static_cast<double>(rows.bytes.size());
  omp_set_num_threads(threads);
}

const bool registered = [] {
  for (const bool unpack : {false, true}) {
    for (const std::size_t d : {50, 384, 1536}) {
      for (int bits = 1; bits <= 4; ++bits) {
        const std::string name = std::string(unpack ? "unpack" : "pack") +
                                 "/d:" + std::to_string(d) + "/bits:" + std::to_string(bits);
        benchmark::RegisterBenchmark(name.c_str(),
                                     [=](benchmark::State& state) { run(state, d, bits, unpack); });
      }
    }
  }
  return true;
}();

}  // namespace
