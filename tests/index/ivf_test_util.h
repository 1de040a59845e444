// Inverted files of every kind of code, and what single rows say that their searches must find.
#pragma once

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVF.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/index/index_test_util.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant::test {

inline constexpr std::int64_t kN = 700;
inline constexpr std::size_t kLists = 9;
inline constexpr std::int64_t kQueries = 40;

struct Case {
  const char* name;
  std::size_t d;
  faiss::MetricType metric;
  bool by_residual;
};

// The index, and searches by the lists that it assigns to queries.
class Ivf {
 public:
  Ivf(const Case& c, const std::vector<float>& x)
      : queries(clustered(kQueries, c.d, 2)),
        coarse(static_cast<std::int64_t>(c.d), c.metric),
        index(&coarse, c.d, kLists, parse_index_name(c.name), c.metric, c.by_residual) {
    index.train(kN, clustered(kN, c.d, 1).data());
    // Ids in no order, so that ties are not decided by the order of rows.
    std::vector<std::int64_t> ids(x.size() / c.d);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int64_t>(i * 7919 % ids.size()) * 3 - 50;
    }
    index.add_with_ids(static_cast<std::int64_t>(ids.size()), x.data(), ids.data());
  }

  std::vector<std::int64_t> assign(std::size_t nprobe) {
    nprobe = std::min(nprobe, kLists);
    std::vector<std::int64_t> lists(static_cast<std::size_t>(kQueries) * nprobe);
    std::vector<float> distances(lists.size());
    coarse.search(kQueries, queries.data(), static_cast<std::int64_t>(nprobe), distances.data(),
                  lists.data());
    return lists;
  }

  enum class By { kBatch, kQuery, kFaiss };

  Results search(By by, std::int64_t k, const faiss::SearchParametersIVF& params,
                 bool pairs = false) {
    const std::size_t nprobe = std::min(params.nprobe, kLists);
    const auto lists = assign(nprobe);
    const std::vector<float> zeros(lists.size());
    Results found;
    found.distances.resize(static_cast<std::size_t>(kQueries * k));
    found.labels.resize(found.distances.size());
    const std::int64_t step = by == By::kQuery ? 1 : kQueries;
    for (std::int64_t q = 0; q < kQueries; q += step) {
      const float* x = queries.data() + q * index.d;
      const std::int64_t* keys = lists.data() + q * static_cast<std::int64_t>(nprobe);
      float* distances = found.distances.data() + q * k;
      std::int64_t* labels = found.labels.data() + q * k;
      if (by == By::kFaiss) {
        index.faiss::IndexIVF::search_preassigned(step, x, k, keys, zeros.data(), distances, labels,
                                                  pairs, &params);
      } else {
        index.search_preassigned(step, x, k, keys, zeros.data(), distances, labels, pairs, &params);
      }
    }
    return found;
  }

  // The same from scores of single rows.
  Results expected(std::int64_t k, const faiss::SearchParametersIVF& params, bool pairs = false) {
    const std::size_t nprobe = std::min(params.nprobe, kLists);
    const auto lists = assign(nprobe);
    const bool largest = index.metric_type == faiss::METRIC_INNER_PRODUCT;
    Results all;
    const std::unique_ptr<faiss::InvertedListScanner> scanner(index.get_InvertedListScanner());
    for (std::size_t q = 0; q < static_cast<std::size_t>(kQueries); ++q) {
      scanner->set_query(queries.data() + q * static_cast<std::size_t>(index.d));
      std::vector<std::pair<float, std::int64_t>> found;
      std::size_t scanned = 0;
      for (std::size_t p = 0; p < nprobe; ++p) {
        const std::size_t left =
            params.max_codes == 0 ? static_cast<std::size_t>(kN) : params.max_codes - scanned;
        const auto list = static_cast<std::size_t>(lists[q * nprobe + p]);
        scanner->set_list(static_cast<std::int64_t>(list), 0);
        for (std::size_t j = 0; j < std::min(left, index.invlists->list_size(list)); ++j) {
          const std::int64_t id = index.invlists->get_single_id(list, j);
          if (params.sel != nullptr && !params.sel->is_member(id)) continue;
          ++scanned;
          const float score =
              scanner->distance_to_code(index.invlists->get_codes(list) + j * index.code_size);
          found.emplace_back(largest ? -score : score,
                             pairs ? static_cast<std::int64_t>(faiss::lo_build(list, j)) : id);
        }
      }
      std::sort(found.begin(), found.end());
      const float none =
          largest ? std::numeric_limits<float>::lowest() : std::numeric_limits<float>::max();
      for (std::size_t i = 0; i < static_cast<std::size_t>(k); ++i) {
        const bool filled = i < found.size();
        const float score = filled ? (largest ? -found[i].first : found[i].first) + 0.0f : none;
        all.distances.push_back(score);
        all.labels.push_back(filled ? found[i].second : -1);
      }
    }
    return all;
  }

  std::vector<float> queries;
  faiss::IndexFlat coarse;
  IndexIVFTurboQuant index;
};

// Every combination of metric and residuals with the plain estimator, and each other code once.
inline std::vector<Case> cases() {
  return {{"TQ3", 100, faiss::METRIC_INNER_PRODUCT, false},
          {"TQ4", 48, faiss::METRIC_INNER_PRODUCT, true},
          {"TQ4", 200, faiss::METRIC_L2, false},
          {"TQ2", 100, faiss::METRIC_L2, true},
          {"TQ1", 64, faiss::METRIC_INNER_PRODUCT, true},
          {"TQ2mse", 50, faiss::METRIC_L2, true},
          {"TQ3qjl", 50, faiss::METRIC_INNER_PRODUCT, true},
          {"TQ3qjl", 64, faiss::METRIC_L2, true},
          {"TQ3t", 100, faiss::METRIC_INNER_PRODUCT, true},
          {"TQ2t", 72, faiss::METRIC_L2, true}};
}

inline std::string case_name(const testing::TestParamInfo<Case>& instance) {
  const Case& c = instance.param;
  return std::string(c.name) + (c.metric == faiss::METRIC_L2 ? "_L2" : "_IP") +
         (c.by_residual ? "_residual" : "_plain");
}

}  // namespace turboquant::test
