#include "tools/commands/index_tree.h"

#include <cxxabi.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexFlatCodes.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexNNDescent.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPQ.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/VectorTransform.h>

#include <cstdlib>
#include <memory>
#include <typeinfo>

#include "tools/io/errors.h"
#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_turboquant.h"
#include "turboquant/index_two_level.h"

namespace turboquant::tools {
namespace {

template <typename T>
T* as(faiss::Index* index) {
  return dynamic_cast<T*>(index);
}

std::string class_name(const std::type_info& type) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(type.name(), nullptr, nullptr, &status), std::free);
  const std::string full = status == 0 ? name.get() : type.name();
  const std::size_t colon = full.rfind(':');
  return colon == std::string::npos ? full : full.substr(colon + 1);
}

std::string describe_transform(const faiss::VectorTransform& transform) {
  const std::string out = std::to_string(transform.d_out);
  if (dynamic_cast<const faiss::NormalizationTransform*>(&transform)) return "L2norm";
  if (const auto* pca = dynamic_cast<const faiss::PCAMatrix*>(&transform)) {
    return std::string("PCA") + (pca->eigen_power != 0 ? "W" : "") +
           (pca->random_rotation ? "R" : "") + out;
  }
  if (dynamic_cast<const faiss::RandomRotationMatrix*>(&transform)) return "RR" + out;
  if (const auto* opq = dynamic_cast<const faiss::OPQMatrix*>(&transform)) {
    return "OPQ" + std::to_string(opq->M) + "_" + out;
  }
  return class_name(typeid(transform)) + out;
}

std::string describe_sq(const faiss::ScalarQuantizer& sq) {
  switch (sq.qtype) {
    case faiss::ScalarQuantizer::QT_8bit:
      return "SQ8";
    case faiss::ScalarQuantizer::QT_4bit:
      return "SQ4";
    case faiss::ScalarQuantizer::QT_6bit:
      return "SQ6";
    case faiss::ScalarQuantizer::QT_fp16:
      return "SQfp16";
    default:
      return "SQ(type " + std::to_string(static_cast<int>(sq.qtype)) + ")";
  }
}

std::string describe_pq(const faiss::ProductQuantizer& pq) {
  return "PQ" + std::to_string(pq.M) + "x" + std::to_string(pq.nbits);
}

std::string describe_ivf(faiss::IndexIVF& ivf) {
  const std::string coarse = describe(*ivf.quantizer);
  const std::string lists =
      "IVF" + std::to_string(ivf.nlist) + (coarse == "Flat" ? "" : "(" + coarse + ")") + ",";
  if (auto* tq = as<IndexIVFTurboQuant>(&ivf)) return lists + index_name(tq->options());
  if (as<faiss::IndexIVFFlat>(&ivf)) return lists + "Flat";
  if (auto* sq = as<faiss::IndexIVFScalarQuantizer>(&ivf)) return lists + describe_sq(sq->sq);
  if (auto* pq = as<faiss::IndexIVFPQ>(&ivf)) return lists + describe_pq(pq->pq);
  return lists + class_name(typeid(ivf));
}

std::string describe_core(faiss::Index& core) {
  if (auto* tq = as<IndexTurboQuant>(&core)) return index_name(tq->options());
  if (auto* two_level = as<IndexTwoLevel>(&core)) {
    return two_level_name(two_level->options(), two_level->first_bits());
  }
  if (as<faiss::IndexFlat>(&core)) return "Flat";
  if (auto* sq = as<faiss::IndexScalarQuantizer>(&core)) return describe_sq(sq->sq);
  if (auto* pq = as<faiss::IndexPQ>(&core)) return describe_pq(pq->pq);
  if (auto* hnsw = as<faiss::IndexHNSW>(&core)) {
    return "HNSW" + std::to_string(hnsw->hnsw.nb_neighbors(0) / 2) + "," + describe(*hnsw->storage);
  }
  if (auto* nsg = as<faiss::IndexNSG>(&core)) {
    return "NSG" + std::to_string(nsg->nsg.R) + "," + describe(*nsg->storage);
  }
  if (auto* ivf = as<faiss::IndexIVF>(&core)) return describe_ivf(*ivf);
  return class_name(typeid(core));
}

// Newer versions of FAISS keep codes in a type without reserve().
template <typename Codes>
auto reserve_bytes(Codes& codes, std::size_t bytes, int) -> decltype(codes.reserve(bytes)) {
  codes.reserve(bytes);
}
template <typename Codes>
void reserve_bytes(Codes&, std::size_t, long) {}

}  // namespace

IndexParts parts_of(faiss::Index& index) {
  IndexParts parts;
  parts.core = &index;
  for (;;) {
    if (auto* map = as<faiss::IndexIDMap>(parts.core)) {
      parts.has_ids = true;
      parts.core = map->index;
    } else if (auto* pre = as<faiss::IndexPreTransform>(parts.core)) {
      parts.transforms.insert(parts.transforms.end(), pre->chain.begin(), pre->chain.end());
      parts.core = pre->index;
    } else if (auto* refine = as<faiss::IndexRefine>(parts.core)) {
      parts.core = refine->base_index;
    } else {
      return parts;
    }
  }
}

SearchMetric metric_of(faiss::Index& index) {
  if (index.metric_type != faiss::METRIC_L2 && index.metric_type != faiss::METRIC_INNER_PRODUCT) {
    throw io::UsageError("the index has FAISS's metric " + std::to_string(index.metric_type) +
                         "; known are inner product and L2");
  }
  const IndexParts parts = parts_of(index);
  const auto* flat = as<IndexTurboQuant>(parts.core);
  const auto* two_level = as<IndexTwoLevel>(parts.core);
  const bool normalises =
      (flat && flat->options().normalize) || (two_level && two_level->options().normalize) ||
      (!parts.transforms.empty() &&
       dynamic_cast<const faiss::NormalizationTransform*>(parts.transforms.front()));
  if (normalises) return SearchMetric::kCosine;
  return index.metric_type == faiss::METRIC_L2 ? SearchMetric::kL2 : SearchMetric::kInnerProduct;
}

std::string describe(faiss::Index& index) {
  if (auto* map = as<faiss::IndexIDMap>(&index)) {
    return (as<faiss::IndexIDMap2>(&index) ? "IDMap2," : "IDMap,") + describe(*map->index);
  }
  if (auto* pre = as<faiss::IndexPreTransform>(&index)) {
    std::string text;
    for (const faiss::VectorTransform* transform : pre->chain) {
      text += describe_transform(*transform) + ",";
    }
    return text + describe(*pre->index);
  }
  if (auto* refine = as<faiss::IndexRefine>(&index)) {
    return describe(*refine->base_index) + ",Refine(" + describe(*refine->refine_index) + ")";
  }
  return describe_core(index);
}

std::optional<std::size_t> vector_bytes(faiss::Index& index) {
  if (auto* map = as<faiss::IndexIDMap>(&index)) {
    const auto inner = vector_bytes(*map->index);
    if (inner) return *inner + sizeof(std::int64_t);
    return std::nullopt;
  }
  if (auto* pre = as<faiss::IndexPreTransform>(&index)) return vector_bytes(*pre->index);
  if (auto* refine = as<faiss::IndexRefine>(&index)) {
    const auto base = vector_bytes(*refine->base_index);
    const auto fine = vector_bytes(*refine->refine_index);
    if (base && fine) return *base + *fine;
    return std::nullopt;
  }
  if (auto* ivf = as<faiss::IndexIVF>(&index)) return ivf->code_size + sizeof(std::int64_t);
  if (auto* hnsw = as<faiss::IndexHNSW>(&index)) {
    const auto stored = vector_bytes(*hnsw->storage);
    // The links of the lowest level, a level and an offset; higher levels add a few percent.
    const std::size_t links = static_cast<std::size_t>(hnsw->hnsw.nb_neighbors(0)) * 4 + 12;
    if (stored) return *stored + links;
    return std::nullopt;
  }
  if (auto* two_level = as<IndexTwoLevel>(&index)) return two_level->row_bytes();
  if (auto* flat = as<faiss::IndexFlatCodes>(&index)) return flat->code_size;
  return std::nullopt;
}

bool has_graph(faiss::Index& index) {
  faiss::Index* core = parts_of(index).core;
  return as<faiss::IndexHNSW>(core) || needs_single_add(index);
}

bool needs_single_add(faiss::Index& index) {
  faiss::Index* core = parts_of(index).core;
  return as<faiss::IndexNSG>(core) || as<faiss::IndexNNDescent>(core);
}

bool ids_are_rows(faiss::Index& index) {
  if (auto* pre = as<faiss::IndexPreTransform>(&index)) return ids_are_rows(*pre->index);
  if (auto* refine = as<faiss::IndexRefine>(&index)) return ids_are_rows(*refine->base_index);
  auto* map = as<faiss::IndexIDMap>(&index);
  if (!map) return true;
  for (std::size_t i = 0; i < map->id_map.size(); ++i) {
    if (map->id_map[i] != static_cast<std::int64_t>(i)) return false;
  }
  return true;
}

bool takes_ids(faiss::Index& index) {
  if (as<faiss::IndexIDMap>(&index) || as<faiss::IndexIVF>(&index)) return true;
  if (auto* pre = as<faiss::IndexPreTransform>(&index)) return takes_ids(*pre->index);
  return false;
}

void reserve_codes(faiss::Index& core, std::size_t rows) {
  if (auto* flat = as<faiss::IndexFlatCodes>(&core)) {
    reserve_bytes(flat->codes, rows * flat->code_size, 0);
  }
}

}  // namespace turboquant::tools
