// What a FAISS index is made of: wrappers around a core that holds the codes.
#pragma once

#include <faiss/Index.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "tools/commands/metric.h"

namespace faiss {
struct VectorTransform;
}

namespace turboquant::tools {

/// The core below IDMap, PreTransform and Refine wrappers. Pointers into the index.
struct IndexParts {
  bool has_ids = false;  ///< an IDMap: results are ids, not row numbers
  std::vector<const faiss::VectorTransform*> transforms;  ///< in the order of application
  faiss::Index* core = nullptr;
};

IndexParts parts_of(faiss::Index& index);

/// Cosine when the vectors are normalised first, by a transform or by the index; distances between
/// unit vectors order them as cosines do. Throws io::UsageError for FAISS's other metrics.
SearchMetric metric_of(faiss::Index& index);

/// Close to the factory string that makes such an index, e.g. "IDMap,PCA32,SQ8".
std::string describe(faiss::Index& index);

/// Bytes that one more vector takes in memory, ids and graph links included; nullopt when the
/// type does not tell.
std::optional<std::size_t> vector_bytes(faiss::Index& index);

/// A graph whose add() draws random levels, which index files do not keep.
bool has_graph(faiss::Index& index);

/// Accepts vectors once only (NSG, NNDescent).
bool needs_single_add(faiss::Index& index);

/// False when an IDMap gives vectors other ids than their row numbers.
bool ids_are_rows(faiss::Index& index);

/// Whether add_with_ids works without an IDMap around the index.
bool takes_ids(faiss::Index& index);

/// Reserves memory for the codes of `rows` vectors where the type lets us.
void reserve_codes(faiss::Index& core, std::size_t rows);

}  // namespace turboquant::tools
