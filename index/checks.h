// Checks and error translation that both index classes share.
#pragma once

#include <faiss/MetricType.h>
#include <faiss/impl/FaissAssert.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "turboquant/index_turboquant.h"
#include "turboquant/quantizer.h"

namespace turboquant {

[[noreturn]] inline void fail(const std::string& message) { throw faiss::FaissException(message); }

/// Runs f; std::invalid_argument, which the quantizer throws, becomes faiss::FaissException.
template <class F>
decltype(auto) translate_errors(F&& f) {
  try {
    return f();
  } catch (const std::invalid_argument& error) {
    fail(error.what());
  }
}

/// Throws when the first n rows of x[n][d] hold NaN or infinity; `what` names a row ("vector").
void require_finite(const float* x, std::int64_t n, std::size_t d, const char* what);

/// out[n][d] = rows of x scaled to length 1; rows of zeros stay. Throws as require_finite does,
/// counting rows from first_row.
void normalize_rows(const float* x, std::int64_t n, std::size_t d, const char* what, float* out,
                    std::int64_t first_row = 0);

/// The quantizer's metric; throws when FAISS's is neither inner product nor L2.
Metric to_metric(faiss::MetricType metric);

/// Builds the quantizer of an index after checking what only indexes restrict.
Quantizer make_codec(std::int64_t dimension, const IndexOptions& options, faiss::MetricType metric,
                     const std::vector<float>& centre = {});

/// Throws, naming the difference, unless both describe the same codes.
void require_same_codes(const IndexOptions& a, const IndexOptions& b);

}  // namespace turboquant
