// What the fuzz target of index files does with one input.
#pragma once

#include <faiss/IndexFlat.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/io.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "index/carrier.h"
#include "index/checked_reader.h"
#include "index/payload.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_refine_residual.h"

namespace turboquant::test {

/// Residuals that were read must refine an index of as many rows.
inline void use_residuals(IndexTurboQuant& residuals) {
  if (residuals.d > 512 || residuals.ntotal > 64) return;
  IndexOptions options;
  options.bits = 1;
  options.seed = residuals.options().seed + 1;
  IndexTurboQuant base(residuals.d, options, residuals.metric_type);
  const std::vector<float> rows(static_cast<std::size_t>(residuals.d * residuals.ntotal), 0.5F);
  base.add(residuals.ntotal, rows.data());
  const IndexRefineResidual index(&base, &residuals);
  const std::vector<float> query(static_cast<std::size_t>(residuals.d), 1.0F);
  float distances[3];
  std::int64_t labels[3];
  index.search(1, query.data(), 3, distances, labels);
  for (int i = 0; i < 3; ++i) {
    if (labels[i] >= index.ntotal || (labels[i] == -1) != (i >= index.ntotal)) std::abort();
  }
}

/// An index that was read must search, decode, and come back equal from its own file.
inline void use_index(const IndexTurboQuant& index) {
  const std::vector<float> query(static_cast<std::size_t>(index.d), 1.0F);
  float distances[3];
  std::int64_t labels[3];
  index.search(1, query.data(), 3, distances, labels);
  for (int i = 0; i < 3; ++i) {
    if (labels[i] < -1 || labels[i] >= index.ntotal || (labels[i] == -1) != (i >= index.ntotal)) {
      std::abort();
    }
  }
  std::vector<float> row(query.size());
  if (index.ntotal > 0) index.reconstruct(index.ntotal - 1, row.data());
  for (const bool pack : {false, true}) {
    faiss::VectorIOWriter writer;
    turboquant::write_index(index, &writer, {pack});
    const auto again = read_flat_index(writer.data.data(), writer.data.size());
    if (again->ntotal != index.ntotal || again->code_size != index.code_size ||
        !std::equal(index.codes.data(), index.codes.data() + index.codes.size(),
                    again->codes.data())) {
      std::abort();
    }
  }
}

/// Lists that were read must be searched like any others, whatever their rows hold.
inline void use_lists(IvfContent& content) {
  if (content.dimension > 512 || content.nlist > 64) return;
  const auto d = static_cast<int>(content.dimension);
  const std::size_t n = 20;  // queries, enough for those that lists are shared among
  std::vector<float> x(std::max(content.nlist, n) * content.dimension);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7) - 3;
  faiss::IndexFlat coarse(d, content.metric);
  coarse.add(static_cast<std::int64_t>(content.nlist), x.data());
  IndexIVFTurboQuant index(&coarse, content.dimension, content.nlist, content.options,
                           content.metric, content.by_residual);
  const auto rows = static_cast<std::int64_t>(content.lists->compute_ntotal());
  index.replace_invlists(content.lists.get());
  index.ntotal = rows;
  index.nprobe = content.nlist;
  std::vector<float> distances(n * 3);
  std::vector<std::int64_t> labels(n * 3);
  index.search(static_cast<std::int64_t>(n), x.data(), 3, distances.data(), labels.data());
  faiss::RangeSearchResult ranges(static_cast<std::int64_t>(n));
  index.range_search(static_cast<std::int64_t>(n), x.data(), 0, &ranges);
  for (std::size_t q = 0; q < n; ++q) {
    if (ranges.lims[q + 1] - ranges.lims[q] > static_cast<std::size_t>(rows)) std::abort();
  }
  index.replace_invlists(nullptr);
}

/// A flat index file, or a payload alone. Anything but a FaissException is a finding.
inline void fuzz_index_file(const std::uint8_t* data, std::size_t size) {
  try {
    if (size >= 4 && std::memcmp(data, "IwFl", 4) == 0) {
      const auto index = read_flat_index(data, size);
      use_index(*index);
      const FlatView view = view_flat_carrier(data, size, true);  // what a mapped file goes through
      if (view.count != index->ntotal ||
          !std::equal(index->codes.data(), index->codes.data() + index->codes.size(), view.codes)) {
        std::abort();
      }
      return;
    }
    MemoryReader reader(data, size);
    const auto payload = read_payload(&reader, 0);
    if (payload->flat != nullptr && payload->flat->options().residual) {
      use_residuals(*payload->flat);
    } else if (payload->flat != nullptr) {
      use_index(*payload->flat);
    }
    if (payload->two_level != nullptr) {
      use_index(payload->two_level->flat());
      const std::vector<float> query(static_cast<std::size_t>(payload->two_level->d), 1.0F);
      float distance = 0;
      std::int64_t label = -1;
      payload->two_level->search(1, query.data(), 1, &distance, &label);
      if ((label == 0) != (payload->two_level->ntotal == 1) && payload->two_level->ntotal < 2) {
        std::abort();
      }
    }
    if (payload->ivf != nullptr && payload->ivf->lists != nullptr) {
      if (payload->ivf->lists->compute_ntotal() != payload->ivf->count) std::abort();
      use_lists(*payload->ivf);
    }
  } catch (const faiss::FaissException&) {
    return;
  }
}

}  // namespace turboquant::test
