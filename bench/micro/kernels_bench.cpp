// One thread, one kernel at a time, for every backend that runs here. Counters: bytes/s of codes
// (of float32 input for rotate and encode) and multiply-adds/s for the products.
// bits:3 is the scalar code, bits:3t the trellis code.
//   micro_bench --benchmark_filter='batch_scan/avx2/bits:4'
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"
#include "quantizer/aligned.h"
#include "quantizer/levels.h"
#include "quantizer/rotation.h"
#include "quantizer/trellis.h"

namespace {

using turboquant::AlignedVector;
using turboquant::kernels::CodeTable;
using turboquant::kernels::Hit;
using turboquant::kernels::kBlock;
using turboquant::kernels::KernelTable;
using turboquant::kernels::kLane;
using turboquant::kernels::QueryView;
using turboquant::kernels::TrellisTable;

constexpr std::size_t kScanBytes = std::size_t{256} << 20;  // more than the caches hold
constexpr std::size_t kTileRows = 32;
constexpr std::size_t kGroups = 4;

struct Case {
  const KernelTable& kernels;
  int bits;
  bool trellis;
  std::size_t d;

  std::size_t padded() const { return turboquant::kernels::round_up(d, kBlock); }
  std::size_t packed() const {
    return trellis ? turboquant::kernels::trellis_bytes(d, bits)
                   : turboquant::kernels::packed_bytes(d, bits);
  }
  const TrellisTable& states() const { return turboquant::trellis_table(bits); }
  CodeTable table() const {
    CodeTable table = turboquant::level_table(bits);
    if (trellis) table.offset = states().offset;
    return table;
  }

  // Rows as dot_tile wants them: n of padded() bytes.
  void decode_rows(const std::uint8_t* codes, std::size_t n, std::int8_t* rows) const {
    const CodeTable levels = table();
    const int offset = kernels.unsigned_rows ? levels.offset : 0;
    std::int8_t operands[16];
    for (int i = 0; i < 16; ++i) operands[i] = static_cast<std::int8_t>(levels.levels[i] + offset);
    for (std::size_t r = 0; r < n; ++r, codes += packed(), rows += padded()) {
      if (trellis) {
        kernels.trellis_decode(codes, d, states(), offset, rows);
      } else {
        kernels.decode(codes, d, bits, operands, rows);
      }
    }
  }
  void dot_rows(const std::uint8_t* codes, std::size_t n, QueryView query,
                std::int32_t* dots) const {
    if (trellis) {
      kernels.trellis_dot_rows(codes, packed(), nullptr, n, d, states(), query, dots);
    } else {
      kernels.dot_rows(codes, packed(), nullptr, n, d, table(), query, dots);
    }
  }
  // The reference is far from the speed of memory; a part of the bytes shows as much.
  std::size_t scan_bytes() const {
    return kernels.name == std::string("scalar") ? kScanBytes / 64 : kScanBytes;
  }
};

void count(benchmark::State& state, const char* name, double per_iteration) {
  state.counters[name] = benchmark::Counter(
      per_iteration, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
}

std::vector<float> random_floats(std::size_t n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

template <typename T>
AlignedVector<T> random_bytes(std::size_t n) {
  AlignedVector<T> bytes(n);
  std::mt19937_64 random(1);
  for (T& byte : bytes) byte = static_cast<T>(random() >> 56);
  return bytes;
}

// Any bytes are codes.
const AlignedVector<std::uint8_t>& scanned_bytes() {
  static const auto bytes = random_bytes<std::uint8_t>(kScanBytes);
  return bytes;
}

// What no scan can beat: the sum of all words of the scanned bytes.
void plain_read(benchmark::State& state) {
  const auto& bytes = scanned_bytes();
  const auto* words = reinterpret_cast<const std::uint64_t*>(bytes.data());
  for (auto _ : state) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < kScanBytes / 8; ++i) sum += words[i];
    benchmark::DoNotOptimize(sum);
  }
  count(state, "bytes/s", kScanBytes);
}

void rotate(benchmark::State& state, const Case& c) {
  const turboquant::Rotation rotation(c.d, 1);
  const std::vector<float> x = random_floats(c.d);
  std::vector<float> y = x;
  for (auto _ : state) {
    std::copy(x.begin(), x.end(), y.begin());
    rotation.apply(c.kernels, y.data());
    benchmark::ClobberMemory();
  }
  count(state, "bytes/s", static_cast<double>(c.d * sizeof(float)));
}

void encode(benchmark::State& state, const Case& c) {
  const std::vector<float> y = random_floats(c.d);
  std::vector<std::uint8_t> codes(c.d), packed(c.packed());
  AlignedVector<std::uint8_t> work(turboquant::kernels::trellis_work_bytes(c.d, c.bits));
  const CodeTable table = c.table();
  for (auto _ : state) {
    if (c.trellis) {
      c.kernels.trellis_encode(y.data(), c.d, c.states(), work.data(), packed.data());
    } else {
      benchmark::DoNotOptimize(c.kernels.quantize(y.data(), c.d, table, codes.data()));
      c.kernels.pack(codes.data(), c.d, c.bits, packed.data());
    }
    benchmark::ClobberMemory();
  }
  count(state, "bytes/s", static_cast<double>(c.d * sizeof(float)));
}

void decode(benchmark::State& state, const Case& c) {
  const auto packed = random_bytes<std::uint8_t>(c.packed());
  std::vector<std::int8_t> levels(c.padded());
  for (auto _ : state) {
    c.decode_rows(packed.data(), 1, levels.data());
    benchmark::ClobberMemory();
  }
  count(state, "bytes/s", static_cast<double>(c.packed()));
}

// One query against rows that come from memory; no row passes the cut-off.
void one_query_scan(benchmark::State& state, const Case& c) {
  constexpr std::size_t chunk = 1024;
  const std::uint8_t* codes = scanned_bytes().data();
  const std::size_t n = c.scan_bytes() / c.packed() / chunk * chunk;
  const std::vector<float> u = random_floats(c.d);
  std::vector<std::int8_t> query(c.padded());
  const float factor = 127.0f / c.kernels.max_abs(u.data(), c.d);
  const auto sum = c.kernels.quantize_query(u.data(), c.d, factor, query.data());
  const std::vector<float> row_scale(chunk, 1.0f);
  AlignedVector<std::int32_t> dots(chunk);
  std::vector<Hit> hits(chunk);
  for (auto _ : state) {
    for (std::size_t row = 0; row < n; row += chunk) {
      c.dot_rows(codes + row * c.packed(), chunk, {query.data(), sum}, dots.data());
      benchmark::DoNotOptimize(c.kernels.select_rows(dots.data(), chunk, row_scale.data(), nullptr,
                                                     0, std::numeric_limits<float>::max(),
                                                     hits.data()));
    }
  }
  count(state, "bytes/s", static_cast<double>(n * c.packed()));
  count(state, "madds/s", static_cast<double>(n * c.d));
}

// Tiles of rows are decoded once and multiplied with 64 queries; no pair passes the cut-off.
void batch_scan(benchmark::State& state, const Case& c) {
  constexpr std::size_t n = 64 * kTileRows;
  const auto codes = random_bytes<std::uint8_t>(n * c.packed());
  auto queries = random_bytes<std::int8_t>(kGroups * kLane * c.padded());
  std::replace(queries.begin(), queries.end(), std::int8_t{-128}, std::int8_t{-127});
  const CodeTable table = c.table();
  const AlignedVector<std::int32_t> bias(kGroups * kLane, 0);
  const std::vector<float> row_scale(kTileRows, 1.0f);
  const std::vector<float> cutoff(kLane, std::numeric_limits<float>::max());
  AlignedVector<std::int8_t> rows(kTileRows * c.padded());
  AlignedVector<std::int32_t> dots(kGroups * kTileRows * kLane);
  std::vector<Hit> hits(kTileRows * kLane);
  for (auto _ : state) {
    for (std::size_t row = 0; row < n; row += kTileRows) {
      c.decode_rows(codes.data() + row * c.packed(), kTileRows, rows.data());
      c.kernels.dot_tile(rows.data(), kTileRows, c.padded(), table, queries.data(), kGroups,
                         bias.data(), dots.data());
      for (std::size_t g = 0; g < kGroups; ++g) {
        benchmark::DoNotOptimize(c.kernels.select_tile(dots.data() + g * kTileRows * kLane,
                                                       kTileRows, row_scale.data(), nullptr,
                                                       nullptr, cutoff.data(), hits.data()));
      }
    }
  }
  count(state, "bytes/s", static_cast<double>(n * c.packed()));
  count(state, "madds/s", static_cast<double>(n * c.d * kGroups * kLane));
}

void register_all() {
  using Function = void (*)(benchmark::State&, const Case&);
  const struct {
    const char* name;
    Function function;
    bool per_bits;
  } operations[] = {{"rotate", rotate, false},
                    {"encode", encode, true},
                    {"decode", decode, true},
                    {"one_query_scan", one_query_scan, true},
                    {"batch_scan", batch_scan, true}};
  benchmark::RegisterBenchmark("plain_read", plain_read)->Unit(benchmark::kMillisecond);
  for (const auto& operation : operations) {
    for (const char* const* name = turboquant::kernels::available(); *name != nullptr; ++name) {
      // Scalar codes of 1 to 4 bits, then trellis codes.
      for (int code = 0; code < (operation.per_bits ? 8 : 1); ++code) {
        const int bits = code % 4 + 1;
        const bool trellis = code >= 4;
        for (const std::size_t d : {96, 384, 768, 1536}) {
          const Case c{*turboquant::kernels::find(*name), bits, trellis, d};
          const std::string of_bits =
              operation.per_bits ? "/bits:" + std::to_string(bits) + (trellis ? "t" : "") : "";
          benchmark::RegisterBenchmark(
              (std::string(operation.name) + "/" + *name + of_bits + "/d:" + std::to_string(d))
                  .c_str(),
              [function = operation.function, c](benchmark::State& state) { function(state, c); });
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  register_all();
  benchmark::RunSpecifiedBenchmarks();
}
