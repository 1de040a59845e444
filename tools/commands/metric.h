// The measures that the commands know. Cosine is the inner product after normalisation.
#pragma once

#include <cstdint>
#include <string>

namespace turboquant::tools {

enum class SearchMetric : std::uint8_t { kInnerProduct, kL2, kCosine };

/// "ip", "l2", "cosine"
inline std::string metric_name(SearchMetric metric) {
  if (metric == SearchMetric::kL2) return "l2";
  return metric == SearchMetric::kInnerProduct ? "ip" : "cosine";
}

}  // namespace turboquant::tools
