// Data and comparisons that the index tests share.
#pragma once

#include <faiss/Index.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissException.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <typeindex>
#include <typeinfo>
#include <vector>

namespace turboquant::test {

/// n rows around `n / 50 + 1` centres, so that neighbours exist; [n][d].
inline std::vector<float> clustered(std::size_t n, std::size_t d, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::mt19937 centre_random(7);
  std::vector<float> centres((n / 50 + 1) * d);
  for (float& c : centres) c = normal(centre_random);
  std::vector<float> x(n * d);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t centre = random() % (n / 50 + 1);
    for (std::size_t j = 0; j < d; ++j) x[i * d + j] = centres[centre * d + j] + normal(random);
  }
  return x;
}

/// Trains and adds x[n][d] with the ids 0 to n - 1. FAISS's slow searches for a good rotation (OPQ)
/// and a good graph (NSG) are cut short.
inline void fill(faiss::Index& index, const std::vector<float>& x) {
  const auto n = static_cast<std::int64_t>(x.size()) / index.d;
  faiss::Index* inner = &index;
  if (auto* refine = dynamic_cast<faiss::IndexRefine*>(inner)) inner = refine->base_index;
  if (auto* chain = dynamic_cast<faiss::IndexPreTransform*>(inner)) {
    if (auto* opq = dynamic_cast<faiss::OPQMatrix*>(chain->chain[0])) opq->niter = 1;
  }
  if (auto* nsg = dynamic_cast<faiss::IndexNSG*>(inner)) nsg->build_type = 0;
  index.train(n, x.data());
  if (dynamic_cast<faiss::IndexIDMap*>(&index) == nullptr) {
    index.add(n, x.data());
    return;
  }
  std::vector<std::int64_t> ids(static_cast<std::size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  index.add_with_ids(n, x.data(), ids.data());
}

/// The class of an index behind a reference to its base.
inline std::type_index type_of(const faiss::Index& index) { return typeid(index); }

struct Results {
  std::vector<float> distances;
  std::vector<std::int64_t> labels;
};

inline Results search(const faiss::Index& index, const std::vector<float>& queries, std::int64_t k,
                      const faiss::SearchParameters* params = nullptr) {
  const auto nq = static_cast<std::int64_t>(queries.size()) / index.d;
  Results found;
  found.distances.resize(static_cast<std::size_t>(nq * k));
  found.labels.resize(static_cast<std::size_t>(nq * k));
  index.search(nq, queries.data(), k, found.distances.data(), found.labels.data(), params);
  return found;
}

/// The same ids and the same bits.
inline void expect_same(const Results& a, const Results& b) {
  ASSERT_EQ(a.labels, b.labels);
  ASSERT_EQ(a.distances.size(), b.distances.size());
  EXPECT_EQ(
      0, std::memcmp(a.distances.data(), b.distances.data(), a.distances.size() * sizeof(float)));
}

/// What FAISS's exception says.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const faiss::FaissException& error) {
    return error.what();
  }
  return "no error";
}

/// The strings that the factory must build, flat ones first.
inline const std::vector<std::string>& factory_strings() {
  static const std::vector<std::string> strings = {
      "TQ1",
      "TQ2",
      "TQ3",
      "TQ4",
      "TQ3qjl",
      "TQ3qjlg",
      "TQ3mse",
      "TQ1t",
      "TQ3t",
      "TQ4tcos",
      "IDMap,TQ2tc",
      "HNSW16,TQ3t",
      "TQ3cos",
      "TQ2c",
      "IDMap,TQ3ccos",
      "HNSW16,TQ4c",
      "TQ4qjlcos",
      "IDMap,TQ3",
      "IDMap2,TQ3",
      "TQ3,IDMap",
      "PCA16,TQ3",
      "PCAR16,TQ3",
      "OPQ8_16,TQ3",
      "L2norm,TQ3",
      "TQ4,Refine(Flat)",
      "TQ4,RFlat",
      "TQ2,Refine(TQ4)",
      "TQ4r2",
      "IDMap2,TQ3r1",
      "HNSW16,TQ3",
      "NSG16,TQ3",
      "IVF16,TQ4",
      "IVF16,TQ3qjl",
      "IVF16,TQ2t",
      "IVF16_HNSW8,TQ3",
      "IVF16_HNSW8,TQ4t",
      "IVF16,TQ2,RFlat",
      "IVF16,TQ4,Refine(SQ8)",
      "TQ2,Refine(+TQ3t)",
      "TQ3ccos,Refine(+TQ4)",
      "IDMap,TQ4,Refine(+TQ4)",
      "HNSW16,TQ4,Refine(+TQ4)",
      "IVF16,TQ4,Refine(+TQ4)",
      "PCAR16,IVF16,TQ3,Refine(+TQ2)",
      "PCAR16,IVF16,TQ4",
      "OPQ8_16,IVF16,TQ4,RFlat",
      "IVF16(TQ3),Flat",
      "IDMap2,IVF16,TQ2",
  };
  return strings;
}

inline std::string test_name(std::string text) {
  for (char& c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return text;
}

}  // namespace turboquant::test
