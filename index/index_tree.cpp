#include "index/index_tree.h"

#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexNNDescent.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexRowwiseMinMax.h>
#include <faiss/MetaIndexes.h>
#include <faiss/VectorTransform.h>
#include <faiss/clone_index.h>

#include <typeinfo>

#include "index/checks.h"
#include "index/refining.h"
#include "index/selecting_id_map.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_refine_residual.h"
#include "turboquant/index_two_level.h"

namespace turboquant {
namespace {

template <class T>
T* as(faiss::Index* index) {
  return dynamic_cast<T*>(index);
}

template <class T>
std::unique_ptr<faiss::Index> try_copy(const faiss::Index& index) {
  const auto* typed = dynamic_cast<const T*>(&index);
  return typed == nullptr ? nullptr : std::unique_ptr<faiss::Index>(new T(*typed));
}

// The first class that fits, most derived ones first.
template <class T, class... More>
std::unique_ptr<faiss::Index> copy_as(const faiss::Index& index) {
  if (auto copy = try_copy<T>(index)) return copy;
  if constexpr (sizeof...(More) > 0) {
    return copy_as<More...>(index);
  } else {
    return nullptr;
  }
}

std::unique_ptr<faiss::Index> copy_ivf(const faiss::IndexIVF& ivf) {
  if (auto copy = try_copy<IndexIVFTurboQuant>(ivf)) return copy;
  return std::unique_ptr<faiss::Index>(faiss::Cloner().clone_IndexIVF(&ivf));
}

}  // namespace

std::vector<faiss::Index**> children(faiss::Index* index) {
  if (auto* map = as<faiss::IndexIDMap>(index)) return {&map->index};
  if (auto* transform = as<faiss::IndexPreTransform>(index)) return {&transform->index};
  if (auto* refine = as<faiss::IndexRefine>(index)) {
    return {&refine->base_index, &refine->refine_index};
  }
  if (auto* hnsw = as<faiss::IndexHNSW>(index)) return {&hnsw->storage};
  if (auto* nsg = as<faiss::IndexNSG>(index)) return {&nsg->storage};
  if (auto* graph = as<faiss::IndexNNDescent>(index)) return {&graph->storage};
  if (auto* scaled = as<faiss::IndexRowwiseMinMaxBase>(index)) return {&scaled->index};
  if (auto* ivf = as<faiss::IndexIVF>(index)) return {&ivf->quantizer};
  return {};
}

void set_ownership(faiss::Index* index, bool owns) {
  if (auto* map = as<faiss::IndexIDMap>(index)) map->own_fields = owns;
  if (auto* transform = as<faiss::IndexPreTransform>(index)) transform->own_fields = owns;
  if (auto* refine = as<faiss::IndexRefine>(index)) {
    refine->own_fields = owns;
    refine->own_refine_index = owns;
  }
  if (auto* hnsw = as<faiss::IndexHNSW>(index)) hnsw->own_fields = owns;
  if (auto* nsg = as<faiss::IndexNSG>(index)) nsg->own_fields = owns;
  if (auto* graph = as<faiss::IndexNNDescent>(index)) graph->own_fields = owns;
  if (auto* scaled = as<faiss::IndexRowwiseMinMaxBase>(index)) scaled->own_fields = owns;
  if (auto* ivf = as<faiss::IndexIVF>(index)) {
    ivf->own_fields = owns;
    ivf->own_invlists = owns;
  }
}

std::unique_ptr<faiss::Index> copy_wrapper(const faiss::Index& index) {
  std::unique_ptr<faiss::Index> copy;
  if (const auto* ivf = dynamic_cast<const faiss::IndexIVF*>(&index)) {
    copy = copy_ivf(*ivf);
  } else {
    copy =
        copy_as<SelectingIdMap<faiss::IndexIDMap2>, SelectingIdMap<faiss::IndexIDMap>,
                faiss::IndexIDMap2, faiss::IndexIDMap, faiss::IndexPreTransform,
                IndexRefineResidual, Refining<faiss::IndexRefineFlat>, Refining<faiss::IndexRefine>,
                faiss::IndexRefineFlat, faiss::IndexRefine, faiss::IndexHNSWSQ,
                faiss::IndexHNSWFlat, faiss::IndexHNSW, faiss::IndexNSGSQ, faiss::IndexNSG,
                faiss::IndexNNDescent, faiss::IndexRowwiseMinMaxFP16, faiss::IndexRowwiseMinMax>(
            index);
  }
  if (copy == nullptr) {
    fail(std::string("TurboQuant indexes inside ") + typeid(index).name() +
         " can be neither written nor cloned");
  }
  set_ownership(copy.get(), false);
  return copy;
}

void update_is_trained(faiss::Index* index) {
  if (auto* ivf = as<faiss::IndexIVF>(index)) {
    // Like faiss::IndexIVF's constructor; what it holds beside the quantizer needs training in
    // every class but ours.
    if (as<IndexIVFTurboQuant>(ivf) != nullptr) {
      ivf->is_trained = ivf->quantizer->is_trained &&
                        ivf->quantizer->ntotal == static_cast<std::int64_t>(ivf->nlist);
    }
    return;
  }
  const auto inside = children(index);
  if (inside.empty()) return;
  bool trained = true;
  for (faiss::Index** child : inside) trained = trained && (*child)->is_trained;
  if (auto* transform = as<faiss::IndexPreTransform>(index)) {
    for (const faiss::VectorTransform* step : transform->chain) {
      trained = trained && step->is_trained;
    }
  }
  index->is_trained = trained;
}

bool is_residual(const faiss::Index* index) {
  const auto* flat = dynamic_cast<const IndexTurboQuant*>(index);
  return flat != nullptr && flat->options().residual;
}

void require_residuals_in_place(const faiss::Index& tree) {
  if (is_residual(&tree)) {
    fail("codes of what another index left over stand without that index");
  }
  const auto* refine = dynamic_cast<const IndexRefineResidual*>(&tree);
  for (faiss::Index** child : children(const_cast<faiss::Index*>(&tree))) {
    if (*child == nullptr || (refine != nullptr && *child == refine->refine_index)) continue;
    require_residuals_in_place(**child);
  }
}

bool contains_turboquant(const faiss::Index& index) {
  if (dynamic_cast<const IndexTurboQuant*>(&index) != nullptr) return true;
  if (dynamic_cast<const IndexIVFTurboQuant*>(&index) != nullptr) return true;
  if (dynamic_cast<const IndexTwoLevel*>(&index) != nullptr) return true;
  for (faiss::Index** child : children(const_cast<faiss::Index*>(&index))) {
    if (*child != nullptr && contains_turboquant(**child)) return true;
  }
  return false;
}

}  // namespace turboquant
