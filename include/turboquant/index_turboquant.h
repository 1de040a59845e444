// turboquant::IndexTurboQuant: a flat FAISS index of TurboQuant codes. It needs no training, takes
// ceil(d * bits / 8) + 4 bytes per vector for inner products and 4 more for L2, and works wherever
// FAISS takes an index: IndexIDMap, IndexPreTransform, IndexRefine, IndexHNSW, IndexNSG.
//
//   turboquant::IndexTurboQuant index(384, turboquant::parse_index_name("TQ3"),
//                                     faiss::METRIC_INNER_PRODUCT);
//   index.add(n, x);
//   index.search(nq, queries, k, distances, labels);
//
// Distances are estimates: inner products, or squared L2 distances, which can be slightly below 0.
// They and the ids are the same bits on every processor and for every number of threads; equal
// distances are ordered by the smaller id, and slots that no vector fills have id -1.
//
// Any number of threads may call const methods at once; add, remove_ids, merge_from and reset need
// the index to themselves. Every failure is a faiss::FaissException. Vectors and queries that hold
// NaN or infinity are refused with their row number, and the index is then unchanged.
#pragma once

#include <faiss/IndexFlatCodes.h>
#include <faiss/MetricType.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "turboquant/faiss_compat.h"
#include "turboquant/index_signs.h"
#include "turboquant/quantizer.h"

namespace turboquant {

/// What an index stores per vector.
struct IndexOptions {
  int bits = 4;  ///< 1 to 4 per coordinate
  Estimator estimator = Estimator::kTurboQuant;
  Projection projection = Projection::kOrthogonal;  ///< used by Estimator::kQjl alone
  /// Scale vectors and queries to length 1, which makes inner products cosines. Zero stays zero.
  bool normalize = false;
  /// Encode x - c and keep <c, x> beside it (4 bytes per vector), c the mean of the vectors given
  /// to train, or else to the first add. Errors shrink with |x - c| |q - c|: it pays where vectors
  /// share a direction.
  bool centre = false;
  /// The rows are what another index left over and mean nothing without it: IndexRefineResidual
  /// adds and scores them. Without normalize and centre.
  bool residual = false;
  std::uint64_t seed = QuantizerOptions::kDefaultSeed;
};

/// The largest dimension for Projection::kGaussian, whose d x d matrix then takes 256 MiB.
inline constexpr int kMaxGaussianDimension = 8192;

/// Options from a factory name: TQ<bits>, then nothing, `t` (trellis code), `qjl`, `qjlg`
/// (Gaussian projection) or `mse`, then `c` to centre, then `cos` to normalize. Examples: TQ3,
/// TQ3t, TQ4cos, TQ3qjl, TQ2c, TQ2ccos. Throws faiss::FaissException when the name is none of
/// these.
IndexOptions parse_index_name(const std::string& name);

/// The inverse of parse_index_name, with a + in front for IndexOptions::residual; the seed is not
/// part of a name.
std::string index_name(const IndexOptions& options);

/// Search parameters of one call.
struct SearchParametersTurboQuant : faiss::SearchParameters {
  float prune_confidence = 0;  ///< takes the place of IndexTurboQuant::prune_confidence
};

struct IndexTurboQuant : faiss::IndexFlatCodes {
  /// 0, or above 1/2 and below 1. Not 0: searches of up to 3 queries and without a selector in
  /// 16,384 rows or more look at the sign bits first, and only score rows that those leave in
  /// question; a row at the bound is kept with at least this probability over the random rotation
  /// (at .999 about one in 10,000 results is missed). Searches of more queries look at the first
  /// coordinates likewise where vectors have 384 or more, as long as that is faster. Takes
  /// ceil(d / 8) + 4 (L2: 8) bytes per vector more, and 4 per length of prefix that is looked at,
  /// made by the first such search. Not written to index files. Codes of 1 bit and the qjl
  /// estimator are always scanned whole, trellis codes where there are more than 3 queries.
  float prune_confidence = 0;

  /// dimension: 1 to 65,536. metric: METRIC_INNER_PRODUCT or METRIC_L2.
  IndexTurboQuant(int dimension, const IndexOptions& options,
                  faiss::MetricType metric = faiss::METRIC_L2);

  const IndexOptions& options() const { return options_; }
  const Quantizer& codec() const { return codec_; }

  /// Nothing needs to be learned from data: the index is trained from the start. With
  /// IndexOptions::centre and no vector added, takes the centre from x[n][d]; else returns at once.
  void train(std::int64_t n, const float* x) override;

  /// [d], of normalized vectors where those are kept; empty before one was taken or set.
  std::vector<float> centre() const;
  /// The index must have IndexOptions::centre and hold no vector.
  void set_centre(const float* centre);

  /// x: [n][d]; the rows get the ids ntotal to ntotal + n - 1.
  void add(std::int64_t n, const float* x) override;

  /// distances, labels: [n][k]. Of params the selector is used, which is asked about ids from 0 to
  /// ntotal - 1, once per call, and what SearchParametersTurboQuant adds.
  void search(std::int64_t n, const float* x, std::int64_t k, float* distances,
              std::int64_t* labels, const faiss::SearchParameters* params = nullptr) const override;

  /// All rows with distance < radius (L2) or product > radius, ordered by id.
  void range_search(std::int64_t n, const float* x, float radius, faiss::RangeSearchResult* result,
                    const faiss::SearchParameters* params = nullptr) const override;

  /// bytes: [n][code_size], as stored.
  void sa_encode(std::int64_t n, const float* x, std::uint8_t* bytes) const override;
  void sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const override;

  /// The caller owns the result. Its symmetric_dis uses no state, so threads may share it for that.
  /// A query with NaN or infinity gives every row the worst finite distance: FAISS calls set_query
  /// in parallel regions that no exception may leave.
  faiss::FlatCodesDistanceComputer* get_FlatCodesDistanceComputer() const override;

  /// Throws unless the other index has the same dimension, metric, options and seed.
  void check_compatible_for_merge(const faiss::Index& other) const override;

  void reset() override;
  std::size_t remove_ids(const faiss::IDSelector& selector) override;
  void merge_from(faiss::Index& other, std::int64_t add_id = 0) override;

  /// Bytes that pruning takes at present.
  std::size_t sign_bytes() const { return signs_.bytes(); }
  /// For programs that change rows of `codes` themselves: makes the next search look at them again.
  void drop_signs() { signs_.drop(); }

 private:
  void encode_rows(std::int64_t n, const float* x, std::uint8_t* bytes) const;

  IndexOptions options_;
  Quantizer codec_;
  bool has_centre_ = false;
  IndexSigns signs_;
};

}  // namespace turboquant
