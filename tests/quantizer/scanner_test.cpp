// Search against brute force over Quantizer::inner_products: the same ids and the same bits.
#include "quantizer/scanner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "tests/forced_isa.h"
#include "tests/quantizer/vectors.h"

namespace turboquant {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

struct Data {
  Data(const QuantizerOptions& o, std::size_t rows, std::size_t queries)
      : quantizer(o),
        n(rows),
        nq(queries),
        x(gaussian_vectors(rows, o.dimension, 1)),
        q(gaussian_vectors(queries, o.dimension, 2)) {
    encode();
  }
  void encode() {
    codes.resize(n * quantizer.code_size());
    quantizer.quantize(x.data(), n, codes.data());
  }
  CodeRows rows(const std::uint64_t* mask = nullptr) const { return {codes.data(), n, mask}; }

  Quantizer quantizer;
  std::size_t n, nq;
  std::vector<float> x, q;
  std::vector<std::uint8_t> codes;
};

QuantizerOptions options(std::size_t d, int bits, Metric metric,
                         Estimator estimator = Estimator::kTurboQuant) {
  QuantizerOptions o;
  o.dimension = d;
  o.bits = bits;
  o.estimator = estimator;
  o.with_norm = metric == Metric::kL2;
  return o;
}

// Scores of all rows by the public inner products and the definition of the distance.
std::vector<float> all_scores(const Data& data, Metric metric) {
  std::vector<float> scores(data.nq * data.n);
  data.quantizer.inner_products(data.q.data(), data.nq, data.codes.data(), data.n, scores.data());
  if (metric == Metric::kInnerProduct) return scores;
  const std::size_t size = data.quantizer.code_size();
  const std::size_t d = data.quantizer.dimension();
  for (std::size_t i = 0; i < data.nq; ++i) {
    const auto query_norm = static_cast<float>(dot(&data.q[i * d], &data.q[i * d], d));
    for (std::size_t j = 0; j < data.n; ++j) {
      float norm;
      std::memcpy(&norm, &data.codes[(j + 1) * size - 4], 4);
      float& score = scores[i * data.n + j];
      score = (query_norm + norm) - 2 * score;
    }
  }
  return scores;
}

struct Results {
  Results(std::size_t nq, std::size_t k) : scores(nq * k, -7), ids(nq * k, -7) {}
  std::vector<float> scores;
  std::vector<std::int64_t> ids;
};

Results search(const Data& data, Metric metric, std::size_t k,
               const std::uint64_t* mask = nullptr) {
  Results r(data.nq, k);
  search_topk(data.quantizer, metric, data.q.data(), data.nq, data.rows(mask), k, r.scores.data(),
              r.ids.data());
  return r;
}

bool allowed(const std::uint64_t* mask, std::size_t row) {
  return mask == nullptr || (mask[row / 64] >> (row % 64) & 1) != 0;
}

Results brute_force(const Data& data, Metric metric, std::size_t k,
                    const std::uint64_t* mask = nullptr) {
  const std::vector<float> scores = all_scores(data, metric);
  Results r(data.nq, k);
  for (std::size_t i = 0; i < data.nq; ++i) {
    std::vector<std::int64_t> order;
    for (std::size_t j = 0; j < data.n; ++j) {
      if (allowed(mask, j)) order.push_back(static_cast<std::int64_t>(j));
    }
    const float* s = scores.data() + i * data.n;
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      return metric == Metric::kInnerProduct ? s[a] > s[b] : s[a] < s[b];
    });
    for (std::size_t j = 0; j < k; ++j) {
      const bool found = j < order.size();
      r.ids[i * k + j] = found ? order[j] : -1;
      r.scores[i * k + j] = found                             ? s[order[j]]
                            : metric == Metric::kInnerProduct ? std::numeric_limits<float>::lowest()
                                                              : std::numeric_limits<float>::max();
    }
  }
  return r;
}

void expect_same(const Results& got, const Results& expected, const std::string& what) {
  EXPECT_EQ(got.ids, expected.ids) << what;
  EXPECT_EQ(std::memcmp(got.scores.data(), expected.scores.data(), got.scores.size() * 4), 0)
      << what;
}

constexpr Metric kMetrics[] = {Metric::kInnerProduct, Metric::kL2};
constexpr Estimator kEstimators[] = {Estimator::kTurboQuant, Estimator::kQjl, Estimator::kMse,
                                     Estimator::kTrellis};

TEST(Scanner, TopKEqualsBruteForce) {
  for (const Metric metric : kMetrics) {
    for (const Estimator estimator : kEstimators) {
      for (int bits = 1; bits <= 4; ++bits) {
        for (const std::size_t d : {1, 50, 128}) {
          for (const std::size_t nq : {1, 3, 4, 17}) {
            const Data data(options(d, bits, metric, estimator), 777, nq);
            for (const std::size_t k : {1, 10, 100}) {
              expect_same(search(data, metric, k), brute_force(data, metric, k),
                          "bits " + std::to_string(bits) + " d " + std::to_string(d) + " nq " +
                              std::to_string(nq) + " k " + std::to_string(k) + " estimator " +
                              std::to_string(static_cast<int>(estimator)) + " metric " +
                              std::to_string(static_cast<int>(metric)));
            }
          }
        }
      }
    }
  }
}

// A centre changes what is in a row, not what a score is.
TEST(Scanner, CentredRowsEqualBruteForce) {
  const std::size_t d = 50;
  for (const Metric metric : kMetrics) {
    for (const Estimator estimator : kEstimators) {
      for (const std::size_t nq : {1, 17}) {
        QuantizerOptions o = options(d, 3, metric, estimator);
        o.centre = gaussian_vectors(1, d, 5);
        Data data(o, 777, nq);
        for (std::size_t i = 0; i < data.x.size(); ++i) data.x[i] += o.centre[i % d];
        data.encode();
        const std::string what = std::to_string(nq) + (metric == Metric::kL2 ? " L2" : " IP");
        const Results best = search(data, metric, 10);
        expect_same(best, brute_force(data, metric, 10), what);
        const auto hits =
            search_range(data.quantizer, metric, data.q.data(), nq, data.rows(), best.scores[9]);
        EXPECT_EQ(hits[0].size(), 9U) << what;
        QueryScorer scorer(data.quantizer, metric);
        scorer.set_query(data.q.data());
        const auto first = static_cast<std::size_t>(best.ids[0]);
        const std::uint8_t* code = &data.codes[first * data.quantizer.code_size()];
        EXPECT_EQ(scorer.score(code), best.scores[0]) << what;
        // A row against itself.
        const double norm = dot(&data.x[first * d], &data.x[first * d], d);
        EXPECT_NEAR(scorer.symmetric(code, code), metric == Metric::kL2 ? 0 : norm, 0.25 * norm);
      }
    }
  }
}

TEST(Scanner, MasksSelectRows) {
  for (const Metric metric : kMetrics) {
    for (const std::size_t nq : {1, 20}) {
      const Data data(options(100, 3, metric), 3000, nq);
      for (const std::uint64_t one_in : {1, 2, 50, 1500, 100000}) {
        std::vector<std::uint64_t> mask(3000 / 64 + 1, 0);
        for (std::size_t j = 0; j < 3000; ++j) {
          if (random_word(3, j) % one_in == 0) mask[j / 64] |= std::uint64_t{1} << (j % 64);
        }
        // Bits past the last row mean nothing.
        mask.back() |= std::uint64_t{1} << 63;
        expect_same(search(data, metric, 10, mask.data()),
                    brute_force(data, metric, 10, mask.data()), std::to_string(one_in));
      }
    }
  }
}

TEST(Scanner, SmallSets) {
  for (const Metric metric : kMetrics) {
    for (const std::size_t n : {0, 1, 2, 15, 100}) {
      for (const std::size_t nq : {1, 40}) {
        const Data data(options(64, 4, metric), n, nq);
        for (const std::size_t k : {1, 3, 120}) {
          expect_same(search(data, metric, k), brute_force(data, metric, k), std::to_string(n));
        }
      }
    }
  }
}

TEST(Scanner, EqualScoresComeInOrderOfId) {
  Data data(options(64, 4, Metric::kInnerProduct), 2000, 5);
  for (std::size_t j = 1; j < 2000; ++j) std::copy_n(&data.x[0], 64, &data.x[j * 64]);
  data.encode();
  const Results r = search(data, Metric::kInnerProduct, 100);
  for (std::size_t i = 0; i < 5; ++i) {
    for (std::size_t j = 0; j < 100; ++j) EXPECT_EQ(r.ids[i * 100 + j], j);
  }
}

TEST(Scanner, AnswersDoNotDependOnThreadsOrBatch) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "libgomp hides its barriers from the thread sanitizer";
#endif
  const int before = omp_get_max_threads();
  const Data data(options(384, 3, Metric::kInnerProduct), 9000, 300);
  omp_set_num_threads(1);
  const Results one = search(data, Metric::kInnerProduct, 20);
  for (const int threads : {2, 3, 8}) {
    omp_set_num_threads(threads);
    expect_same(search(data, Metric::kInnerProduct, 20), one, std::to_string(threads));
    Results single(300, 20);
    for (std::size_t i = 0; i < 300; i += 37) {
      search_topk(data.quantizer, Metric::kInnerProduct, &data.q[i * 384], 1, data.rows(), 20,
                  &single.scores[i * 20], &single.ids[i * 20]);
      EXPECT_TRUE(std::equal(&single.ids[i * 20], &single.ids[i * 20] + 20, &one.ids[i * 20]));
      EXPECT_TRUE(
          std::equal(&single.scores[i * 20], &single.scores[i * 20] + 20, &one.scores[i * 20]));
    }
  }
  omp_set_num_threads(before);
}

TEST(Scanner, ExtremeNormsGiveDefinedAnswers) {
  for (const Metric metric : kMetrics) {
    for (const std::size_t nq : {2, 20}) {
      Data data(options(48, 4, metric), 600, nq);
      const float sizes[] = {1e30f, 1e-30f, 1e-42f, 0.0f, 1.0f, 3e38f};
      for (std::size_t j = 0; j < 600; ++j) {
        for (std::size_t i = 0; i < 48; ++i) {
          float& v = data.x[j * 48 + i];
          v = std::clamp(v, -1.0f, 1.0f) * sizes[j % 6];
        }
      }
      for (std::size_t i = 0; i < 48; ++i) {
        data.q[i] *= 1e30f;
        data.q[48 + i] *= 0;
      }
      data.encode();
      const Results r = search(data, metric, 600);
      for (std::size_t i = 0; i < nq; ++i) {
        std::vector<std::int64_t> ids(&r.ids[i * 600], &r.ids[i * 600] + 600);
        for (const float score : r.scores) EXPECT_FALSE(std::isnan(score));
        std::sort(ids.begin(), ids.end());
        std::vector<std::int64_t> all(600);
        std::iota(all.begin(), all.end(), 0);
        EXPECT_EQ(ids, all);
      }
      const Results few = search(data, metric, 10);
      for (std::size_t i = 0; i < nq; ++i) {
        EXPECT_TRUE(std::equal(&few.ids[i * 10], &few.ids[i * 10] + 10, &r.ids[i * 600])) << i;
      }
    }
  }
}

TEST(Scanner, RangeEqualsBruteForce) {
  for (const Metric metric : kMetrics) {
    for (const Estimator estimator : kEstimators) {
      for (const std::size_t nq : {1, 30}) {
        const Data data(options(96, 3, metric, estimator), 2500, nq);
        const std::vector<float> scores = all_scores(data, metric);
        const float radius = scores[123];  // a score itself: strictly better is in
        const auto hits =
            search_range(data.quantizer, metric, data.q.data(), nq, data.rows(), radius);
        ASSERT_EQ(hits.size(), nq);
        for (std::size_t i = 0; i < nq; ++i) {
          std::vector<std::int64_t> expected, got;
          for (std::size_t j = 0; j < data.n; ++j) {
            const float s = scores[i * data.n + j];
            if (metric == Metric::kInnerProduct ? s > radius : s < radius) expected.push_back(j);
          }
          for (const RangeHit& hit : hits[i]) {
            got.push_back(hit.id);
            EXPECT_EQ(hit.score, scores[i * data.n + hit.id]);
          }
          EXPECT_EQ(got, expected);
        }
      }
    }
  }
}

TEST(Scanner, ScorerEqualsSearch) {
  for (const Metric metric : kMetrics) {
    for (const Estimator estimator : kEstimators) {
      SCOPED_TRACE(static_cast<int>(estimator));
      const Data data(options(77, 2, metric, estimator), 50, 1);
      const std::vector<float> scores = all_scores(data, metric);
      QueryScorer scorer(data.quantizer, metric);
      scorer.set_query(data.q.data());
      const std::size_t size = data.quantizer.code_size();
      std::vector<float> out(50);
      scorer.score_rows(data.codes.data(), nullptr, 50, out.data());
      EXPECT_EQ(out, scores);
      const std::uint32_t rows[] = {7, 3, 49, 0, 7};
      scorer.score_rows(data.codes.data(), rows, 5, out.data());
      for (std::size_t j = 0; j < 5; ++j) EXPECT_EQ(out[j], scores[rows[j]]);
      EXPECT_EQ(scorer.score(&data.codes[5 * size]), scores[5]);
    }
  }
}

TEST(Scanner, SymmetricEstimatesTheProductOfTwoRows) {
  for (const Estimator estimator : kEstimators) {
    const std::size_t d = 512;
    QuantizerOptions o = options(d, 4, Metric::kL2, estimator);
    const Data data(o, 20, 1);
    const QueryScorer inner(data.quantizer, Metric::kInnerProduct);
    const QueryScorer l2(data.quantizer, Metric::kL2);
    const std::size_t size = data.quantizer.code_size();
    for (std::size_t a = 0; a < 20; ++a) {
      for (std::size_t b = 0; b < 20; ++b) {
        const double truth = dot(&data.x[a * d], &data.x[b * d], d);
        const double norms = std::sqrt(dot(&data.x[a * d], &data.x[a * d], d) *
                                       dot(&data.x[b * d], &data.x[b * d], d));
        EXPECT_NEAR(inner.symmetric(&data.codes[a * size], &data.codes[b * size]), truth,
                    0.05 * norms);
        const double distance = dot(&data.x[a * d], &data.x[a * d], d) +
                                dot(&data.x[b * d], &data.x[b * d], d) - 2 * truth;
        EXPECT_NEAR(l2.symmetric(&data.codes[a * size], &data.codes[b * size]), distance,
                    0.1 * norms);
      }
    }
  }
}

TEST(Scanner, MisuseIsRefused) {
  const Data data(options(32, 3, Metric::kInnerProduct), 10, 2);
  EXPECT_THAT([&] { search(data, Metric::kL2, 1); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("with_norm")));
  Data bad(options(32, 3, Metric::kInnerProduct), 10, 2);
  bad.q[33] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT([&] { search(bad, Metric::kInnerProduct, 1); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("query 1 ")));
}

}  // namespace
}  // namespace turboquant
