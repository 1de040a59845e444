#include "turboquant/index_turboquant.h"

#include <faiss/impl/DistanceComputer.h>

#include <algorithm>
#include <vector>

#include "index/checks.h"
#include "index/code_search.h"
#include "index/safe_scorer.h"

namespace turboquant {
namespace {

// Scores of residuals alone would be taken for those of vectors.
void require_whole(const IndexOptions& options) {
  if (options.residual) {
    fail("the index " + index_name(options) +
         " holds what another one left over: IndexRefineResidual adds and searches it");
  }
}

class CodeDistance : public faiss::FlatCodesDistanceComputer {
 public:
  explicit CodeDistance(const IndexTurboQuant& index)
      : faiss::FlatCodesDistanceComputer(index.codes.data(), index.code_size),
        scorer_(index.codec(), to_metric(index.metric_type)),
        dimension_(index.codec().dimension()),
        unit_(index.options().normalize ? dimension_ : 0) {}

  void set_query(const float* x) override {
    if (unit_.empty()) {
      scorer_.set_query(x);
      return;
    }
    try {
      normalize_rows(x, 1, dimension_, "query", unit_.data());
      scorer_.set_query(unit_.data());
    } catch (const faiss::FaissException&) {
      scorer_.set_query(x);
    }
  }

  float distance_to_code(const std::uint8_t* code) override { return scorer_.score(code); }

#ifdef TURBOQUANT_FAISS_HAS_BATCH_4
  void distances_batch_4(const std::int64_t i0, const std::int64_t i1, const std::int64_t i2,
                         const std::int64_t i3, float& d0, float& d1, float& d2,
                         float& d3) override {
    const std::int64_t ids[4] = {i0, i1, i2, i3};
    float distances[4];
    std::uint32_t rows[4];
    bool small = true;
    for (int j = 0; j < 4; ++j) {
      rows[j] = static_cast<std::uint32_t>(ids[j]);
      small = small && static_cast<std::int64_t>(rows[j]) == ids[j];
      // The rows of a graph lie anywhere: all their cache lines are asked for at once.
      const std::uint8_t* row = codes + static_cast<std::size_t>(ids[j]) * code_size;
      for (std::size_t at = 0; at < code_size; at += 64) __builtin_prefetch(row + at);
    }
    if (small) {
      scorer_.score_rows(codes, rows, 4, distances);
    } else {
      for (int j = 0; j < 4; ++j) distances[j] = (*this)(ids[j]);
    }
    d0 = distances[0];
    d1 = distances[1];
    d2 = distances[2];
    d3 = distances[3];
  }
#endif

  float symmetric_dis(std::int64_t i, std::int64_t j) override {
    return scorer_.symmetric(codes + static_cast<std::size_t>(i) * code_size,
                             codes + static_cast<std::size_t>(j) * code_size);
  }

 private:
  SafeScorer scorer_;
  std::size_t dimension_;
  std::vector<float> unit_;
};

}  // namespace

IndexTurboQuant::IndexTurboQuant(int dimension, const IndexOptions& options,
                                 faiss::MetricType metric)
    : faiss::IndexFlatCodes(0, dimension, metric),
      options_(options),
      codec_(make_codec(dimension, options, metric)) {
  if (options.residual && (options.normalize || options.centre)) {
    fail("codes of residuals take neither c nor cos, which are the base index's");
  }
  code_size = codec_.code_size();
  is_trained = true;
}

void IndexTurboQuant::train(std::int64_t n, const float* x) {
  if (!options_.centre || ntotal > 0 || n <= 0) return;
  const auto dimension = codec_.dimension();
  const auto rows = static_cast<std::size_t>(n);
  std::vector<double> sums(dimension);
  std::vector<float> unit(options_.normalize ? dimension : 0);
  require_finite(x, n, dimension, "vector");
  for (std::size_t i = 0; i < rows; ++i) {
    const float* row = x + i * dimension;
    if (options_.normalize) {
      normalize_rows(row, 1, dimension, "vector", unit.data());
      row = unit.data();
    }
    for (std::size_t j = 0; j < dimension; ++j) sums[j] += row[j];
  }
  std::vector<float> mean(dimension);
  for (std::size_t j = 0; j < dimension; ++j) {
    mean[j] = static_cast<float>(sums[j] / static_cast<double>(n));
  }
  set_centre(mean.data());
}

std::vector<float> IndexTurboQuant::centre() const {
  return has_centre_ ? codec_.options().centre : std::vector<float>();
}

void IndexTurboQuant::set_centre(const float* centre) {
  if (!options_.centre) fail("the index " + index_name(options_) + " has no centre");
  if (ntotal > 0) fail("the centre of an index that holds vectors cannot change");
  QuantizerOptions centred = codec_.options();
  centred.centre.assign(centre, centre + codec_.dimension());
  translate_errors([&] { codec_ = Quantizer(centred); });
  has_centre_ = true;
}

void IndexTurboQuant::encode_rows(std::int64_t n, const float* x, std::uint8_t* bytes) const {
  if (!options_.normalize) {
    translate_errors([&] { codec_.quantize(x, static_cast<std::size_t>(n), bytes); });
    return;
  }
  const auto dimension = codec_.dimension();
  constexpr std::int64_t kBlock = 16384;
  std::vector<float> unit(static_cast<std::size_t>(std::min(n, kBlock)) * dimension);
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const std::int64_t rows = std::min(kBlock, n - i);
    normalize_rows(x + static_cast<std::size_t>(i) * dimension, rows, dimension, "vector",
                   unit.data(), i);
    codec_.quantize(unit.data(), static_cast<std::size_t>(rows),
                    bytes + static_cast<std::size_t>(i) * code_size);
  }
}

void IndexTurboQuant::add(std::int64_t n, const float* x) {
  require_whole(options_);
  if (n < 0) fail("cannot add " + std::to_string(n) + " vectors");
  if (n == 0) return;
  if (options_.centre && !has_centre_) train(n, x);
  const std::size_t used = static_cast<std::size_t>(ntotal) * code_size;
  codes.resize(used + static_cast<std::size_t>(n) * code_size);
  try {
    encode_rows(n, x, codes.data() + used);
  } catch (...) {
    codes.resize(used);
    throw;
  }
  ntotal += n;
}

void IndexTurboQuant::search(std::int64_t n, const float* x, std::int64_t k, float* distances,
                             std::int64_t* labels, const faiss::SearchParameters* params) const {
  require_whole(options_);
  const CodeView view{codec_, options_.normalize, metric_type, codes.data(), ntotal};
  const auto* ours = dynamic_cast<const SearchParametersTurboQuant*>(params);
  const float confidence = ours != nullptr ? ours->prune_confidence : prune_confidence;
  search_codes(view, n, x, k, distances, labels, params, confidence, &signs_);
}

void IndexTurboQuant::range_search(std::int64_t n, const float* x, float radius,
                                   faiss::RangeSearchResult* result,
                                   const faiss::SearchParameters* params) const {
  require_whole(options_);
  const CodeView view{codec_, options_.normalize, metric_type, codes.data(), ntotal};
  range_search_codes(view, n, x, radius, result, params);
}

void IndexTurboQuant::reset() {
  faiss::IndexFlatCodes::reset();
  signs_.drop();
}

std::size_t IndexTurboQuant::remove_ids(const faiss::IDSelector& selector) {
  signs_.drop();
  return faiss::IndexFlatCodes::remove_ids(selector);
}

void IndexTurboQuant::merge_from(faiss::Index& other, std::int64_t add_id) {
  faiss::IndexFlatCodes::merge_from(other, add_id);
  static_cast<IndexTurboQuant&>(other).signs_.drop();
}

void IndexTurboQuant::sa_encode(std::int64_t n, const float* x, std::uint8_t* bytes) const {
  if (n < 0) fail("cannot encode " + std::to_string(n) + " vectors");
  if (options_.centre && !has_centre_) fail("the index has no centre yet: train it or add vectors");
  if (n > 0) encode_rows(n, x, bytes);
}

void IndexTurboQuant::sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const {
  if (n < 0) fail("cannot decode " + std::to_string(n) + " vectors");
  if (n > 0) codec_.dequantize(bytes, static_cast<std::size_t>(n), x);
}

faiss::FlatCodesDistanceComputer* IndexTurboQuant::get_FlatCodesDistanceComputer() const {
  require_whole(options_);
  return new CodeDistance(*this);
}

void IndexTurboQuant::check_compatible_for_merge(const faiss::Index& other) const {
  const auto* same = dynamic_cast<const IndexTurboQuant*>(&other);
  if (same == nullptr) fail("a TurboQuant index can only take over another one");
  if (same == this) fail("cannot merge an index with itself");
  if (same->d != d) {
    fail("cannot merge an index of dimension " + std::to_string(same->d) + " into one of " +
         std::to_string(d));
  }
  if (same->metric_type != metric_type) fail("cannot merge indexes with different metrics");
  require_same_codes(options_, same->options_);
  if (centre() != same->centre()) fail("cannot merge indexes with different centres");
}

}  // namespace turboquant
