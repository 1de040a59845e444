// Searches over rows of codes in memory, as FAISS's flat indexes answer them.
#pragma once

#include <faiss/Index.h>
#include <faiss/MetricType.h>

#include <cstdint>

#include "turboquant/quantizer.h"

namespace faiss {
struct RangeSearchResult;
}

namespace turboquant {

class IndexSigns;

/// codes: [ntotal][codec.code_size()].
struct CodeView {
  const Quantizer& codec;
  bool normalize = false;
  faiss::MetricType metric = faiss::METRIC_L2;
  const std::uint8_t* codes = nullptr;
  std::int64_t ntotal = 0;
};

/// As IndexTurboQuant::search and range_search. prune_confidence: as there; the signs are asked for
/// where it is not 0.
void search_codes(const CodeView& view, std::int64_t n, const float* x, std::int64_t k,
                  float* distances, std::int64_t* labels, const faiss::SearchParameters* params,
                  float prune_confidence = 0, const IndexSigns* signs = nullptr);
void range_search_codes(const CodeView& view, std::int64_t n, const float* x, float radius,
                        faiss::RangeSearchResult* result, const faiss::SearchParameters* params);

}  // namespace turboquant
