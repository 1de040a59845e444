// turboquant::IndexIVFTurboQuant: an inverted-file index whose lists hold TurboQuant codes. Only
// the coarse quantizer is trained. Use it as any faiss::IndexIVF (nprobe, direct map, ids,
// SearchParametersIVF, on-disk lists).
//
// A search reads each list that some query visits once for all of them, so batches cost less than
// their queries one at a time, with the same results. Equal distances are ordered by the smaller
// id. max_codes counts rows that the selector takes, from the nearest list on, and cuts the last
// list short. Results do not depend on the number of threads; parallel_mode 0 to 3 mean the same,
// and FAISS's own loop, list after list for each query, runs for any other
// (PARALLEL_MODE_NO_HEAP_INIT) and for lists that can only be iterated.
#pragma once

#include <faiss/IndexIVF.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "turboquant/faiss_compat.h"
#include "turboquant/index_centroids.h"
#include "turboquant/index_turboquant.h"

namespace turboquant {

struct IndexIVFTurboQuant : faiss::IndexIVF {
  /// coarse: has `nlist` vectors of this dimension or is trained to have them; not owned unless
  /// own_fields is set, as everywhere in FAISS. by_residual: encode a vector's difference from its
  /// centroid, which is more precise.
  /// Options::normalize is refused: put an L2norm transform in front instead.
  IndexIVFTurboQuant(faiss::Index* coarse, std::size_t dimension, std::size_t nlist,
                     const IndexOptions& options, faiss::MetricType metric = faiss::METRIC_L2,
                     bool by_residual = true);

  const IndexOptions& options() const { return options_; }
  const Quantizer& codec() const { return codec_; }

  /// What searches keep of the centroids. Centroids that changed are noticed, whoever changed them;
  /// its memory is centroids().bytes().
  const IndexCentroids& centroids() const { return centroids_; }

#ifndef TURBOQUANT_FAISS_HAS_BY_RESIDUAL
  bool by_residual;
#endif

  /// Trains the coarse quantizer; the codes need no training.
  void train(std::int64_t n, const float* x) override;

  void reset() override;

  /// Lists in memory get the room that they need, where they grow by a quarter or more at once.
  void add_with_ids(std::int64_t n, const float* x, const std::int64_t* xids) override;

  /// The same of vectors whose lists are known: lists[n], -1 for a vector that none takes. Rows of
  /// a list are appended in the order of the vectors.
  void add_assigned(std::int64_t n, const float* x, const std::int64_t* xids,
                    const std::int64_t* lists);

  /// lists[n]: the list that each of x[n][d] belongs to. Throws as add_with_ids does.
  void assign_lists(std::int64_t n, const float* x, std::int64_t* lists) const;

  void search(std::int64_t n, const float* x, std::int64_t k, float* distances,
              std::int64_t* labels, const faiss::SearchParameters* params = nullptr) const override;

  void search_preassigned(std::int64_t n, const float* x, std::int64_t k,
                          const std::int64_t* assign, const float* centroid_dis, float* distances,
                          std::int64_t* labels, bool store_pairs,
                          const faiss::IVFSearchParameters* params = nullptr,
                          faiss::IndexIVFStats* stats = nullptr) const override;

  /// The results of a query come in the order of its lists, and of rows in each. Like FAISS's, it
  /// knows no max_codes.
  void range_search(std::int64_t n, const float* x, float radius, faiss::RangeSearchResult* result,
                    const faiss::SearchParameters* params = nullptr) const override;

  void encode_vectors(std::int64_t n, const float* x, const std::int64_t* list_nos,
                      std::uint8_t* codes, bool include_listno = false) const override;

#ifdef TURBOQUANT_FAISS_HAS_DECODE_VECTORS
  void decode_vectors(std::int64_t n, const std::uint8_t* codes, const std::int64_t* list_nos,
                      float* x) const override;
#endif

  void sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const override;

  void reconstruct_from_offset(std::int64_t list_no, std::int64_t offset,
                               float* recons) const override;

  faiss::InvertedListScanner* get_InvertedListScanner(
      bool store_pairs = false,
      const faiss::IDSelector* sel =
          nullptr TURBOQUANT_FAISS_SCANNER_PARAMS(= nullptr)) const override;

  void check_compatible_for_merge(const faiss::Index& other) const override;

 private:
  // [n][probes]; adds the time it takes to stats.
  std::vector<std::int64_t> choose_lists(std::int64_t n, const float* x, std::size_t probes,
                                         const faiss::IVFSearchParameters* params,
                                         faiss::IndexIVFStats* stats) const;
  void decode_one(const std::uint8_t* code, std::int64_t list_no, float* x) const;

  IndexOptions options_;
  Quantizer codec_;
  IndexCentroids centroids_;
};

}  // namespace turboquant
