// Rows drawn from a file: spread over all of it, the same ones for the same seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tools/io/vector_file.h"

namespace turboquant::tools {

/// n distinct row numbers in rising order, one at random from each of n equal stretches. n must
/// not exceed rows.
std::vector<std::uint64_t> sample_rows(std::uint64_t rows, std::size_t n, std::uint64_t seed);

/// x[n][dimension] of those rows. Throws io::DataError for NaN and infinity, io::Interrupted.
std::vector<float> read_sample(io::VectorReader& reader, std::size_t n, std::uint64_t seed);

}  // namespace turboquant::tools
