// Inverted files as the factory makes them: with graphs as coarse quantizers, trellis codes,
// refinement and wrappers; their files, direct maps and search parameters.
#include <faiss/IndexIVF.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/io.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::expect_same;
using test::search;

constexpr std::size_t kD = 32;
constexpr std::int64_t kRows = 6000;

IndexIVFTurboQuant* ivf_of(faiss::Index* index) {
  if (auto* refine = dynamic_cast<faiss::IndexRefine*>(index)) return ivf_of(refine->base_index);
  if (auto* chain = dynamic_cast<faiss::IndexPreTransform*>(index)) return ivf_of(chain->index);
  if (auto* map = dynamic_cast<faiss::IndexIDMap*>(index)) return ivf_of(map->index);
  return dynamic_cast<IndexIVFTurboQuant*>(index);
}

using Param = std::tuple<std::string, faiss::MetricType>;

class IvfStrings : public testing::TestWithParam<Param> {
 protected:
  // One for all tests of a string: training takes long.
  static faiss::Index& filled() {
    static std::map<Param, std::unique_ptr<faiss::Index>> made;
    auto& index = made[GetParam()];
    if (index == nullptr) {
      index = index_factory(kD, std::get<0>(GetParam()), std::get<1>(GetParam()));
      test::fill(*index, clustered(kRows, kD, 1));
      if (auto* refine = dynamic_cast<faiss::IndexRefine*>(index.get())) refine->k_factor = 30;
    }
    ivf_of(index.get())->nprobe = 8;
    return *index;
  }

  const std::vector<float> queries_ = clustered(40, kD, 2);
};

INSTANTIATE_TEST_SUITE_P(
    All, IvfStrings,
    testing::Combine(testing::Values("IVF256_HNSW32,TQ4t", "IVF256_HNSW32,TQ3", "IVF64,TQ2,RFlat",
                                     "IVF64,TQ4,Refine(SQ8)", "IVF64,TQ2,Refine(SQfp16)",
                                     "IVF64,TQ1,Refine(TQ4)", "PCAR16,IVF64,TQ2t,RFlat",
                                     "L2norm,IVF64,TQ3", "IDMap2,IVF64_HNSW32,TQ2t"),
                     testing::Values(faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2)),
    [](const auto& instance) {
      return test::test_name(std::get<0>(instance.param)) +
             (std::get<1>(instance.param) == faiss::METRIC_L2 ? "_L2" : "_IP");
    });

TEST_P(IvfStrings, FilesAndClones) {
  faiss::Index& index = filled();
  const auto before = search(index, queries_, 10);
  faiss::VectorIOWriter writer;
  write_index(index, &writer);
  faiss::VectorIOReader reader;
  reader.data = writer.data;
  const auto read = turboquant::read_index(&reader);
  EXPECT_EQ(ivf_of(read.get())->nprobe, 8U);
  expect_same(search(*read, queries_, 10), before);
  const auto copy = turboquant::clone_index(index);
  EXPECT_EQ(test::type_of(*copy), test::type_of(index));
  expect_same(search(*copy, queries_, 10), before);
  faiss::VectorIOWriter again;
  write_index(*copy, &again);
  EXPECT_EQ(again.data, writer.data);
}

TEST_P(IvfStrings, MoreProbesFindMore) {
  faiss::Index& index = filled();
  IndexIVFTurboQuant& ivf = *ivf_of(&index);
  const bool l2 = index.metric_type == faiss::METRIC_L2;
  double last = 0;
  for (const std::size_t nprobe : {std::size_t{1}, std::size_t{8}, ivf.nlist}) {
    ivf.nprobe = nprobe;
    double sum = 0;
    for (const float distance : search(index, queries_, 1).distances) {
      sum += l2 ? -distance : distance;
    }
    if (nprobe > 1) {
      EXPECT_GE(sum, last - 1e-3 * std::abs(last)) << nprobe;
    }
    last = sum;
  }
}

// Parameters of one search take the place of the index's own.
TEST_P(IvfStrings, ProbesBySearchParameters) {
  faiss::Index& index = filled();
  IndexIVFTurboQuant& ivf = *ivf_of(&index);
  faiss::SearchParametersIVF params;
  params.nprobe = 3;
  const faiss::SearchParameters* given = &params;
#ifdef TURBOQUANT_FAISS_HAS_REFINE_PARAMETERS
  faiss::IndexRefineSearchParameters of_refine;
  of_refine.k_factor = 30;  // as `filled` sets it
  of_refine.base_index_params = &params;
#endif
  const faiss::Index* searched = &index;
  if (auto* refine = dynamic_cast<faiss::IndexRefine*>(&index)) {
    // Chains and maps of FAISS 1.7.3 take no parameters.
    if (dynamic_cast<IndexIVFTurboQuant*>(refine->base_index) == nullptr) {
      searched = refine->base_index;
    }
  }
#ifndef TURBOQUANT_FAISS_HAS_SELECTOR_LOGIC
  if (dynamic_cast<const faiss::IndexRefine*>(searched) == nullptr) searched = &ivf;
#endif
  if (dynamic_cast<const faiss::IndexPreTransform*>(searched) != nullptr) searched = &ivf;
  std::vector<float> queries = queries_;
  queries.resize(40 * static_cast<std::size_t>(searched->d));
  const auto by_parameters = search(*searched, queries, 10, given);
#ifdef TURBOQUANT_FAISS_HAS_REFINE_PARAMETERS
  if (dynamic_cast<const faiss::IndexRefine*>(searched) != nullptr) {
    expect_same(search(*searched, queries, 10, &of_refine), by_parameters);
  }
#endif
  const auto by_eight = search(*searched, queries, 10);
  ivf.nprobe = 3;
  expect_same(search(*searched, queries, 10), by_parameters);
  EXPECT_NE(by_eight.distances, by_parameters.distances);
}

TEST_P(IvfStrings, DirectMapsReconstructAndFollowDeletions) {
  if (dynamic_cast<faiss::IndexIDMap*>(&filled()) != nullptr) return;  // maps of its own
  const auto copy = turboquant::clone_index(filled());
  IndexIVFTurboQuant& ivf = *ivf_of(copy.get());
  const auto d = static_cast<std::size_t>(ivf.d);
  ivf.make_direct_map();
  std::vector<float> all(static_cast<std::size_t>(kRows) * d);
  ivf.reconstruct_n(0, kRows, all.data());
  std::vector<float> one(d);
  for (const std::int64_t id : {0, 17, 5999}) {
    ivf.reconstruct(id, one.data());
    EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + id * static_cast<long>(d)));
  }
  ivf.set_direct_map_type(faiss::DirectMap::Hashtable);
  const std::vector<std::int64_t> gone = {17, 99};
  const faiss::IDSelectorArray selector(gone.size(), gone.data());
  EXPECT_EQ(ivf.remove_ids(selector), 2U);
  EXPECT_THROW(ivf.reconstruct(17, one.data()), faiss::FaissException);
  ivf.reconstruct(5999, one.data());
  EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + 5999 * static_cast<long>(d)));
  faiss::VectorIOWriter writer;
  write_index(ivf, &writer);
  faiss::VectorIOReader reader;
  reader.data = writer.data;
  const auto read = turboquant::read_index(&reader);
  std::vector<float> same(d);
  dynamic_cast<IndexIVFTurboQuant&>(*read).reconstruct(5999, same.data());
  EXPECT_EQ(same, one);
}

TEST_P(IvfStrings, ParallelModesAgree) {
  faiss::Index& index = filled();
  IndexIVFTurboQuant& ivf = *ivf_of(&index);
  const auto expected = search(index, queries_, 10);
  for (const int mode : {1, 2, 3, 0}) {
    ivf.parallel_mode = mode;
    expect_same(search(index, queries_, 10), expected);
  }
}

}  // namespace
}  // namespace turboquant
