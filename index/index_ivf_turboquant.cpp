#include "turboquant/index_ivf_turboquant.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/utils/Heap.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "index/checks.h"
#include "index/safe_scorer.h"

namespace turboquant {
namespace {

/// The heaps around it are FAISS's.
class Scanner : public faiss::InvertedListScanner {
 public:
  Scanner(const IndexIVFTurboQuant& index, bool pairs, const faiss::IDSelector* selector)
      : faiss::InvertedListScanner(pairs, selector),
        index_(index),
        scorer_(index.codec(), to_metric(index.metric_type)),
        residual_(index.codec().dimension()) {
    keep_max = index.metric_type == faiss::METRIC_INNER_PRODUCT;
    code_size = index.code_size;
  }

  void set_query(const float* query_vector) override {
    query_ = query_vector;
    offset_ = 0;
    if (!per_list_query()) scorer_.set_query(query_);
  }

  // |q - c - r|^2 needs q - c; <q, c + r> is <q, c> + <q, r>. FAISS offers <q, c> as coarse_dis,
  // but its bits depend on how many queries BLAS got at once.
  void set_list(std::int64_t list, float /*coarse_dis*/) override {
    list_no = list;
    if (!index_.by_residual) return;
    if (per_list_query()) {
      index_.quantizer->compute_residual(query_, residual_.data(), list);
      scorer_.set_query(residual_.data());
      return;
    }
    index_.quantizer->reconstruct(list, residual_.data());
    offset_ = static_cast<float>(
        std::inner_product(residual_.begin(), residual_.end(), query_, double{0}));
  }

  float distance_to_code(const std::uint8_t* code) const override {
    return offset_ + scorer_.score(code);
  }

#ifdef TURBOQUANT_FAISS_SCANNERS_SELECT
  using faiss::InvertedListScanner::scan_codes;
  std::size_t scan_codes(std::size_t n, const std::uint8_t* codes, const std::int64_t* ids,
                         float* distances, std::int64_t* labels, std::size_t k) const override {
    std::size_t updates = 0;
    for_selected(n, codes, ids, [&](float distance, std::int64_t id) {
      if (keep_max ? !(distance > distances[0]) : !(distance < distances[0])) return;
      if (keep_max) {
        faiss::minheap_replace_top(k, distances, labels, distance, id);
      } else {
        faiss::maxheap_replace_top(k, distances, labels, distance, id);
      }
      ++updates;
    });
    return updates;
  }

  void scan_codes_range(std::size_t n, const std::uint8_t* codes, const std::int64_t* ids,
                        float radius, faiss::RangeQueryResult& result) const override {
    for_selected(n, codes, ids, [&](float distance, std::int64_t id) {
      if (keep_max ? distance > radius : distance < radius) result.add(distance, id);
    });
  }
#endif

 private:
#ifdef TURBOQUANT_FAISS_SCANNERS_SELECT
  template <class F>
  void for_selected(std::size_t n, const std::uint8_t* codes, const std::int64_t* ids,
                    const F& f) const {
    constexpr std::size_t kRows = 64;  // scored together
    float scores[kRows];
    std::uint32_t rows[kRows];
    for (std::size_t first = 0; first < n; first += kRows) {
      const std::size_t end = std::min(n, first + kRows);
      std::size_t count = 0;
      for (std::size_t j = first; j < end; ++j) {
        if (sel != nullptr && !sel->is_member(id_at(ids, j))) continue;
        rows[count++] = static_cast<std::uint32_t>(j - first);
      }
      const bool all = count == end - first;
      scorer_.score_rows(codes + first * code_size, all ? nullptr : rows, count, scores);
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t j = first + rows[i];
        f(offset_ + scores[i], store_pairs ? static_cast<std::int64_t>(faiss::lo_build(
                                                 static_cast<std::uint64_t>(list_no), j))
                                           : id_at(ids, j));
      }
    }
  }

  static std::int64_t id_at(const std::int64_t* ids, std::size_t j) {
    std::int64_t id;
    std::memcpy(&id, ids + j, sizeof id);  // lists mapped from a file are not aligned
    return id;
  }
#endif

  bool per_list_query() const { return index_.by_residual && !keep_max; }

  const IndexIVFTurboQuant& index_;
  SafeScorer scorer_;
  std::vector<float> residual_;
  const float* query_ = nullptr;
  float offset_ = 0;
};

std::size_t checked_code_size(std::size_t dimension, const IndexOptions& options,
                              faiss::MetricType metric) {
  return make_codec(static_cast<std::int64_t>(dimension), options, metric).code_size();
}

}  // namespace

IndexIVFTurboQuant::IndexIVFTurboQuant(faiss::Index* coarse, std::size_t dimension,
                                       std::size_t nlist_in, const IndexOptions& options,
                                       faiss::MetricType metric, bool by_residual_in)
    : faiss::IndexIVF(coarse, dimension, nlist_in, checked_code_size(dimension, options, metric),
                      metric),
      options_(options),
      codec_(make_codec(static_cast<std::int64_t>(dimension), options, metric)) {
  by_residual = by_residual_in;
  if (options.centre) {
    fail("an inverted file has centres of its own: use " + std::string("IVF") +
         std::to_string(nlist_in) + ",TQ" + std::to_string(options.bits));
  }
  if (options.normalize) {
    fail("an inverted file cannot normalize: use L2norm,IVF" + std::to_string(nlist_in) + "," +
         index_name(options) + " without cos");
  }
}

void IndexIVFTurboQuant::train(std::int64_t n, const float* x) {
  require_finite(x, n, codec_.dimension(), "training vector");
  train_q1(static_cast<std::size_t>(n), x, verbose, metric_type);
  is_trained = true;
}

void IndexIVFTurboQuant::add_with_ids(std::int64_t n, const float* x, const std::int64_t* xids) {
  require_finite(x, n, codec_.dimension(), "vector");
  faiss::IndexIVF::add_with_ids(n, x, xids);
}

void IndexIVFTurboQuant::search(std::int64_t n, const float* x, std::int64_t k, float* distances,
                                std::int64_t* labels, const faiss::SearchParameters* params) const {
  require_finite(x, n, codec_.dimension(), "query");
  faiss::IndexIVF::search(n, x, k, distances, labels, params);
}

void IndexIVFTurboQuant::range_search(std::int64_t n, const float* x, float radius,
                                      faiss::RangeSearchResult* result,
                                      const faiss::SearchParameters* params) const {
  require_finite(x, n, codec_.dimension(), "query");
  faiss::IndexIVF::range_search(n, x, radius, result, params);
}

void IndexIVFTurboQuant::encode_vectors(std::int64_t n, const float* x,
                                        const std::int64_t* list_nos, std::uint8_t* codes,
                                        bool include_listno) const {
  constexpr std::int64_t kBlock = 4096;
  const std::size_t dimension = codec_.dimension();
  const std::size_t prefix = include_listno ? coarse_code_size() : 0;
  const std::size_t stride = prefix + code_size;
  const auto most = static_cast<std::size_t>(std::min(n, kBlock));
  std::vector<float> rows(most * dimension);
  std::vector<std::uint8_t> encoded(most * code_size);
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const auto count = static_cast<std::size_t>(std::min(kBlock, n - begin));
    const std::int64_t* lists = list_nos + begin;
    for (std::size_t i = 0; i < count; ++i) {
      const float* from = x + (static_cast<std::size_t>(begin) + i) * dimension;
      float* to = rows.data() + i * dimension;
      if (by_residual && lists[i] >= 0) {
        quantizer->compute_residual(from, to, lists[i]);
      } else {
        std::copy(from, from + dimension, to);
      }
    }
    translate_errors([&] { codec_.quantize(rows.data(), count, encoded.data()); });
    for (std::size_t i = 0; i < count; ++i) {
      std::uint8_t* code = codes + (static_cast<std::size_t>(begin) + i) * stride;
      if (lists[i] < 0) {
        std::memset(code, 0, stride);
        continue;
      }
      if (prefix > 0) encode_listno(lists[i], code);
      std::memcpy(code + prefix, encoded.data() + i * code_size, code_size);
    }
  }
}

void IndexIVFTurboQuant::decode_one(const std::uint8_t* code, std::int64_t list_no,
                                    float* x) const {
  codec_.dequantize(code, 1, x);
  if (!by_residual) return;
  std::vector<float> centroid(codec_.dimension());
  quantizer->reconstruct(list_no, centroid.data());
  for (std::size_t i = 0; i < centroid.size(); ++i) x[i] += centroid[i];
}

#ifdef TURBOQUANT_FAISS_HAS_DECODE_VECTORS
void IndexIVFTurboQuant::decode_vectors(std::int64_t n, const std::uint8_t* codes,
                                        const std::int64_t* list_nos, float* x) const {
  for (std::int64_t i = 0; i < n; ++i) {
    const auto row = static_cast<std::size_t>(i);
    decode_one(codes + row * code_size, list_nos[i], x + row * codec_.dimension());
  }
}
#endif

void IndexIVFTurboQuant::sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const {
  const std::size_t prefix = coarse_code_size();
  for (std::int64_t i = 0; i < n; ++i) {
    const auto row = static_cast<std::size_t>(i);
    const std::uint8_t* code = bytes + row * (prefix + code_size);
    decode_one(code + prefix, decode_listno(code), x + row * codec_.dimension());
  }
}

void IndexIVFTurboQuant::reconstruct_from_offset(std::int64_t list_no, std::int64_t offset,
                                                 float* recons) const {
  faiss::InvertedLists::ScopedCodes code(invlists, static_cast<std::size_t>(list_no),
                                         static_cast<std::size_t>(offset));
  decode_one(code.get(), list_no, recons);
}

faiss::InvertedListScanner* IndexIVFTurboQuant::get_InvertedListScanner(
    bool store_pairs, const faiss::IDSelector* sel TURBOQUANT_FAISS_SCANNER_PARAMS()) const {
  return new Scanner(*this, store_pairs, sel);
}

void IndexIVFTurboQuant::check_compatible_for_merge(const faiss::Index& other) const {
  faiss::IndexIVF::check_compatible_for_merge(other);
  const auto& same = dynamic_cast<const IndexIVFTurboQuant&>(other);
  require_same_codes(options_, same.options_);
  if (same.by_residual != by_residual) fail("cannot merge indexes with and without residuals");
  if (same.metric_type != metric_type) fail("cannot merge indexes with different metrics");
}

}  // namespace turboquant
