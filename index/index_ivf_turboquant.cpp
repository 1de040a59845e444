#include "turboquant/index_ivf_turboquant.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/utils/utils.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "index/checks.h"
#include "index/ivf_coarse.h"
#include "index/ivf_lists.h"
#include "index/ivf_scanner.h"
#include "index/ivf_search.h"

namespace turboquant {
namespace {

constexpr std::int64_t kMostAdded = 65536;  // whose codes are held beside the lists
constexpr std::size_t kMostPrefetched = std::size_t{1} << 30;  // FAISS counts them in an int

std::size_t checked_code_size(std::size_t dimension, const IndexOptions& options,
                              faiss::MetricType metric) {
  return make_codec(static_cast<std::int64_t>(dimension), options, metric).code_size();
}

const faiss::IVFSearchParameters* ivf_parameters(const faiss::SearchParameters* params) {
  const auto* ivf = dynamic_cast<const faiss::IVFSearchParameters*>(params);
  if (params != nullptr && ivf == nullptr) fail("an inverted file takes SearchParametersIVF");
  return ivf;
}

// FAISS's statistics of all searches.
void add_to_totals(const faiss::IndexIVFStats& stats) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  faiss::indexIVF_stats.add(stats);
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
  if (options.residual) fail("what another index left over cannot be in an inverted file");
  if (options.normalize) {
    fail("an inverted file cannot normalize: use L2norm,IVF" + std::to_string(nlist_in) + "," +
         index_name(options) + " without cos");
  }
}

void IndexIVFTurboQuant::train(std::int64_t n, const float* x) {
  require_finite(x, n, codec_.dimension(), "training vector");
  centroids_.drop();
  train_q1(static_cast<std::size_t>(n), x, verbose, metric_type);
  is_trained = true;
}

void IndexIVFTurboQuant::reset() {
  faiss::IndexIVF::reset();
  centroids_.drop();
}

void IndexIVFTurboQuant::add_with_ids(std::int64_t n, const float* x, const std::int64_t* xids) {
  std::vector<std::int64_t> lists(static_cast<std::size_t>(std::max<std::int64_t>(n, 0)));
  assign_lists(n, x, lists.data());
  add_assigned(n, x, xids, lists.data());
}

void IndexIVFTurboQuant::assign_lists(std::int64_t n, const float* x, std::int64_t* lists) const {
  require_finite(x, n, codec_.dimension(), "vector");
  if (quantizer == nullptr || invlists == nullptr || !is_trained) {
    fail("only a trained index with inverted lists takes vectors");
  }
  nearest_lists(*this, n, x, 1, lists, nullptr);
}

void IndexIVFTurboQuant::add_assigned(std::int64_t n, const float* x, const std::int64_t* xids,
                                      const std::int64_t* lists) {
  if (invlists == nullptr) fail("only an index with inverted lists takes vectors");
  direct_map.check_can_add(xids);
  reserve_rows(*invlists, lists, static_cast<std::size_t>(std::max<std::int64_t>(n, 0)));
  for (std::int64_t begin = 0; begin < n; begin += kMostAdded) {
    const std::int64_t count = std::min(kMostAdded, n - begin);
    add_core(count, x + begin * d, xids != nullptr ? xids + begin : nullptr, lists + begin);
  }
}

std::vector<std::int64_t> IndexIVFTurboQuant::choose_lists(std::int64_t n, const float* x,
                                                           std::size_t probes,
                                                           const faiss::IVFSearchParameters* params,
                                                           faiss::IndexIVFStats* stats) const {
  const std::size_t wanted = static_cast<std::size_t>(n) * probes;
  std::vector<std::int64_t> lists(wanted);
  const double start = faiss::getmillisecs();
  nearest_lists(*this, n, x, static_cast<std::int64_t>(probes), lists.data(),
                params != nullptr ? params->quantizer_params : nullptr);
  stats->quantization_time += faiss::getmillisecs() - start;
  for (std::size_t i = 0; i < wanted; i += kMostPrefetched) {
    invlists->prefetch_lists(lists.data() + i,
                             static_cast<int>(std::min(kMostPrefetched, wanted - i)));
  }
  return lists;
}

void IndexIVFTurboQuant::search(std::int64_t n, const float* x, std::int64_t k, float* distances,
                                std::int64_t* labels, const faiss::SearchParameters* params) const {
  if (n < 0) fail("cannot search " + std::to_string(n) + " queries");
  if (k < 1) fail("k must be 1 or more, not " + std::to_string(k));
  require_finite(x, n, codec_.dimension(), "query");
  const faiss::IVFSearchParameters* ivf = ivf_parameters(params);
  const std::size_t probes = std::min(nlist, ivf != nullptr ? ivf->nprobe : nprobe);
  if (probes == 0 || !can_search_lists(*this, false, ivf)) {
    faiss::IndexIVF::search(n, x, k, distances, labels, params);
    return;
  }
  faiss::IndexIVFStats stats;
  const double start = faiss::getmillisecs();
  const auto lists = choose_lists(n, x, probes, ivf, &stats);
  search_lists(*this, {n, x, lists.data(), static_cast<std::int64_t>(probes)}, k, distances, labels,
               false, ivf, stats);
  stats.search_time = faiss::getmillisecs() - start;
  add_to_totals(stats);
}

void IndexIVFTurboQuant::search_preassigned(std::int64_t n, const float* x, std::int64_t k,
                                            const std::int64_t* assign, const float* centroid_dis,
                                            float* distances, std::int64_t* labels,
                                            bool store_pairs,
                                            const faiss::IVFSearchParameters* params,
                                            faiss::IndexIVFStats* stats) const {
  const std::size_t probes = std::min(nlist, params != nullptr ? params->nprobe : nprobe);
  if (k < 1 || probes == 0 || !can_search_lists(*this, store_pairs, params)) {
    faiss::IndexIVF::search_preassigned(n, x, k, assign, centroid_dis, distances, labels,
                                        store_pairs, params, stats);
    return;
  }
  faiss::IndexIVFStats own;
  search_lists(*this, {n, x, assign, static_cast<std::int64_t>(probes)}, k, distances, labels,
               store_pairs, params, own);
  if (stats != nullptr) {
    stats->add(own);
  } else {
    add_to_totals(own);
  }
}

void IndexIVFTurboQuant::range_search(std::int64_t n, const float* x, float radius,
                                      faiss::RangeSearchResult* result,
                                      const faiss::SearchParameters* params) const {
  if (n < 0) fail("cannot search " + std::to_string(n) + " queries");
  if (result == nullptr || static_cast<std::int64_t>(result->nq) != n) {
    fail("the range search result must be made for " + std::to_string(n) + " queries");
  }
  require_finite(x, n, codec_.dimension(), "query");
  const faiss::IVFSearchParameters* ivf = ivf_parameters(params);
  const std::size_t probes = std::min(nlist, ivf != nullptr ? ivf->nprobe : nprobe);
  if (probes == 0 || !can_range_search_lists(*this, ivf)) {
    faiss::IndexIVF::range_search(n, x, radius, result, params);
    return;
  }
  faiss::IndexIVFStats stats;
  const double start = faiss::getmillisecs();
  const auto lists = choose_lists(n, x, probes, ivf, &stats);
  range_search_lists(*this, {n, x, lists.data(), static_cast<std::int64_t>(probes)}, radius,
                     *result, ivf, stats);
  stats.search_time = faiss::getmillisecs() - start;
  add_to_totals(stats);
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
  return make_list_scanner(*this, store_pairs, sel);
}

void IndexIVFTurboQuant::check_compatible_for_merge(const faiss::Index& other) const {
  faiss::IndexIVF::check_compatible_for_merge(other);
  const auto& same = dynamic_cast<const IndexIVFTurboQuant&>(other);
  require_same_codes(options_, same.options_);
  if (same.by_residual != by_residual) fail("cannot merge indexes with and without residuals");
  if (same.metric_type != metric_type) fail("cannot merge indexes with different metrics");
}

}  // namespace turboquant
