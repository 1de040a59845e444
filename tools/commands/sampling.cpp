#include "tools/commands/sampling.h"

#include <stdexcept>

#include "tools/io/interrupt.h"

namespace turboquant::tools {
namespace {

__extension__ using Wide = unsigned __int128;

// SplitMix64 (Steele, Lea and Flood, 2014).
std::uint64_t next_random(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

std::vector<std::uint64_t> sample_rows(std::uint64_t rows, std::size_t n, std::uint64_t seed) {
  if (n > rows) throw std::invalid_argument("a sample larger than the file");
  std::vector<std::uint64_t> sample(n);
  const auto start_of = [&](std::uint64_t i) {
    return static_cast<std::uint64_t>(Wide{i} * rows / n);
  };
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t start = start_of(i);
    const std::uint64_t stretch = start_of(i + 1) - start;
    sample[i] = start + static_cast<std::uint64_t>((Wide{next_random(seed)} * stretch) >> 64);
  }
  return sample;
}

std::vector<float> read_sample(io::VectorReader& reader, std::size_t n, std::uint64_t seed) {
  const std::vector<std::uint64_t> rows = sample_rows(reader.rows(), n, seed);
  std::vector<float> x(n * reader.dimension());
  for (std::size_t i = 0; i < n;) {
    std::size_t run = 1;  // neighbouring rows are read together
    while (run < 4096 && i + run < n && rows[i + run] == rows[i] + run) ++run;
    io::read_finite(reader, rows[i], run, x.data() + i * reader.dimension());
    i += run;
    if (i % 4096 < run) io::check_interrupt();
  }
  return x;
}

}  // namespace turboquant::tools
