// Refinement by codes of residuals: what its scores are, what it finds, files, and what it refuses.
#include "turboquant/index_refine_residual.h"

#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "index/index_tree.h"
#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::error_of;
using test::expect_same;
using test::Results;
using test::search;

constexpr std::size_t kD = 50;
constexpr std::int64_t kN = 600;

// The refined index in a tree of maps and transforms.
IndexRefineResidual& refined(faiss::Index& tree) {
  faiss::Index* index = &tree;
  while (dynamic_cast<IndexRefineResidual*>(index) == nullptr) index = *children(index).at(0);
  return dynamic_cast<IndexRefineResidual&>(*index);
}

double dot(const float* a, const float* b, std::size_t d) {
  double sum = 0;
  for (std::size_t i = 0; i < d; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

double exact(const float* q, const float* x, std::size_t d, bool l2) {
  if (!l2) return dot(q, x, d);
  std::vector<float> left(d);
  for (std::size_t i = 0; i < d; ++i) left[i] = q[i] - x[i];
  return dot(left.data(), left.data(), d);
}

void make_direct_maps(faiss::Index& tree) {
  if (auto* ivf = dynamic_cast<faiss::IndexIVF*>(&tree)) ivf->make_direct_map();
  for (faiss::Index** child : children(&tree)) make_direct_maps(**child);
}

class ResidualTest : public testing::TestWithParam<std::tuple<std::string, faiss::MetricType>> {
 protected:
  ResidualTest() : x_(clustered(kN, kD, 1)), queries_(clustered(45, kD, 2)) {
    for (float& v : x_) v += 0.7f;  // so that a centre matters
    index_ = index_factory(kD, name(), metric());
    test::fill(*index_, x_);
  }
  static std::string name() { return std::get<0>(GetParam()); }
  static faiss::MetricType metric() { return std::get<1>(GetParam()); }
  static bool l2() { return metric() == faiss::METRIC_L2; }

  // Vectors as the codes see them.
  std::vector<float> seen(std::vector<float> x) const {
    if (name().find("cos") == std::string::npos) return x;
    for (std::size_t i = 0; i < x.size(); i += kD) {
      const auto norm = static_cast<float>(std::sqrt(dot(&x[i], &x[i], kD)));
      for (std::size_t j = 0; j < kD; ++j) x[i + j] /= norm;
    }
    return x;
  }

  std::vector<float> x_, queries_;
  std::unique_ptr<faiss::Index> index_;
};

INSTANTIATE_TEST_SUITE_P(
    All, ResidualTest,
    testing::Combine(testing::Values("TQ4,Refine(+TQ4)", "TQ2,Refine(+TQ3)", "TQ1,Refine(+TQ4)",
                                     "TQ2t,Refine(+TQ3t)", "TQ4c,Refine(+TQ4)",
                                     "TQ3cos,Refine(+TQ2)", "TQ2ccos,Refine(+TQ3)",
                                     "TQ3qjl,Refine(+TQ3)", "TQ3,Refine(+TQ3qjl)",
                                     "TQ3mse,Refine(+TQ3mse)", "TQ4r2,Refine(+TQ4)",
                                     "HNSW16,TQ3,Refine(+TQ4)", "HNSW16,TQ3c,Refine(+TQ4)",
                                     "NSG16,TQ4,Refine(+TQ2)", "IVF8,TQ4,Refine(+TQ4)",
                                     "IVF8,TQ2t,Refine(+TQ3)", "IVF8_HNSW8,TQ2,Refine(+TQ3)"),
                     testing::Values(faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2)),
    [](const auto& instance) {
      return test::test_name(std::get<0>(instance.param)) +
             (std::get<1>(instance.param) == faiss::METRIC_L2 ? "_L2" : "_IP");
    });

// The score of each row is the exact one less what the second code lost, which <q, x - x''> is: it
// holds for every row, up to what rounding the query to int8 leaves.
TEST_P(ResidualTest, ScoresAreThoseOfBothReconstructions) {
  auto& index = refined(*index_);
  make_direct_maps(index);
  const auto x = seen(x_);
  const auto queries = seen(queries_);
  std::vector<float> again(x.size());
  for (std::int64_t i = 0; i < kN; ++i) {
    index.reconstruct(i, again.data() + static_cast<std::size_t>(i) * kD);
  }
  double error = 0;
  double expected = 0;
  const bool ivf = dynamic_cast<const IndexIVFTurboQuant*>(index.base_index) != nullptr;
  const Results found = search(index, queries_, 20);
  for (std::size_t i = 0; i < found.labels.size(); ++i) {
    if (found.labels[i] < 0) continue;
    const float* q = queries.data() + i / 20 * kD;
    const std::size_t at = static_cast<std::size_t>(found.labels[i]) * kD;
    // m of docs/residual_codes.md.
    std::vector<float> m(kD, 0.0f);
    if (const auto* flat = dynamic_cast<const IndexTurboQuant*>(index.base_index)) {
      if (flat->options().centre) m = flat->centre();
    }
    if (const auto* hnsw = dynamic_cast<const faiss::IndexHNSW*>(index.base_index)) {
      const auto& flat = dynamic_cast<const IndexTurboQuant&>(*hnsw->storage);
      if (flat.options().centre) m = flat.centre();
    }
    if (ivf && l2()) {
      const auto& base = dynamic_cast<const IndexIVFTurboQuant&>(*index.base_index);
      std::int64_t list = 0;
      base.quantizer->assign(1, x_.data() + at, &list);
      base.quantizer->reconstruct(list, m.data());
    }
    std::vector<float> left(kD), rest(kD);
    for (std::size_t j = 0; j < kD; ++j) {
      left[j] = q[j] - m[j];
      rest[j] = x[at + j] - again[at + j];
    }
    const double lost = dot(left.data(), rest.data(), kD);
    const double score = exact(q, x.data() + at, kD, l2()) + (l2() ? 2 * lost : -lost);
    const double scale =
        std::sqrt(dot(left.data(), left.data(), kD) * dot(x.data() + at, x.data() + at, kD)) *
        (l2() ? 2 : 1);
    error = std::max(error, std::fabs(score - found.distances[i]) / scale);
    expected = std::max(expected, std::fabs(lost) / scale);
  }
  // 127 steps on one side of the query's largest coordinate: a coordinate is wrong by its 254th.
  EXPECT_LT(error, 0.006) << "errors of the codes reach " << expected;
}

TEST_P(ResidualTest, FindsMoreThanTheBase) {
  auto& index = refined(*index_);
  const auto x = seen(x_);
  const auto queries = seen(queries_);
  faiss::IndexFlat flat(kD, metric());
  flat.add(kN, x.data());
  const Results truth = search(flat, queries, 10);
  const auto recall = [&](const Results& found) {
    std::size_t hits = 0;
    for (std::size_t i = 0; i < truth.labels.size(); ++i) {
      const auto begin = found.labels.begin() + static_cast<long>(i / 10 * 10);
      hits += std::find(begin, begin + 10, truth.labels[i]) != begin + 10 ? 1 : 0;
    }
    return static_cast<double>(hits) / static_cast<double>(truth.labels.size());
  };
  if (auto* ivf = dynamic_cast<faiss::IndexIVF*>(index.base_index)) ivf->nprobe = ivf->nlist;
  if (auto* hnsw = dynamic_cast<faiss::IndexHNSW*>(index.base_index)) hnsw->hnsw.efSearch = 200;
  const double base = recall(search(*index.base_index, queries_, 10));
  index.k_factor = 6;
  const double both = recall(search(index, queries_, 10));
  EXPECT_GT(both, base + 0.3 * (1 - base)) << name();
}

TEST_P(ResidualTest, ThreadsAndBatchesChangeNothing) {
  auto& index = refined(*index_);
  index.k_factor = 3;
  const Results batch = search(*index_, queries_, 10);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  expect_same(batch, search(*index_, queries_, 10));
  omp_set_num_threads(threads);
  for (std::size_t q = 0; q < 45; ++q) {
    const auto begin = queries_.begin() + static_cast<long>(q * kD);
    const Results one = search(*index_, {begin, begin + kD}, 10);
    EXPECT_TRUE(std::equal(one.labels.begin(), one.labels.end(),
                           batch.labels.begin() + static_cast<long>(q * 10)));
    EXPECT_TRUE(std::equal(one.distances.begin(), one.distances.end(),
                           batch.distances.begin() + static_cast<long>(q * 10)));
  }
}

TEST_P(ResidualTest, FilesAndClonesAnswerTheSame) {
  refined(*index_).k_factor = 3;
  const Results expected = search(*index_, queries_, 10);
  const auto cloned = clone_index(*index_);
  EXPECT_EQ(refined(*cloned).k_factor, 3);
  expect_same(expected, search(*cloned, queries_, 10));
  for (const bool pack : {false, true}) {
    const std::string path = testing::TempDir() + "/residual_" + test::test_name(name()) +
                             (l2() ? "_l2" : "_ip") + (pack ? "_packed" : "");
    IndexWriteOptions options;
    options.pack = pack;
    try {
      write_index(*index_, path, options);
    } catch (const faiss::FaissException& error) {
      ASSERT_TRUE(pack) << error.what();  // built without zstd
      continue;
    }
    const auto read = read_index(path);
    EXPECT_EQ(refined(*read).k_factor, 3);
    expect_same(expected, search(*read, queries_, 10));
  }
}

TEST_P(ResidualTest, AddingInPartsChangesNothing) {
  if (name().find("NSG") != std::string::npos || name().find("HNSW") != std::string::npos) return;
  const auto parts = index_factory(kD, name(), metric());
  parts->train(kN, x_.data());
  for (std::int64_t at = 0, n = 1; at < kN; at += n, n = std::min(n * 3, kN - at)) {
    parts->add(n, x_.data() + static_cast<std::size_t>(at) * kD);
  }
  ASSERT_EQ(parts->ntotal, kN);
  EXPECT_EQ(refined(*parts).residuals().codes.size(), refined(*index_).residuals().codes.size());
  if (name().find("c") == std::string::npos || name().find("cos") != std::string::npos) {
    expect_same(search(*index_, queries_, 10), search(*parts, queries_, 10));
  }
}

TEST_P(ResidualTest, ResetAndWhatIsRefused) {
  auto& index = refined(*index_);
  index.k_factor = 2;
  const bool nsg = name().find("NSG") != std::string::npos;  // which waits for more rows for ever
  const Results all = search(*index_, queries_, nsg ? 10 : kN + 5);
  if (!nsg) {
    EXPECT_EQ(all.labels[kN + 4], -1);
    EXPECT_EQ(all.distances[kN + 4],
              l2() ? std::numeric_limits<float>::max() : std::numeric_limits<float>::lowest());
  }
  EXPECT_THROW(search(*index_, queries_, 0), faiss::FaissException);
  std::vector<float> bad(queries_.begin(), queries_.begin() + kD);
  bad[3] = NAN;
  EXPECT_THROW(search(*index_, bad, 5), faiss::FaissException);
  index.k_factor = 0.5f;
  EXPECT_THROW(search(*index_, queries_, 10), faiss::FaissException);
  faiss::RangeSearchResult range(45);
  EXPECT_THROW(index.range_search(45, queries_.data(), 1, &range), faiss::FaissException);
  std::vector<float> row(kD);
  EXPECT_THROW(index.reconstruct(-1, row.data()), faiss::FaissException);
  EXPECT_THROW(index.reconstruct(kN, row.data()), faiss::FaissException);
  EXPECT_THROW(index_->add_with_ids(1, row.data(), all.labels.data()), std::exception);
  if (nsg) return;
  const auto rows = index.ntotal;
  EXPECT_THROW(index.add(1, bad.data()), faiss::FaissException);
  EXPECT_EQ(index.ntotal, rows);
  EXPECT_EQ(index.residuals().codes.size(),
            static_cast<std::size_t>(rows) * index.residuals().code_size);
  index.reset();
  EXPECT_EQ(index.ntotal, 0);
  index.k_factor = 2;
  const Results none = search(index, queries_, 3);
  EXPECT_EQ(none.labels[0], -1);
}

// sa_encode makes the codes that adding does.
TEST_P(ResidualTest, CodesAlone) {
  auto& index = refined(*index_);
  const bool graph = dynamic_cast<faiss::IndexHNSW*>(index.base_index) != nullptr ||
                     name().find("NSG") != std::string::npos;
  if (graph) return;
  const std::size_t size = index.sa_code_size();
  std::vector<std::uint8_t> codes(size * kN);
  index.sa_encode(kN, x_.data(), codes.data());
  const std::size_t own = index.residuals().code_size;
  std::size_t different = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(kN); ++i) {
    const std::uint8_t* code = codes.data() + (i + 1) * size - own;
    different += std::memcmp(code, index.residuals().codes.data() + i * own, own) != 0 ? 1 : 0;
  }
  EXPECT_EQ(different, 0u);
  make_direct_maps(index);
  std::vector<float> decoded(kD * kN), row(kD);
  index.sa_decode(kN, codes.data(), decoded.data());
  for (std::int64_t i = 0; i < kN; i += 7) {
    index.reconstruct(i, row.data());
    for (std::size_t j = 0; j < kD; ++j) {
      ASSERT_FLOAT_EQ(row[j], decoded[static_cast<std::size_t>(i) * kD + j]);
    }
  }
}

// Errors of both stages together: mean 0, and those of the second code alone.
TEST(Residual, EstimatesAreUnbiasedWithTheErrorsOfTwoStages) {
  constexpr std::size_t d = 128;
  constexpr std::int64_t n = 4000;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> x(n * d), queries(100 * d);
  for (float& v : x) v = normal(random);
  for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = x[i] + normal(random);
  const auto measure = [&](const std::string& text, faiss::MetricType metric) {
    const auto index = index_factory(d, text, metric);
    index->train(n, x.data());
    index->add(n, x.data());
    const Results found = search(*index, queries, n);
    double cross = 0, square = 0, error = 0;
    for (std::size_t i = 0; i < found.labels.size(); ++i) {
      if (found.labels[i] < 0) continue;
      const float* q = queries.data() + i / static_cast<std::size_t>(n) * d;
      const float* row = x.data() + static_cast<std::size_t>(found.labels[i]) * d;
      const double is = exact(q, row, d, metric == faiss::METRIC_L2);
      cross += is * found.distances[i];
      square += is * is;
      const double scale = dot(q, q, d) * dot(row, row, d);
      error += (found.distances[i] - is) * (found.distances[i] - is) / scale;
    }
    EXPECT_NEAR(cross / square, 1, metric == faiss::METRIC_L2 ? 0.0005 : 0.003) << text;
    return error / static_cast<double>(found.labels.size()) *
           (metric == faiss::METRIC_L2 ? 0.25 : 1) * d;
  };
  for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
    // Errors of one stage times d: .0096 and .037 of |q|^2 |x|^2 (docs/code_format.md: D / (1 -
    // D)).
    const double one = measure("TQ4", metric);
    EXPECT_NEAR(one, 0.0096, 0.001);
    const double two = measure("TQ4,Refine(+TQ4)", metric);
    // D^2 and what rounding both queries to int8 leaves: (largest / 127)^2 / 12 of each coordinate.
    EXPECT_LT(two, 0.0096 * 0.0096 * 1.2 + 3.2 * 3.2 / 127 / 127 / 12 * 1.3);
    EXPECT_GT(two, 0.0096 * 0.0096 * 0.8);
    EXPECT_NEAR(measure("TQ2,Refine(+TQ2)", metric), 0.1331 * 0.1331, 0.003);
    EXPECT_NEAR(measure("TQ2t,Refine(+TQ2t)", metric), 0.085 * 0.085, 0.002);
  }
}

TEST(Residual, ListsWithoutResiduals) {
  const auto x = clustered(kN, kD, 1);
  const auto queries = clustered(45, kD, 2);
  for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
    faiss::IndexFlat coarse(kD, metric);
    IndexIVFTurboQuant ivf(&coarse, kD, 4, parse_index_name("TQ3"), metric, false);
    IndexOptions options = parse_index_name("TQ4");
    options.residual = true;
    options.seed = 3;
    IndexTurboQuant residuals(kD, options, metric);
    IndexRefineResidual index(&ivf, &residuals);
    EXPECT_FALSE(index.is_trained);
    index.train(kN, x.data());
    index.add(kN, x.data());
    ivf.nprobe = 4;
    index.k_factor = 100;
    // The flat index scores as the lists do, and so do their refinements.
    const auto flat = index_factory(kD, "TQ3,Refine(+TQ4)", metric);
    IndexTurboQuant same(kD, options, metric);
    IndexTurboQuant base(kD, parse_index_name("TQ3"), metric);
    IndexRefineResidual other(&base, &same);
    other.add(kN, x.data());
    other.k_factor = 100;
    expect_same(search(index, queries, 10), search(other, queries, 10));
  }
}

TEST(Residual, MapsAndTransformsStandAround) {
  const auto x = clustered(kN, kD, 1);
  const auto queries = clustered(45, kD, 2);
  for (const char* text : {"IDMap,TQ3,Refine(+TQ4)", "IDMap2,IVF8,TQ3,Refine(+TQ4)",
                           "PCA16,TQ3,Refine(+TQ4)", "PCAR16,IVF8,TQ3,Refine(+TQ4)",
                           "L2norm,TQ2,Refine(+TQ3)", "IDMap,PCAR16,TQ3,Refine(+TQ4)"}) {
    for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
      const auto index = index_factory(kD, text, metric);
      EXPECT_EQ(dynamic_cast<IndexRefineResidual*>(index.get()), nullptr) << text;
      test::fill(*index, x);
      EXPECT_EQ(index->ntotal, kN);
      refined(*index).k_factor = 3;
      const Results found = search(*index, queries, 10);
      expect_same(found, search(*clone_index(*index), queries, 10));
      const std::string path = testing::TempDir() + "/residual_around";
      write_index(*index, path);
      expect_same(found, search(*read_index(path), queries, 10));
    }
  }
}

TEST(Residual, ParametersAndSelectorsReachTheBase) {
  const auto x = clustered(kN, kD, 1);
  const std::vector<float> query(x.begin(), x.begin() + kD);
  const auto index = index_factory(kD, "IVF8,TQ3,Refine(+TQ4)", faiss::METRIC_L2);
  test::fill(*index, x);
  faiss::IVFSearchParameters params;
  params.nprobe = 8;
  const Results all = search(*index, query, 100, &params);
  EXPECT_GE(all.labels[99], 0);
  const std::vector<std::int64_t> chosen = {1, 5, 17};
  faiss::IDSelectorBatch selector(chosen.size(), chosen.data());
  params.sel = &selector;
  const Results some = search(*index, query, 5, &params);
  EXPECT_GE(some.labels[2], 0);
  EXPECT_EQ(some.labels[3], -1);
#ifdef TURBOQUANT_FAISS_HAS_REFINE_PARAMETERS
  faiss::IndexRefineSearchParameters refine;
  refine.k_factor = 2;
  refine.base_index_params = &params;
  expect_same(some, search(*index, query, 5, &refine));
#endif
}

// FAISS before 1.7.4 refuses parameters for maps of ids.
TEST(Residual, SelectorsReachTheBaseThroughAMapOfIds) {
  const auto x = clustered(kN, kD, 1);
  const auto index = index_factory(kD, "IDMap,TQ3,Refine(+TQ4)", faiss::METRIC_INNER_PRODUCT);
  test::fill(*index, x);
  const std::vector<std::int64_t> chosen = {1, 5, 17};
  faiss::IDSelectorBatch selector(chosen.size(), chosen.data());
  faiss::SearchParameters params;
  params.sel = &selector;
  const std::vector<float> query(x.begin(), x.begin() + kD);
  const Results some = search(*index, query, 5, &params);
  EXPECT_EQ(some.labels[3], -1);
  for (int j = 0; j < 3; ++j) EXPECT_TRUE(selector.is_member(some.labels[j]));
  const std::string path = testing::TempDir() + "/residual_selected";
  write_index(*index, path);
  expect_same(some, search(*read_index(path), query, 5, &params));
  expect_same(some, search(*clone_index(*index), query, 5, &params));
}

TEST(Residual, Merging) {
  const auto x = clustered(kN, kD, 1);
  const auto queries = clustered(45, kD, 2);
  constexpr std::int64_t kFirst = 250;
  for (const char* text : {"TQ3,Refine(+TQ4)", "TQ4r2,Refine(+TQ4)", "IVF8,TQ3,Refine(+TQ4)"}) {
    for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
      const auto all = index_factory(kD, text, metric);
      all->train(kN, x.data());
      const auto a = clone_index(*all);
      const auto b = clone_index(*all);
      all->add(kN, x.data());
      a->add(kFirst, x.data());
      b->add(kN - kFirst, x.data() + kFirst * kD);
      EXPECT_THROW(a->merge_from(*b, 7), faiss::FaissException);
      a->merge_from(*b, metric == faiss::METRIC_L2 ? kFirst : 0);
      EXPECT_EQ(a->ntotal, kN);
      EXPECT_EQ(b->ntotal, 0);
      expect_same(search(*all, queries, 10), search(*a, queries, 10));
      EXPECT_EQ(search(*b, queries, 1).labels[0], -1);
      b->add(3, x.data());
      EXPECT_EQ(b->ntotal, 3);
    }
  }
  const auto one = index_factory(kD, "TQ3,Refine(+TQ4)", faiss::METRIC_L2);
  for (const char* other : {"TQ3", "TQ3,Refine(+TQ3)", "TQ2,Refine(+TQ4)", "TQ3,Refine(TQ4)"}) {
    const auto index = index_factory(kD, other, faiss::METRIC_L2);
    EXPECT_THROW(one->merge_from(*index), faiss::FaissException) << other;
  }
  EXPECT_THROW(one->merge_from(*one), faiss::FaissException);
}

TEST(Residual, TiesGoToTheSmallerId) {
  const auto x = clustered(kN, kD, 1);
  const auto index = index_factory(kD, "TQ4,Refine(+TQ2)", faiss::METRIC_L2);
  refined(*index).k_factor = 3;
  for (int copy = 0; copy < 20; ++copy) index->add(3, x.data());
  const Results found = search(*index, {x.begin() + kD, x.begin() + 2 * kD}, 20);
  for (std::size_t j = 0; j < 20; ++j) EXPECT_EQ(found.labels[j], static_cast<long>(3 * j + 1));
}

TEST(Residual, VectorsThatOverflowAreTaken) {
  for (const auto metric : {faiss::METRIC_INNER_PRODUCT, faiss::METRIC_L2}) {
    const auto index = index_factory(kD, "TQ1,Refine(+TQ1)", metric);
    std::vector<float> x(kD * 3, 0.0f);
    std::fill_n(x.begin() + kD, kD, std::numeric_limits<float>::max());
    index->add(3, x.data());
    EXPECT_EQ(index->ntotal, 3);
    std::vector<float> query(kD, 1.0f);
    const Results found = search(*index, query, 3);
    for (const float score : found.distances) EXPECT_FALSE(std::isnan(score));
  }
}

TEST(Residual, StringsThatAreRefused) {
  for (const char* text :
       {"+TQ4", "IVF8,+TQ4", "TQ4,Refine(TQ2,Refine(+TQ4))", "HNSW16,+TQ3", "TQ4,Refine(+TQ4c)",
        "TQ4,Refine(+TQ4cos)", "TQ4,Refine(+TQ4r2)", "TQ4,Refine(+TQ5)", "SQ8,Refine(+TQ4)",
        "Flat,Refine(+TQ4)", "PQ10,Refine(+TQ4)", "IVF8,Flat,Refine(+TQ4)",
        "TQ4,Refine(+TQ4),Refine(+TQ4)", "TQ4,RFlat,Refine(+TQ4)", "HNSW16,Refine(+TQ4)"}) {
    EXPECT_THROW(index_factory(kD, text, faiss::METRIC_L2), faiss::FaissException) << text;
  }
  EXPECT_NE(error_of([] { index_factory(kD, "+TQ4"); }).find("Refine(+TQ4)"), std::string::npos);
  EXPECT_NE(error_of([] { index_factory(kD, "SQ8,Refine(+TQ4)"); }).find("refines TurboQuant"),
            std::string::npos);
  EXPECT_THROW(parse_index_name("+TQ4"), faiss::FaissException);
}

TEST(Residual, IndexesThatDoNotFit) {
  IndexOptions options = parse_index_name("TQ4");
  IndexTurboQuant base(kD, options, faiss::METRIC_L2);
  options.residual = true;
  EXPECT_EQ(index_name(options), "+TQ4");
  IndexTurboQuant same_seed(kD, options, faiss::METRIC_L2);
  EXPECT_THROW(IndexRefineResidual(&base, &same_seed), faiss::FaissException);
  options.seed = 1;
  IndexTurboQuant residuals(kD, options, faiss::METRIC_L2);
  IndexTurboQuant other_metric(kD, options, faiss::METRIC_INNER_PRODUCT);
  IndexTurboQuant other_dimension(kD + 1, options, faiss::METRIC_L2);
  EXPECT_NO_THROW(IndexRefineResidual(&base, &residuals));
  EXPECT_THROW(IndexRefineResidual(nullptr, &residuals), faiss::FaissException);
  EXPECT_THROW(IndexRefineResidual(&base, &base), faiss::FaissException);
  EXPECT_THROW(IndexRefineResidual(&base, &other_metric), faiss::FaissException);
  EXPECT_THROW(IndexRefineResidual(&base, &other_dimension), faiss::FaissException);
  EXPECT_THROW(IndexRefineResidual(&residuals, &residuals), faiss::FaissException);
  const auto x = clustered(kN, kD, 1);
  base.add(1, x.data());
  EXPECT_THROW(IndexRefineResidual(&base, &residuals), faiss::FaissException);

  // Alone such codes mean nothing.
  EXPECT_THROW(residuals.add(1, x.data()), faiss::FaissException);
  EXPECT_THROW(search(residuals, {x.begin(), x.begin() + kD}, 1), faiss::FaissException);
  EXPECT_THROW(residuals.get_distance_computer(), faiss::FaissException);
  faiss::IndexFlat coarse(kD);
  EXPECT_THROW(IndexIVFTurboQuant(&coarse, kD, 4, options), faiss::FaissException);
  options.centre = true;
  EXPECT_THROW(IndexTurboQuant(kD, options), faiss::FaissException);
}

// A base that got rows on its own.
TEST(Residual, RowsWithoutResiduals) {
  const auto x = clustered(kN, kD, 1);
  const auto index = index_factory(kD, "TQ4,Refine(+TQ4)", faiss::METRIC_L2);
  test::fill(*index, x);
  refined(*index).base_index->add(10, x.data());
  EXPECT_THROW(search(*index, {x.begin(), x.begin() + kD}, 10), faiss::FaissException);
  EXPECT_THROW(index->add(1, x.data()), faiss::FaissException);
}

TEST(Residual, FilesThatLie) {
  const auto x = clustered(kN, kD, 1);
  const auto index = index_factory(kD, "TQ4,Refine(+TQ4)", faiss::METRIC_L2);
  test::fill(*index, x);
  auto& refine = refined(*index);
  const std::string path = testing::TempDir() + "/residual_lies";
  // Residuals alone.
  write_index(*refine.refine_index, path);
  EXPECT_THROW(read_index(path), faiss::FaissException);
  EXPECT_THROW(map_flat_index(path), faiss::FaissException);
  // In the place of the base, and in that of a map of ids.
  faiss::IndexRefine swapped(refine.refine_index, refine.base_index);
  write_index(swapped, path);
  EXPECT_THROW(read_index(path), faiss::FaissException);
  faiss::IndexFlat empty(kD);
  faiss::IndexIDMap map(&empty);
  map.index = refine.refine_index;
  write_index(map, path);
  EXPECT_THROW(read_index(path), faiss::FaissException);
  // Counts that differ.
  dynamic_cast<IndexTurboQuant&>(*refine.base_index).ntotal -= 1;
  write_index(refine, path);
  EXPECT_THROW(read_index(path), faiss::FaissException);
}

}  // namespace
}  // namespace turboquant
