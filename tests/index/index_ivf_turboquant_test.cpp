#include "turboquant/index_ivf_turboquant.h"

#include <faiss/IndexFlat.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/io.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <set>
#include <string>

#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"

namespace turboquant {
namespace {

using test::clustered;
using test::error_of;
using test::expect_same;
using test::search;
using testing::HasSubstr;

constexpr std::size_t kD = 48;
constexpr std::int64_t kN = 1000;
constexpr std::size_t kLists = 12;

struct Case {
  faiss::MetricType metric;
  bool by_residual;
};

class IvfTurboQuant : public testing::TestWithParam<Case> {
 protected:
  IvfTurboQuant()
      : x_(clustered(kN, kD, 1)),
        queries_(clustered(30, kD, 2)),
        coarse_(kD, GetParam().metric),
        index_(make()) {
    index_->train(kN, x_.data());
    index_->add(kN, x_.data());
  }

  std::unique_ptr<IndexIVFTurboQuant> make() {
    return std::make_unique<IndexIVFTurboQuant>(&coarse_, kD, kLists, parse_index_name("TQ4"),
                                                GetParam().metric, GetParam().by_residual);
  }

  double recall(std::size_t nprobe) {
    faiss::IndexFlat exact(kD, GetParam().metric);
    exact.add(kN, x_.data());
    const auto truth = search(exact, queries_, 10);
    index_->nprobe = nprobe;
    const auto found = search(*index_, queries_, 10);
    int hits = 0;
    for (std::size_t q = 0; q < 30; ++q) {
      const auto begin = truth.labels.begin() + static_cast<long>(q) * 10;
      const std::set<std::int64_t> expected(begin, begin + 10);
      for (std::size_t i = 0; i < 10; ++i) {
        hits += static_cast<int>(expected.count(found.labels[q * 10 + i]));
      }
    }
    return hits / 300.0;
  }

  std::vector<float> x_;
  std::vector<float> queries_;
  faiss::IndexFlat coarse_;
  std::unique_ptr<IndexIVFTurboQuant> index_;
};

INSTANTIATE_TEST_SUITE_P(All, IvfTurboQuant,
                         testing::Values(Case{faiss::METRIC_INNER_PRODUCT, false},
                                         Case{faiss::METRIC_INNER_PRODUCT, true},
                                         Case{faiss::METRIC_L2, false},
                                         Case{faiss::METRIC_L2, true}),
                         [](const auto& instance) {
                           const Case& c = instance.param;
                           return std::string(c.metric == faiss::METRIC_L2 ? "L2" : "IP") +
                                  (c.by_residual ? "_residual" : "_plain");
                         });

TEST_P(IvfTurboQuant, VisitingAllListsFindsNearlyAll) {
  EXPECT_GE(recall(kLists), 0.88);
  EXPECT_GE(recall(kLists), recall(1));
}

// Without residuals, an inverted file that visits every list holds the codes of a flat index.
TEST_P(IvfTurboQuant, PlainCodesScoreLikeAFlatIndex) {
  if (GetParam().by_residual) return;
  IndexTurboQuant flat(kD, parse_index_name("TQ4"), GetParam().metric);
  flat.add(kN, x_.data());
  index_->nprobe = kLists;
  expect_same(search(*index_, queries_, 10), search(flat, queries_, 10));
}

TEST_P(IvfTurboQuant, RangeSearchAgreesWithSearch) {
  index_->nprobe = 4;
  const auto all = search(*index_, queries_, kN);
  const float radius = all.distances[20];
  faiss::RangeSearchResult found(30);
  index_->range_search(30, queries_.data(), radius, &found);
  for (std::size_t q = 0; q < 30; ++q) {
    std::set<std::pair<std::int64_t, float>> expected;
    for (std::size_t i = q * kN; i < (q + 1) * kN; ++i) {
      if (all.labels[i] < 0) continue;
      const bool inside = GetParam().metric == faiss::METRIC_L2 ? all.distances[i] < radius
                                                                : all.distances[i] > radius;
      if (inside) expected.emplace(all.labels[i], all.distances[i]);
    }
    std::set<std::pair<std::int64_t, float>> got;
    for (std::size_t i = found.lims[q]; i < found.lims[q + 1]; ++i) {
      got.emplace(found.labels[i], found.distances[i]);
    }
    EXPECT_EQ(got, expected);
  }
}

// FAISS asks a range itself and leaves other selectors to the scanner.
TEST_P(IvfTurboQuant, SelectorsAndParameters) {
  faiss::IDSelectorRange half(0, kN / 2);
  faiss::IDSelectorNot other_half(&half);
  faiss::SearchParametersIVF params;
  params.nprobe = kLists;
  const auto unfiltered = search(*index_, queries_, kN, &params);
  for (const bool lower : {true, false}) {
    params.sel = lower ? static_cast<faiss::IDSelector*>(&half) : &other_half;
    const auto found = search(*index_, queries_, 10, &params);
    faiss::RangeSearchResult range(30);
    const float radius = unfiltered.distances[40];
    index_->range_search(30, queries_.data(), radius, &range, &params);
    for (std::size_t q = 0; q < 30; ++q) {
      std::vector<std::int64_t> expected;
      std::set<std::int64_t> inside;
      for (std::size_t i = q * kN; i < (q + 1) * kN; ++i) {
        if (!params.sel->is_member(unfiltered.labels[i])) continue;
        if (expected.size() < 10) expected.push_back(unfiltered.labels[i]);
        const float distance = unfiltered.distances[i];
        if (GetParam().metric == faiss::METRIC_L2 ? distance < radius : distance > radius) {
          inside.insert(unfiltered.labels[i]);
        }
      }
      const auto begin = found.labels.begin() + static_cast<long>(q) * 10;
      EXPECT_EQ(std::vector<std::int64_t>(begin, begin + 10), expected);
      EXPECT_EQ(
          std::set<std::int64_t>(range.labels + range.lims[q], range.labels + range.lims[q + 1]),
          inside);
    }
  }
}

TEST_P(IvfTurboQuant, ReconstructionAndCodec) {
  index_->make_direct_map();
  std::vector<float> all(x_.size());
  index_->reconstruct_n(0, kN, all.data());
  double error = 0;
  double norm = 0;
  for (std::size_t i = 0; i < x_.size(); ++i) {
    error += (all[i] - x_[i]) * (all[i] - x_[i]);
    norm += x_[i] * x_[i];
  }
  EXPECT_LT(error / norm, GetParam().by_residual ? 0.008 : 0.015);
  std::vector<float> one(kD);
  index_->reconstruct(77, one.data());
  EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + 77 * kD));

  std::vector<std::uint8_t> bytes(index_->sa_code_size() * 10);
  index_->sa_encode(10, x_.data(), bytes.data());
  std::vector<float> decoded(10 * kD);
  index_->sa_decode(10, bytes.data(), decoded.data());
  EXPECT_TRUE(std::equal(decoded.begin(), decoded.end(), all.begin()));
}

TEST_P(IvfTurboQuant, RemoveMergeReset) {
  const faiss::IDSelectorRange gone(100, 200);
  EXPECT_EQ(index_->remove_ids(gone), 100U);
  EXPECT_EQ(index_->ntotal, kN - 100);
  index_->nprobe = kLists;
  for (const std::int64_t id : search(*index_, queries_, 10).labels) {
    EXPECT_TRUE(id < 100 || id >= 200);
  }
  auto other = make();
  other->is_trained = true;
  const std::vector<std::int64_t> ids = {5000, 5001};
  other->add_with_ids(2, x_.data(), ids.data());
  index_->merge_from(*other, 0);
  EXPECT_EQ(index_->ntotal, kN - 98);
  EXPECT_EQ(other->ntotal, 0);
  index_->reset();
  EXPECT_EQ(index_->ntotal, 0);
  for (const std::int64_t id : search(*index_, queries_, 2).labels) EXPECT_EQ(id, -1);
}

TEST_P(IvfTurboQuant, MergeRefusesOtherCodes) {
  IndexOptions options = parse_index_name("TQ4");
  options.seed = 3;
  IndexIVFTurboQuant other(&coarse_, kD, kLists, options, GetParam().metric,
                           GetParam().by_residual);
  EXPECT_THROW(index_->merge_from(other, 0), faiss::FaissException);
  IndexIVFTurboQuant residual(&coarse_, kD, kLists, parse_index_name("TQ4"), GetParam().metric,
                              !GetParam().by_residual);
  EXPECT_THROW(index_->merge_from(residual, 0), faiss::FaissException);
}

TEST_P(IvfTurboQuant, NanIsRefusedWithItsRow) {
  auto bad = x_;
  bad[7 * kD + 3] = std::nanf("");
  EXPECT_THAT(error_of([&] { index_->add(kN, bad.data()); }), HasSubstr("vector 7 "));
  EXPECT_EQ(index_->ntotal, kN);
  EXPECT_THAT(error_of([&] { index_->train(kN, bad.data()); }), HasSubstr("vector 7 "));
  EXPECT_THAT(error_of([&] { search(*index_, bad, 1); }), HasSubstr("query 7 "));
  faiss::RangeSearchResult range(kN);
  EXPECT_THAT(error_of([&] { index_->range_search(kN, bad.data(), 0, &range); }),
              HasSubstr("query 7 "));
}

TEST_P(IvfTurboQuant, FileKeepsDirectMapAndProbes) {
  index_->make_direct_map();
  index_->nprobe = 5;
  faiss::VectorIOWriter writer;
  turboquant::write_index(*index_, &writer);
  faiss::VectorIOReader reader;
  reader.data = writer.data;
  const auto read = turboquant::read_index(&reader);
  const auto& ivf = dynamic_cast<const IndexIVFTurboQuant&>(*read);
  EXPECT_EQ(ivf.nprobe, 5U);
  EXPECT_EQ(ivf.by_residual, GetParam().by_residual);
  expect_same(search(ivf, queries_, 10), search(*index_, queries_, 10));
  std::vector<float> a(kD);
  std::vector<float> b(kD);
  ivf.reconstruct(123, a.data());
  index_->reconstruct(123, b.data());
  EXPECT_EQ(a, b);
}

TEST_P(IvfTurboQuant, ListsCanBeMapped) {
  index_->nprobe = 3;
  const std::string path = testing::TempDir() + "ivf_mapped.index";
  turboquant::write_index(*index_, path);
  {
    const auto mapped = turboquant::read_index(path, faiss::IO_FLAG_MMAP);
    const auto& ivf = dynamic_cast<const IndexIVFTurboQuant&>(*mapped);
    EXPECT_EQ(dynamic_cast<const faiss::ArrayInvertedLists*>(ivf.invlists), nullptr);
    expect_same(search(ivf, queries_, 10), search(*index_, queries_, 10));
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace turboquant
