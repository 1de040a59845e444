#include "index/ivf_scanner.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/utils/Heap.h>

#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#ifndef TURBOQUANT_FAISS_SCANNERS_SELECT
#include <faiss/impl/ResultHandler.h>
#endif

#include "index/checks.h"
#include "index/ivf_lists.h"

namespace turboquant {
namespace {

/// Takes what is better than a threshold of FAISS's.
template <typename Take>
class ThresholdSink final : public ScanSink {
 public:
  /// take(score, row) tells whether the threshold moved.
  ThresholdSink(bool largest, const float& threshold, const Take& take)
      : largest_(largest), threshold_(threshold), take_(take) {}

  float bound(std::size_t /*v*/) const override { return threshold_; }
  bool offer(std::size_t /*v*/, float score, std::uint32_t row) override {
    if (largest_ ? !(score > threshold_) : !(score < threshold_)) return false;
    return take_(score, row);
  }

 private:
  const bool largest_;
  const float& threshold_;
  const Take& take_;
};

class Scanner : public faiss::InvertedListScanner {
 public:
  Scanner(const IndexIVFTurboQuant& index, bool pairs, const faiss::IDSelector* selector)
      : faiss::InvertedListScanner(pairs, selector),
        codec_(index.codec()),
        metric_(to_metric(index.metric_type)),
        centroid_(index),
        prepared_(codec_.impl(), 1),
        scratch_(codec_.impl()),
        rotation_(codec_.impl()),
        buffers_(codec_, metric_) {
    keep_max = metric_ == Metric::kInnerProduct;
    code_size = index.code_size;
  }

  // FAISS calls this in parallel regions that no exception may leave. After a query with NaN or
  // infinity every score is the worst finite one.
  void set_query(const float* query_vector) override {
    query_ = query_vector;
    valid_ = centroid_.prepares() ? rotation_.set(codec_.impl(), query_)
                                  : prepared_.set(0, query_, scratch_);
    valid_list_ = valid_;
  }

  void set_list(std::int64_t list, float /*coarse_dis*/) override {
    list_no = list;
    centroid_.set(list);
    valid_list_ = valid_;
    if (!valid_) return;
    if (centroid_.prepares()) {
      valid_list_ = centroid_.prepare(query_, rotation_, prepared_, 0, scratch_);
    }
    offset_ = centroid_.offset(query_);
  }

  float distance_to_code(const std::uint8_t* code) const override {
    if (!valid_list_) return worst();
    float product;
    prepared_.products(0, code, nullptr, 1, &product);
    if (keep_max) return offset_ + product;
    return squared_distance(prepared_.norms_squared[0], codec_.impl().norm_squared(code), product);
  }

#ifdef TURBOQUANT_FAISS_SCANNERS_SELECT
  using faiss::InvertedListScanner::scan_codes;
  std::size_t scan_codes(std::size_t n, const std::uint8_t* codes, const std::int64_t* ids,
                         float* distances, std::int64_t* labels, std::size_t k) const override {
    std::size_t updates = 0;
    scan(n, codes, ids, distances[0], [&](float score, std::uint32_t row) {
      if (keep_max) {
        faiss::minheap_replace_top(k, distances, labels, score, label(ids, row));
      } else {
        faiss::maxheap_replace_top(k, distances, labels, score, label(ids, row));
      }
      ++updates;
      return true;
    });
    return updates;
  }

  void scan_codes_range(std::size_t n, const std::uint8_t* codes, const std::int64_t* ids,
                        float radius, faiss::RangeQueryResult& result) const override {
    scan(n, codes, ids, radius, [&](float score, std::uint32_t row) {
      result.add(score, label(ids, row));
      return false;
    });
  }
#else
  // FAISS's scans by a heap and by a radius come here.
  using faiss::InvertedListScanner::scan_codes;
  std::size_t scan_codes(std::size_t n, const std::uint8_t* codes, const std::int64_t* ids,
                         faiss::ResultHandler& handler) const override {
    std::size_t updates = 0;
    const std::size_t seen =
        scan(n, codes, ids, handler.threshold, [&](float score, std::uint32_t row) {
          const bool moved = handler.add_result(score, label(ids, row));
          updates += moved ? 1 : 0;
          return moved;
        });
    count(handler, seen, updates, 0);
    return updates;
  }
#endif

 private:
  struct Buffers {
    Buffers(const Quantizer& codec, Metric metric) : scan(codec.impl(), metric) {}
    ListScan scan;
    std::vector<std::uint64_t> mask;
  };

  // Statistics, where this FAISS has them.
  template <class Handler>
  static auto count(Handler& handler, std::size_t seen, std::size_t updates, int)
      -> decltype(handler.stats.scan_cnt, void()) {
    handler.stats.scan_cnt += seen;
    handler.stats.nheap_updates += updates;
  }
  template <class Handler>
  static void count(Handler&, std::size_t, std::size_t, long) {}

  std::int64_t label(const std::int64_t* ids, std::size_t row) const {
    return store_pairs ? pair_of(list_no, row) : id_at(ids, row);
  }

  // Returns how many rows the selector let through.
  template <typename Take>
  std::size_t scan(std::size_t n, const std::uint8_t* codes, const std::int64_t* ids,
                   const float& threshold, const Take& take) const {
    // FAISS lets threads share a scanner for this; the first takes its buffers.
    const std::unique_lock<std::mutex> lock(buffers_taken_, std::try_to_lock);
    std::unique_ptr<Buffers> own;
    if (!lock.owns_lock()) own = std::make_unique<Buffers>(codec_, metric_);
    Buffers& buffers = own != nullptr ? *own : buffers_;

    CodeRows rows{codes, n, nullptr};
    std::size_t seen = n;
    if (sel != nullptr) {
      seen = selected_rows(
          *sel, n,
          [&](std::size_t j) { return ids != nullptr ? id_at(ids, j) : pair_of(list_no, j); },
          buffers.mask);
      rows.mask = buffers.mask.data();
    }
    ThresholdSink<Take> sink(keep_max, threshold, take);
    if (!valid_list_) {
      for (std::size_t j = 0; j < n; ++j) {
        const bool selected = rows.mask == nullptr || (rows.mask[j / 64] >> (j % 64) & 1) != 0;
        if (selected) sink.offer(0, worst(), static_cast<std::uint32_t>(j));
      }
      return seen;
    }
    const ListVisit visit{0, offset_, n};
    buffers.scan.run(prepared_, &visit, 1, rows, sink);
    return seen;
  }

  float worst() const {
    return keep_max ? std::numeric_limits<float>::lowest() : std::numeric_limits<float>::max();
  }

  const Quantizer& codec_;
  const Metric metric_;
  ListCentroid centroid_;
  PreparedQueries prepared_;
  PreparedQueries::Scratch scratch_;
  UnitRotation rotation_;
  const float* query_ = nullptr;
  float offset_ = 0;
  bool valid_ = false;
  bool valid_list_ = false;
  mutable std::mutex buffers_taken_;
  mutable Buffers buffers_;
};

}  // namespace

faiss::InvertedListScanner* make_list_scanner(const IndexIVFTurboQuant& index, bool store_pairs,
                                              const faiss::IDSelector* selector) {
  return new Scanner(index, store_pairs, selector);
}

}  // namespace turboquant
