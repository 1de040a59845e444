// Walking the trees that FAISS builds from wrappers (IndexIDMap, IndexPreTransform, IndexRefine,
// IndexHNSW, IndexNSG, row-wise min-max, coarse quantizers of inverted files).
#pragma once

#include <faiss/Index.h>

#include <memory>
#include <vector>

namespace turboquant {

/// The places where a wrapper keeps the indexes inside it; none for a leaf or an unknown class.
/// An entry may point to a null pointer.
std::vector<faiss::Index**> children(faiss::Index* index);

/// Says whether a wrapper deletes what is inside it.
void set_ownership(faiss::Index* index, bool owns);

/// A copy of a wrapper alone: it points to the same children, transforms and lists and owns none.
/// Throws faiss::FaissException for a class that `children` does not know.
std::unique_ptr<faiss::Index> copy_wrapper(const faiss::Index& index);

/// Whether the index holds codes of residuals (IndexOptions::residual). False for null.
bool is_residual(const faiss::Index* index);

/// Throws where codes of residuals stand anywhere but in an IndexRefineResidual.
void require_residuals_in_place(const faiss::Index& tree);

/// Sets is_trained of a wrapper from what is inside it.
void update_is_trained(faiss::Index* index);

}  // namespace turboquant
