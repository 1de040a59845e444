// turboquant::IndexTwoLevel: a flat index that looks at the first bits of every code, then scores
// the best rows by the whole code. Factory names say both: TQ4r2 is TQ4 searched by 2 bits first.
//
// Both levels are parts of one code: a row takes 4 bytes more than in IndexTurboQuant. Rows that
// are found have the scores, bit for bit, that IndexTurboQuant gives them; which are found depends
// on k_factor. docs/two_level.md tells when this pays, and when pruning does (IndexTurboQuant::
// prune_confidence).
//
// Threads, errors, ids and the order of equal scores are as in IndexTurboQuant.
#pragma once

#include <faiss/Index.h>
#include <faiss/MetricType.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "turboquant/index_turboquant.h"

namespace turboquant {

class TwoLevel;

/// Search parameters of one call.
struct SearchParametersTwoLevel : faiss::SearchParameters {
  float k_factor = 4;  ///< takes the place of IndexTwoLevel::k_factor
};

struct IndexTwoLevel : faiss::Index {
  /// The whole code scores the best k * k_factor rows by the first level; at least 1.
  float k_factor = 4;

  /// dimension, options, metric: as IndexTurboQuant, scalar codes (TQ<b>, TQ<b>mse). first_bits: 1
  /// to options.bits - 1.
  IndexTwoLevel(int dimension, const IndexOptions& options, int first_bits,
                faiss::MetricType metric = faiss::METRIC_L2);

  /// The vectors of an index.
  IndexTwoLevel(const IndexTurboQuant& flat, int first_bits);

  const IndexOptions& options() const { return coder_.options(); }
  int first_bits() const { return first_bits_; }

  /// As IndexTurboQuant::centre.
  std::vector<float> centre() const { return coder_.centre(); }

  /// Bytes of a vector, of both levels together.
  std::size_t row_bytes() const;

  /// The same vectors in one level.
  IndexTurboQuant flat() const;

  void train(std::int64_t n, const float* x) override;
  void add(std::int64_t n, const float* x) override;
  void reset() override;

  /// Of params the selector is used, and what SearchParametersTwoLevel adds.
  void search(std::int64_t n, const float* x, std::int64_t k, float* distances,
              std::int64_t* labels, const faiss::SearchParameters* params = nullptr) const override;

  /// By the whole codes of all rows: k_factor plays no part.
  void range_search(std::int64_t n, const float* x, float radius, faiss::RangeSearchResult* result,
                    const faiss::SearchParameters* params = nullptr) const override;

  void reconstruct(std::int64_t key, float* x) const override;
  std::size_t remove_ids(const faiss::IDSelector& selector) override;
  void check_compatible_for_merge(const faiss::Index& other) const override;
  void merge_from(faiss::Index& other, std::int64_t add_id = 0) override;

  /// Codes of one level, as IndexTurboQuant makes them.
  std::size_t sa_code_size() const override { return coder_.sa_code_size(); }
  void sa_encode(std::int64_t n, const float* x, std::uint8_t* bytes) const override;
  void sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const override;

 private:
  void make_levels();
  void append(const std::uint8_t* rows, std::size_t n);

  IndexTurboQuant coder_;  // without vectors: encodes, decodes, keeps the centre
  int first_bits_;
  std::shared_ptr<const TwoLevel> levels_;
  std::vector<std::uint8_t> first_;
  std::vector<std::uint8_t> rest_;
};

/// "TQ4r2" and the like: as parse_index_name, with r and the bits of the first level behind the
/// bits. 0 bits when the name has no r. Throws faiss::FaissException.
IndexOptions parse_two_level_name(const std::string& name, int* first_bits);
std::string two_level_name(const IndexOptions& options, int first_bits);

/// Sets k_factor of the two-level index in a tree; false when there is none.
bool set_k_factor(faiss::Index& tree, float k_factor);

}  // namespace turboquant
