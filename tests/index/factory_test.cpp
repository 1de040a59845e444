// Every factory string: build, train, add, search, write, read, clone. Uses the explicit functions;
// plain_faiss_test does the same through FAISS's own names.
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissAssert.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::expect_same;
using test::search;

constexpr std::size_t kD = 32;
constexpr std::size_t kN = 400;

class EveryString : public testing::TestWithParam<std::tuple<std::string, faiss::MetricType>> {
 protected:
  // One index for all tests of a string: FAISS takes seconds to build a graph.
  static const faiss::Index& filled() {
    static std::map<ParamType, std::unique_ptr<faiss::Index>> made;
    auto& index = made[GetParam()];
    if (index == nullptr) {
      const auto& [description, metric] = GetParam();
      index = index_factory(kD, description, metric);
      test::fill(*index, clustered(kN, kD, 1));
      EXPECT_TRUE(index->is_trained);
      EXPECT_EQ(index->ntotal, static_cast<std::int64_t>(kN));
    }
    return *index;
  }
};

TEST_P(EveryString, FindsNeighbours) {
  const faiss::Index& index = filled();
  const auto queries = clustered(20, kD, 2);
  const auto found = search(index, queries, 5);
  std::size_t empty = 0;
  for (const std::int64_t id : found.labels) {
    EXPECT_GE(id, -1);
    EXPECT_LT(id, static_cast<std::int64_t>(kN));
    empty += id < 0 ? 1 : 0;
  }
  // One visited list of an inverted file may hold fewer than five vectors.
  const bool lists = std::get<0>(GetParam()).find("IVF") != std::string::npos;
  EXPECT_LE(empty, lists ? found.labels.size() / 4 : 0);
  const bool larger_first = index.metric_type == faiss::METRIC_INNER_PRODUCT;
  for (std::size_t i = 1; i < found.distances.size(); ++i) {
    if (i % 5 == 0) continue;
    const float better = found.distances[i - 1];
    const float worse = found.distances[i];
    EXPECT_TRUE(larger_first ? better >= worse : better <= worse);
  }
}

TEST_P(EveryString, FileRoundTrip) {
  const faiss::Index& index = filled();
  const auto queries = clustered(20, kD, 2);
  const auto before = search(index, queries, 5);
  const std::string path =
      testing::TempDir() + "factory_" + test::test_name(std::get<0>(GetParam())) + ".index";
  write_index(index, path);
  const auto read = turboquant::read_index(path);
  std::remove(path.c_str());
  EXPECT_EQ(read->ntotal, index.ntotal);
  EXPECT_EQ(read->metric_type, index.metric_type);
  EXPECT_EQ(read->is_trained, index.is_trained);
  EXPECT_TRUE(contains_turboquant(*read));
  expect_same(search(*read, queries, 5), before);
  expect_same(search(index, queries, 5), before);  // writing left it alone
}

TEST_P(EveryString, MemoryRoundTripAndSameBytesAgain) {
  const faiss::Index& index = filled();
  const auto queries = clustered(20, kD, 2);
  faiss::VectorIOWriter writer;
  write_index(index, &writer);
  faiss::VectorIOReader reader;
  reader.data = writer.data;
  const auto read = turboquant::read_index(&reader);
  EXPECT_EQ(reader.rp, reader.data.size());
  expect_same(search(*read, queries, 5), search(index, queries, 5));
  faiss::VectorIOWriter again;
  write_index(*read, &again);
  EXPECT_EQ(again.data, writer.data);
}

TEST_P(EveryString, CloneIsEqualAndIndependent) {
  const auto queries = clustered(20, kD, 2);
  const auto before = search(filled(), queries, 5);
  auto copy = turboquant::clone_index(filled());
  const auto copy_of_copy = turboquant::clone_index(*copy);
  EXPECT_EQ(test::type_of(*copy_of_copy), test::type_of(filled()));
  expect_same(search(*copy, queries, 5), before);
  copy.reset();
  expect_same(search(*copy_of_copy, queries, 5), before);
}

INSTANTIATE_TEST_SUITE_P(All, EveryString,
                         testing::Combine(testing::ValuesIn(test::factory_strings()),
                                          testing::Values(faiss::METRIC_INNER_PRODUCT,
                                                          faiss::METRIC_L2)),
                         [](const auto& instance) {
                           return test::test_name(std::get<0>(instance.param)) +
                                  (std::get<1>(instance.param) == faiss::METRIC_L2 ? "_L2" : "_IP");
                         });

TEST(Factory, BuildsTheClassesThatTheStringNames) {
  const auto flat = index_factory(24, "TQ2mse", faiss::METRIC_INNER_PRODUCT);
  const auto& tq = dynamic_cast<const IndexTurboQuant&>(*flat);
  EXPECT_EQ(tq.options().bits, 2);
  EXPECT_EQ(tq.options().estimator, Estimator::kMse);
  EXPECT_EQ(tq.metric_type, faiss::METRIC_INNER_PRODUCT);

  const auto map = index_factory(24, "IDMap2,TQ3qjlg");
  const auto& inside =
      dynamic_cast<const IndexTurboQuant&>(*dynamic_cast<faiss::IndexIDMap2&>(*map).index);
  EXPECT_EQ(inside.options().projection, Projection::kGaussian);

  const auto refine = index_factory(24, "TQ2,Refine(TQ4)");
  const auto& both = dynamic_cast<const faiss::IndexRefine&>(*refine);
  EXPECT_EQ(dynamic_cast<const IndexTurboQuant&>(*both.base_index).options().bits, 2);
  EXPECT_EQ(dynamic_cast<const IndexTurboQuant&>(*both.refine_index).options().bits, 4);

  const auto ivf = index_factory(24, "IVF8(TQ2),TQ3");
  const auto& lists = dynamic_cast<const IndexIVFTurboQuant&>(*ivf);
  EXPECT_EQ(lists.nlist, 8U);
  EXPECT_EQ(lists.options().bits, 3);
  EXPECT_EQ(dynamic_cast<const IndexTurboQuant&>(*lists.quantizer).options().bits, 2);

  const auto pca = index_factory(24, "PCA12,TQ3");
  const auto& chain = dynamic_cast<const faiss::IndexPreTransform&>(*pca);
  EXPECT_EQ(chain.index->d, 12);
  EXPECT_NE(dynamic_cast<const IndexTurboQuant*>(chain.index), nullptr);

  const auto hnsw = index_factory(24, "HNSW16,TQ3");
  EXPECT_NE(
      dynamic_cast<const IndexTurboQuant*>(dynamic_cast<const faiss::IndexHNSW&>(*hnsw).storage),
      nullptr);
}

TEST(Factory, TrainingIsNeededOnlyWhereSomethingIsLearned) {
  for (const char* text : {"TQ3", "IDMap,TQ3", "L2norm,TQ3", "TQ3,RFlat", "HNSW8,TQ3"}) {
    EXPECT_TRUE(index_factory(16, text)->is_trained) << text;
  }
  for (const char* text : {"PCA8,TQ3", "IVF4,TQ3", "IDMap,PCA8,TQ3", "IVF4(TQ3),Flat"}) {
    EXPECT_FALSE(index_factory(16, text)->is_trained) << text;
  }
}

TEST(Factory, LeavesOtherDescriptionsToFaiss) {
  EXPECT_FALSE(contains_turboquant(*index_factory(16, "SQ8")));
  const auto mixed = index_factory(16, "TQ3,Refine(SQ8)");
  const auto& refine = dynamic_cast<const faiss::IndexRefine&>(*mixed);
  EXPECT_FALSE(contains_turboquant(*refine.refine_index));
  EXPECT_TRUE(contains_turboquant(*refine.base_index));
}

std::string factory_error(const char* text) {
  try {
    index_factory(16, text);
  } catch (const faiss::FaissException& error) {
    return error.what();
  }
  return "";
}

TEST(Factory, ErrorsNameWhatTheUserWrote) {
  using testing::HasSubstr;
  EXPECT_THAT(factory_error("TQ5"), HasSubstr("\"TQ5\" is no TurboQuant index"));
  EXPECT_THAT(factory_error("TQ0"), HasSubstr("TQ0"));
  EXPECT_THAT(factory_error("TQ3fast"), HasSubstr("TQ3fast"));
  const std::string bogus = factory_error("TQ3,Bogus");
  EXPECT_THAT(bogus, HasSubstr("TQ3,Bogus"));
  EXPECT_THAT(bogus, testing::Not(HasSubstr("SQ")));
  EXPECT_THAT(factory_error("IVF4,TQ3cos"), HasSubstr("L2norm"));
  EXPECT_THAT(factory_error("IVF4,TQ3c"), HasSubstr("IVF4,TQ3"));
  EXPECT_THAT(factory_error("TQ1,Refine(TQ2),Refine(TQ3),Refine(TQ4),Refine(TQ4mse)"),
              HasSubstr("more different"));
}

TEST(Factory, NamesRoundTrip) {
  for (const char* name :
       {"TQ1", "TQ2qjl", "TQ3qjlg", "TQ4mse", "TQ3cos", "TQ3qjlgcos", "TQ2c", "TQ4mseccos"}) {
    EXPECT_EQ(index_name(parse_index_name(name)), name);
  }
  EXPECT_THROW(parse_index_name(""), faiss::FaissException);
  EXPECT_THROW(parse_index_name("tq3"), faiss::FaissException);
}

TEST(Clone, OfGraphsKeepsTheirClassAndStorage) {
  for (const char* text : {"HNSW16,TQ3", "NSG16,TQ3"}) {
    const auto index = index_factory(kD, text);
    test::fill(*index, clustered(kN, kD, 1));
    const auto copy = clone_index(*index);
    EXPECT_EQ(test::type_of(*copy), test::type_of(*index)) << text;
    EXPECT_TRUE(contains_turboquant(*copy)) << text;
  }
}

TEST(Clone, WithoutTurboQuantIsFaisss) {
  const auto index = index_factory(16, "Flat");
  const auto x = clustered(10, 16, 1);
  index->add(10, x.data());
  const auto copy = clone_index(*index);
  expect_same(search(*copy, x, 3), search(*index, x, 3));
}

}  // namespace
}  // namespace turboquant
