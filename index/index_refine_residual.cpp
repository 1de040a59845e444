#include "turboquant/index_refine_residual.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "index/checks.h"
#include "index/index_tree.h"
#include "index/refining.h"
#include "index/residual_base.h"
#include "quantizer/parallel.h"
#include "quantizer/prepared_queries.h"
#include "quantizer/top_k.h"

namespace turboquant {
namespace {

constexpr std::size_t kBlock = 256;  // rows that a thread encodes at a time

// Encodes residuals. The place of |x|^2 in codes for L2 takes what the row's own m adds to a
// distance, 2 <m, r>, so that scores come from the base's by one product.
class Encoder {
 public:
  Encoder(const Quantizer& codec, Metric metric) : codec_(codec), metric_(metric) {}

  // rows[n][d]: vectors, and base[n][d] their reconstructions. centres: [n][d], or null for 0.
  void encode(const float* rows, const float* base, const float* centres, std::size_t n,
              std::uint8_t* codes) {
    const std::size_t d = codec_.dimension();
    const Quantizer::Impl& impl = codec_.impl();
    left_.resize(n * d);
    for (std::size_t i = 0; i < n * d; ++i) left_[i] = finite(rows[i] - base[i]);
    codec_.quantize(left_.data(), n, codes);
    if (metric_ != Metric::kL2) return;
    if (centres != nullptr) codec_.dequantize(codes, n, left_.data());
    for (std::size_t i = 0; i < n; ++i) {
      const float of_row =
          centres == nullptr ? 0 : 2 * impl.kernels.dot(centres + i * d, left_.data() + i * d, d);
      const float term = finite(of_row);
      std::memcpy(codes + i * codec_.code_size() + impl.norm_at(), &term, sizeof term);
    }
  }

 private:
  // What overflows belongs to vectors whose scores do too; the base takes them, so must we.
  static float finite(float x) { return std::isnan(x) ? 0 : std::clamp(x, -FLT_MAX, FLT_MAX); }

  const Quantizer& codec_;
  const Metric metric_;
  std::vector<float> left_;
};

// Where an inverted file put the vectors of an add.
struct Places {
  std::vector<std::int64_t> lists;   // -1: nowhere
  std::vector<std::size_t> offsets;  // in the list
};

// One block of vectors and what the base made of them.
class Block {
 public:
  Block(const ResidualBase& base, std::size_t d) : base_(base), d_(d), decoded_(kBlock * d) {
    if (base.normalizes()) unit_.resize(kBlock * d);
    if (base.ivf() != nullptr) centres_.resize(kBlock * d);
  }

  const float* rows(const float* x, std::size_t n) {
    if (!base_.normalizes()) return x;
    normalize_rows(x, static_cast<std::int64_t>(n), d_, "vector", unit_.data());
    return unit_.data();
  }

  const float* decoded() const { return decoded_.data(); }
  const float* centres() const { return base_.has_list_centres() ? centres_.data() : nullptr; }

  // x' of the rows first to first + n - 1, of which places start with number `at`.
  void decode(std::int64_t first, const Places& places, std::size_t at, std::size_t n) {
    if (base_.ivf() == nullptr) {
      base_.reconstruct_rows(first, n, decoded_.data());
      return;
    }
    const IndexIVFTurboQuant& ivf = *base_.ivf();
    codes_.resize(n * ivf.code_size);
    for (std::size_t i = 0; i < n; ++i) {
      std::uint8_t* code = codes_.data() + i * ivf.code_size;
      if (places.lists[at + i] < 0) {
        std::memset(code, 0, ivf.code_size);
        continue;
      }
      const auto list = static_cast<std::size_t>(places.lists[at + i]);
      faiss::InvertedLists::ScopedCodes stored(ivf.invlists, list, places.offsets[at + i]);
      std::memcpy(code, stored.get(), ivf.code_size);
    }
    ivf.codec().dequantize(codes_.data(), n, decoded_.data());
    add_centres(places.lists.data() + at, n);
  }

  void decode(const std::uint8_t* base_codes, std::size_t base_size, std::size_t n,
              const faiss::Index& index) {
    index.sa_decode(static_cast<std::int64_t>(n), base_codes, decoded_.data());
    if (!base_.has_list_centres()) return;
    for (std::size_t i = 0; i < n; ++i) {
      set_centre(i, base_.ivf()->decode_listno(base_codes + i * base_size));
    }
  }

 private:
  void set_centre(std::size_t i, std::int64_t list) {
    float* centre = centres_.data() + i * d_;
    if (list < 0) {
      std::fill_n(centre, d_, 0.0f);
    } else {
      base_.ivf()->quantizer->reconstruct(list, centre);
    }
  }

  void add_centres(const std::int64_t* lists, std::size_t n) {
    if (!base_.ivf()->by_residual) return;
    for (std::size_t i = 0; i < n; ++i) set_centre(i, lists[i]);
    for (std::size_t i = 0; i < n * d_; ++i) decoded_[i] += centres_[i];
  }

  const ResidualBase& base_;
  const std::size_t d_;
  std::vector<float> decoded_, unit_, centres_;
  std::vector<std::uint8_t> codes_;
};

// One query at a time against the codes of residuals.
class ResidualLook : public SecondLook {
 public:
  ResidualLook(const IndexTurboQuant& residuals, const ResidualBase& base)
      : impl_(residuals.codec().impl()),
        codes_(residuals.codes.data()),
        code_size_(residuals.code_size),
        metric_(to_metric(residuals.metric_type)),
        d_(residuals.codec().dimension()),
        base_(base),
        prepared_(impl_, 1),
        scratch_(impl_),
        query_(d_) {}

  void score(const float* query, const std::int64_t* labels, std::size_t n,
             float* scores) override {
    if (n == 0) return;
    fetch(labels, std::min(kChunk, n));  // they come while the query is rotated
    set_query(query);
    for (std::size_t at = 0; at < n; at += kChunk) {
      const std::size_t count = std::min(kChunk, n - at);
      if (at + count < n) fetch(labels + at + count, std::min(kChunk, n - at - count));
      score_chunk(labels + at, count, scores + at);
    }
  }

 private:
  static constexpr std::size_t kChunk = 64;  // rows that are asked for at once

  void fetch(const std::int64_t* labels, std::size_t n) const {
    for (std::size_t j = 0; j < n; ++j) {
      const std::uint8_t* code = row(labels[j]);
      for (std::size_t at = 0; at < code_size_; at += 64) __builtin_prefetch(code + at);
      __builtin_prefetch(code + code_size_ - 1);
    }
  }

  void score_chunk(const std::int64_t* labels, std::size_t n, float* scores) const {
    std::uint32_t rows[kChunk];
    float products[kChunk];
    bool small = true;
    for (std::size_t j = 0; j < n; ++j) {
      rows[j] = static_cast<std::uint32_t>(labels[j]);
      small = small && static_cast<std::int64_t>(rows[j]) == labels[j];
    }
    if (small) {
      prepared_.products(0, codes_, rows, n, products);
    } else {
      for (std::size_t j = 0; j < n; ++j) {
        prepared_.products(0, row(labels[j]), nullptr, 1, &products[j]);
      }
    }
    for (std::size_t j = 0; j < n; ++j) scores[j] = refined(scores[j], products[j], labels[j]);
  }

  const std::uint8_t* row(std::int64_t label) const {
    return codes_ + static_cast<std::size_t>(label) * code_size_;
  }

  float refined(float first, float product, std::int64_t label) const {
    if (metric_ == Metric::kInnerProduct) return saturate(static_cast<double>(first) + product);
    const float distance = first + (impl_.norm_squared(row(label)) - 2 * product);
    return distance == distance ? distance : HUGE_VALF;
  }

  void set_query(const float* query) {
    if (base_.normalizes()) {
      normalize_rows(query, 1, d_, "query", query_.data());
      query = query_.data();
    }
    const std::vector<float>& centre = base_.centre();
    if (!centre.empty()) {
      for (std::size_t i = 0; i < d_; ++i) query_[i] = query[i] - centre[i];
      query = query_.data();
    }
    if (!prepared_.set(0, query, scratch_)) fail("a query less the centre overflows");
  }

  const Quantizer::Impl& impl_;
  const std::uint8_t* codes_;
  const std::size_t code_size_;
  const Metric metric_;
  const std::size_t d_;
  const ResidualBase& base_;
  PreparedQueries prepared_;
  PreparedQueries::Scratch scratch_;
  std::vector<float> query_;
};

faiss::Index* checked(faiss::Index* base) {
  if (base == nullptr) fail("a refining index needs a base index");
  return base;
}

// Also returns what it finds out about the base.
ResidualBase check(const faiss::IndexRefine& index) {
  if (!is_residual(index.refine_index)) {
    fail("the refining index must hold codes of residuals (IndexOptions::residual)");
  }
  const faiss::Index& base = *checked(index.base_index);
  const auto& residuals = static_cast<const IndexTurboQuant&>(*index.refine_index);
  if (residuals.d != base.d || residuals.metric_type != base.metric_type || index.d != base.d ||
      index.metric_type != base.metric_type) {
    fail("the residuals have another dimension or metric than the index that left them over");
  }
  if (residuals.ntotal != base.ntotal || index.ntotal != base.ntotal) {
    fail("there are residuals of " + std::to_string(residuals.ntotal) + " vectors, and " +
         std::to_string(base.ntotal) + " in the index that left them over");
  }
  if (residuals.codes.size() < static_cast<std::size_t>(residuals.ntotal) * residuals.code_size) {
    fail("the refining index lacks codes of its vectors");
  }
  // With one rotation for both, errors of the second code would depend on those of the first.
  ResidualBase known(base);
  if (known.seed() == residuals.options().seed) {
    fail("the residuals need another seed than the index that left them over");
  }
  return known;
}

}  // namespace

IndexRefineResidual::IndexRefineResidual(faiss::Index* base, IndexTurboQuant* residuals)
    : faiss::IndexRefine(checked(base), residuals) {
  check(*this);
}

IndexRefineResidual::IndexRefineResidual(faiss::IndexRefine&& refine)
    : faiss::IndexRefine(static_cast<const faiss::IndexRefine&>(refine)) {
  own_fields = own_refine_index = false;  // a throw leaves them to `refine`
  check(*this);
  own_fields = std::exchange(refine.own_fields, false);
  own_refine_index = std::exchange(refine.own_refine_index, false);
}

const IndexTurboQuant& IndexRefineResidual::residuals() const {
  return static_cast<const IndexTurboQuant&>(*refine_index);
}

void IndexRefineResidual::add(std::int64_t n, const float* x) {
  check(*this);
  if (n < 0) fail("cannot add " + std::to_string(n) + " vectors");
  if (n == 0) return;
  auto& to = static_cast<IndexTurboQuant&>(*refine_index);
  const auto rows = static_cast<std::size_t>(n);
  const std::size_t used = static_cast<std::size_t>(to.ntotal) * to.code_size;
  const std::int64_t first = base_index->ntotal;
  Places places;
  to.codes.resize(used + rows * to.code_size);
  try {
    if (auto* ivf = dynamic_cast<IndexIVFTurboQuant*>(base_index)) {
      places.lists.resize(rows);
      places.offsets.resize(rows);
      ivf->assign_lists(n, x, places.lists.data());
      std::vector<std::size_t> sizes(ivf->nlist);
      for (std::size_t i = 0; i < sizes.size(); ++i) sizes[i] = ivf->invlists->list_size(i);
      for (std::size_t i = 0; i < rows; ++i) {
        if (places.lists[i] < 0) continue;
        places.offsets[i] = sizes[static_cast<std::size_t>(places.lists[i])]++;
      }
      ivf->add_assigned(n, x, nullptr, places.lists.data());
    } else {
      base_index->add(n, x);
    }
  } catch (...) {
    to.codes.resize(used);
    throw;
  }
  const ResidualBase base(*base_index);
  const auto dimension = static_cast<std::size_t>(d);
  const std::size_t blocks = (rows + kBlock - 1) / kBlock;
  std::atomic<std::size_t> next{0};
  run_parts(std::clamp<std::size_t>(blocks, 1, free_threads()), [&](std::size_t) {
    Block block(base, dimension);
    Encoder encoder(to.codec(), to_metric(metric_type));
    for (std::size_t b = next++; b < blocks; b = next++) {
      const std::size_t at = b * kBlock;
      const std::size_t count = std::min(kBlock, rows - at);
      block.decode(first + static_cast<std::int64_t>(at), places, at, count);
      encoder.encode(block.rows(x + at * dimension, count), block.decoded(), block.centres(), count,
                     to.codes.data() + used + at * to.code_size);
    }
  });
  to.ntotal += n;
  ntotal = to.ntotal;
}

void IndexRefineResidual::search(std::int64_t n, const float* x, std::int64_t k, float* distances,
                                 std::int64_t* labels,
                                 const faiss::SearchParameters* params) const {
  const ResidualBase base = check(*this);
  if (n > 0) require_finite(x, n, static_cast<std::size_t>(d), "query");
  search_refined(*this, n, x, k, distances, labels, params,
                 [&] { return std::make_unique<ResidualLook>(residuals(), base); });
}

void IndexRefineResidual::range_search(std::int64_t, const float*, float, faiss::RangeSearchResult*,
                                       const faiss::SearchParameters*) const {
  fail("an index that is refined by residuals has no range search; its base_index has");
}

void IndexRefineResidual::check_compatible_for_merge(const faiss::Index& other) const {
  const auto* same = dynamic_cast<const IndexRefineResidual*>(&other);
  if (same == nullptr) fail("an index refined by residuals can only take over another one");
  check(*this);
  check(*same);
  residuals().check_compatible_for_merge(same->residuals());
  base_index->check_compatible_for_merge(*same->base_index);
}

void IndexRefineResidual::merge_from(faiss::Index& other, std::int64_t add_id) {
  check_compatible_for_merge(other);
  if (add_id != 0 && add_id != ntotal) {
    fail("ids of an index that is refined go up by the " + std::to_string(ntotal) +
         " vectors before them, not by " + std::to_string(add_id));
  }
  auto& from = static_cast<IndexRefineResidual&>(other);
  const bool lists = dynamic_cast<const IndexIVFTurboQuant*>(base_index) != nullptr;
  base_index->merge_from(*from.base_index, lists ? ntotal : 0);
  refine_index->merge_from(*from.refine_index, 0);
  ntotal = refine_index->ntotal;
  from.ntotal = 0;
}

void IndexRefineResidual::reconstruct(std::int64_t key, float* x) const {
  if (key < 0 || key >= residuals().ntotal) {
    fail("id " + std::to_string(key) + " is not in the index");
  }
  base_index->reconstruct(key, x);
  std::vector<float> rest(static_cast<std::size_t>(d));
  refine_index->reconstruct(key, rest.data());
  for (std::size_t i = 0; i < rest.size(); ++i) x[i] += rest[i];
}

void IndexRefineResidual::sa_encode(std::int64_t n, const float* x, std::uint8_t* bytes) const {
  if (n < 0) fail("cannot encode " + std::to_string(n) + " vectors");
  const ResidualBase base(*base_index);
  const auto dimension = static_cast<std::size_t>(d);
  const std::size_t first_size = base_index->sa_code_size();
  const std::size_t size = first_size + residuals().code_size;
  Block block(base, dimension);
  Encoder encoder(residuals().codec(), to_metric(metric_type));
  std::vector<std::uint8_t> first(kBlock * first_size);
  std::vector<std::uint8_t> second(kBlock * residuals().code_size);
  const auto rows = static_cast<std::size_t>(n);
  for (std::size_t at = 0; at < rows; at += kBlock) {
    const std::size_t count = std::min(kBlock, rows - at);
    const float* from = x + at * dimension;
    base_index->sa_encode(static_cast<std::int64_t>(count), from, first.data());
    block.decode(first.data(), first_size, count, *base_index);
    encoder.encode(block.rows(from, count), block.decoded(), block.centres(), count, second.data());
    for (std::size_t i = 0; i < count; ++i) {
      std::uint8_t* code = bytes + (at + i) * size;
      std::memcpy(code, first.data() + i * first_size, first_size);
      std::memcpy(code + first_size, second.data() + i * residuals().code_size,
                  residuals().code_size);
    }
  }
}

void IndexRefineResidual::sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const {
  if (n < 0) fail("cannot decode " + std::to_string(n) + " vectors");
  const std::size_t first_size = base_index->sa_code_size();
  const std::size_t size = first_size + residuals().code_size;
  const auto dimension = static_cast<std::size_t>(d);
  std::vector<float> rest(dimension);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    float* row = x + i * dimension;
    base_index->sa_decode(1, bytes + i * size, row);
    residuals().codec().dequantize(bytes + i * size + first_size, 1, rest.data());
    for (std::size_t j = 0; j < dimension; ++j) row[j] += rest[j];
  }
}

}  // namespace turboquant
