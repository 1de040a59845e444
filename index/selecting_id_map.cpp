#include "index/selecting_id_map.h"

#include <utility>

#include "turboquant/index_refine_residual.h"
#include "turboquant/index_turboquant.h"
#include "turboquant/index_two_level.h"

namespace turboquant {
namespace {

template <class Map>
std::unique_ptr<faiss::Index> replace(Map& map) {
  auto selecting = std::make_unique<SelectingIdMap<Map>>(map);
  map.own_fields = false;
  return selecting;
}

}  // namespace

std::unique_ptr<faiss::Index> with_selectors(std::unique_ptr<faiss::Index> index) {
#ifndef TURBOQUANT_FAISS_ID_MAP_SELECTS
  auto* map = dynamic_cast<faiss::IndexIDMap*>(index.get());
  if (map == nullptr) return index;
  const faiss::Index* inside = map->index;
  if (const auto* refine = dynamic_cast<const IndexRefineResidual*>(inside)) {
    inside = refine->base_index;
  }
  if (dynamic_cast<const IndexTurboQuant*>(inside) == nullptr &&
      dynamic_cast<const IndexTwoLevel*>(inside) == nullptr) {
    return index;
  }
  if (auto* two_way = dynamic_cast<faiss::IndexIDMap2*>(map)) return replace(*two_way);
  return replace(*map);
#else
  return index;
#endif
}

}  // namespace turboquant
