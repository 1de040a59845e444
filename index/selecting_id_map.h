// Searches with an id selector behind IndexIDMap, which FAISS refuses before 1.7.4.
#pragma once

#include <faiss/IndexIDMap.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "turboquant/faiss_compat.h"

namespace turboquant {

/// The selector of a map's users, asked about the rows of the index inside.
class RowSelector : public faiss::IDSelector {
 public:
  RowSelector(const std::vector<std::int64_t>& id_map, const faiss::IDSelector& by_id)
      : id_map_(id_map), by_id_(by_id) {}
  bool is_member(std::int64_t row) const override {
    return by_id_.is_member(id_map_[static_cast<std::size_t>(row)]);
  }

 private:
  const std::vector<std::int64_t>& id_map_;
  const faiss::IDSelector& by_id_;
};

/// Map: faiss::IndexIDMap or IndexIDMap2. To FAISS, an index of that class.
template <class Map>
struct SelectingIdMap : Map {
  explicit SelectingIdMap(const Map& map) : Map(map) {}

  void search(std::int64_t n, const float* x, std::int64_t k, float* distances,
              std::int64_t* labels, const faiss::SearchParameters* params) const override {
    if (params == nullptr || params->sel == nullptr) {
      Map::search(n, x, k, distances, labels, params);
      return;
    }
    const RowSelector rows(this->id_map, *params->sel);
    faiss::SearchParameters inner;
    inner.sel = const_cast<RowSelector*>(&rows);
    this->index->search(n, x, k, distances, labels, &inner);
    for (std::int64_t i = 0; i < n * k; ++i) labels[i] = id_of(labels[i]);
  }

  void range_search(std::int64_t n, const float* x, float radius, faiss::RangeSearchResult* result,
                    const faiss::SearchParameters* params) const override {
    if (params == nullptr || params->sel == nullptr) {
      Map::range_search(n, x, radius, result, params);
      return;
    }
    const RowSelector rows(this->id_map, *params->sel);
    faiss::SearchParameters inner;
    inner.sel = const_cast<RowSelector*>(&rows);
    this->index->range_search(n, x, radius, result, &inner);
    for (std::size_t i = 0; i < result->lims[n]; ++i) result->labels[i] = id_of(result->labels[i]);
  }

 private:
  std::int64_t id_of(std::int64_t row) const {
    return row < 0 ? row : this->id_map[static_cast<std::size_t>(row)];
  }
};

/// The index itself, or, with a FAISS before 1.7.4, its selecting counterpart when it is a map of
/// ids around a flat TurboQuant index.
std::unique_ptr<faiss::Index> with_selectors(std::unique_ptr<faiss::Index> index);

}  // namespace turboquant
