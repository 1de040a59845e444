#include <faiss/IndexIDMap.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/IDSelector.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/buffer.h"
#include "kernels/cuda/round_plan.h"
#include "tests/index/index_test_util.h"
#include "tests/kernels/cuda/device.h"
#include "turboquant/gpu_index_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::error_of;
using test::expect_same;
using test::Results;
using test::search;
using testing::HasSubstr;

constexpr auto kIp = faiss::METRIC_INNER_PRODUCT;
constexpr auto kL2 = faiss::METRIC_L2;

struct Pair {
  Pair(int d, const std::string& name, faiss::MetricType metric)
      : cpu(d, parse_index_name(name), metric), gpu(d, parse_index_name(name), metric) {}
  void add(const std::vector<float>& x) {
    const auto n = static_cast<std::int64_t>(x.size()) / cpu.d;
    cpu.add(n, x.data());
    gpu.add(n, x.data());
  }
  std::vector<std::uint8_t> gpu_codes() const {
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(gpu.ntotal) * cpu.code_size);
    gpu.copy_codes(0, gpu.ntotal, codes.data());
    return codes;
  }
  void expect_same_codes() const {
    ASSERT_EQ(cpu.ntotal, gpu.ntotal);
    const std::vector<std::uint8_t> got = gpu_codes();
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i], cpu.codes.data()[i])
          << "byte " << i % cpu.code_size << " of row " << i / cpu.code_size;
    }
  }

  IndexTurboQuant cpu;
  GpuIndexTurboQuant gpu;
};

// With TURBOQUANT_TEST_SMALL set, less of everything: for compute-sanitizer, under which it takes a
// thousand times as long (docs/kernels.md).
bool small() {
  static const bool set = std::getenv("TURBOQUANT_TEST_SMALL") != nullptr;
  return set;
}

template <typename T>
std::vector<T> sizes(std::vector<T> all, std::vector<T> few) {
  return small() ? few : all;
}

const std::vector<std::string>& names() {
  static const std::vector<std::string> all = {
      "TQ1",    "TQ2",     "TQ3",    "TQ4",    "TQ1mse", "TQ2mse",  "TQ3mse",
      "TQ4mse", "TQ1qjl",  "TQ2qjl", "TQ3qjl", "TQ4qjl", "TQ3qjlg", "TQ1qjlg",
      "TQ1c",   "TQ2ccos", "TQ3c",   "TQ4c",   "TQ4cos", "TQ3qjlc", "TQ4qjlccos",
      "TQ1t",   "TQ2t",    "TQ3t",   "TQ4t",   "TQ2tc",  "TQ4tccos"};
  return all;
}

std::vector<float> rows_of_all_kinds(std::size_t n, std::size_t d) {
  std::vector<float> x = clustered(n, d, 11);
  for (std::size_t j = 0; j < d; ++j) {
    x[j] = 0;                              // a zero vector
    x[d + j] = j % 2 == 0 ? -0.0f : 0.0f;  // another
    x[2 * d + j] *= 1e-30f;
    x[3 * d + j] *= 1e30f;
    x[4 * d + j] = j == d / 2 ? -5.0f : 0;  // one coordinate
    x[5 * d + j] = 1;
    x[6 * d + j] *= 1e-42f;  // subnormal
  }
  return x;
}

TEST(GpuIndex, WithoutADeviceItSaysSo) {
  if (cuda::device_count() > 0) GTEST_SKIP() << "there is a CUDA device on this machine";
  EXPECT_THAT(error_of([] { GpuIndexTurboQuant(16, parse_index_name("TQ4"), kL2); }),
              HasSubstr("CUDA"));
}

class GpuIndexKinds : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(All, GpuIndexKinds, testing::ValuesIn(names()),
                         [](const auto& instance) { return instance.param; });

TEST_P(GpuIndexKinds, CodesAreTheSameBytes) {
  TQ_NEEDS_DEVICE();
  const bool gaussian = GetParam().find("qjlg") != std::string::npos;
  for (const int d : sizes<int>({1,   2,   7,   32,   50,   64,   65,   100,  128,  200,
                                 384, 513, 768, 1000, 1536, 2047, 2048, 2500, 4096, 9000},
                                {1, 50, 200, 513, 2500})) {
    if (gaussian && d > 400) continue;
    for (const auto metric : {kIp, kL2}) {
      SCOPED_TRACE(std::to_string(d) + (metric == kL2 ? " L2" : " IP"));
      Pair pair(d, GetParam(), metric);
      pair.add(rows_of_all_kinds(41, static_cast<std::size_t>(d)));
      pair.expect_same_codes();
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// Enough of them for the kernels that take many rows of usual dimensions.
TEST_P(GpuIndexKinds, ManyRowsAreTheSameBytes) {
  TQ_NEEDS_DEVICE();
  const bool gaussian = GetParam().find("qjlg") != std::string::npos;
  for (const std::size_t d : {128, 200, 256, 384, 512, 768, 1024, 1536}) {
    if (gaussian && d > 400) continue;
    for (const auto metric : sizes<faiss::MetricType>({kIp, kL2}, {kL2})) {
      SCOPED_TRACE(std::to_string(d) + (metric == kL2 ? " L2" : " IP"));
      const std::size_t rows = small() ? 303 : 1203;
      std::vector<float> x = rows_of_all_kinds(rows, d);
      for (std::size_t i = 0; i < d; ++i) {
        x[100 * d + i] = i % 3 == 0 ? x[100 * d + i] : 0;  // sparse
        x[101 * d + i] *= i == 7 ? 1 : 1e-36f;             // tiny ones beside a large one
        x[102 * d + i] = i < 2 ? 3.0f : i == 9 ? 1e-44f : 0;
        x[103 * d + i] = std::ldexp(1.0f, static_cast<int>(i % 60) - 30);
        x[104 * d + i] *= 1e6f;
        x[105 * d + i] *= 1e-19f;
        x[106 * d + i] = static_cast<float>(static_cast<int>(i * 7 % 15) - 7);
      }
      for (std::size_t i = 0; i < d; ++i) {
        x[107 * d + i] = i < d / 2 ? 1e-40f : x[107 * d + i];  // what rotates apart at first
        x[108 * d + i] = i % 2 == 0 ? 1.0f : -1.0f;            // many exact zeros, then
        x[109 * d + i] = i < d / 3 ? 0 : 1;
      }
      Pair pair(static_cast<int>(d), GetParam(), metric);
      pair.add(x);
      pair.expect_same_codes();
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST_P(GpuIndexKinds, SearchesGiveTheSameBits) {
  TQ_NEEDS_DEVICE();
  for (const int d : sizes<int>({3, 64, 100, 200, 1536}, {100, 1536})) {
    if (d > 1000 && GetParam().find("qjlg") != std::string::npos) continue;
    for (const auto metric : sizes<faiss::MetricType>({kIp, kL2}, {kL2})) {
      Pair pair(d, GetParam(), metric);
      pair.add(clustered(1003, static_cast<std::size_t>(d), 1));
      const std::vector<float> queries = clustered(140, static_cast<std::size_t>(d), 2);
      for (const std::size_t nq : sizes<std::size_t>({1, 2, 8, 11, 20, 33, 70, 140}, {1, 11, 70})) {
        for (const std::int64_t k : sizes<std::int64_t>({1, 10, 300, 2048}, {10, 300})) {
          if (k > 10 && nq != 8 && nq != 70) continue;
          SCOPED_TRACE(std::to_string(d) + (metric == kL2 ? " L2" : " IP") + ", " +
                       std::to_string(nq) + " queries, k " + std::to_string(k));
          const std::vector<float> some(
              queries.begin(),
              queries.begin() + static_cast<std::ptrdiff_t>(nq * static_cast<std::size_t>(d)));
          expect_same(search(pair.cpu, some, k), search(pair.gpu, some, k));
          if (testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(GpuIndex, ManyRowsTakeSeveralRounds) {
  TQ_NEEDS_DEVICE();
  for (const std::string name :
       {"TQ4", "TQ3", "TQ2", "TQ1", "TQ4qjl", "TQ1t", "TQ2t", "TQ3t", "TQ4t"}) {
    for (const auto metric : sizes<faiss::MetricType>({kIp, kL2}, {kL2})) {
      Pair pair(48, name, metric);
      pair.add(clustered(small() ? 20011 : 120007, 48, 3));
      const std::vector<float> queries = clustered(100, 48, 4);
      for (const std::size_t nq : sizes<std::size_t>({1, 12, 100}, {1, 70})) {
        for (const std::int64_t k : sizes<std::int64_t>({1, 10, 100, 2048}, {10, 100})) {
          SCOPED_TRACE(name + " " + std::to_string(nq) + " queries, k " + std::to_string(k));
          const std::vector<float> some(queries.begin(),
                                        queries.begin() + static_cast<std::ptrdiff_t>(nq * 48));
          expect_same(search(pair.cpu, some, k), search(pair.gpu, some, k));
          if (testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(GpuIndex, EqualScoresAreOrderedByRow) {
  TQ_NEEDS_DEVICE();
  Pair pair(16, "TQ4", kIp);
  const std::vector<float> one = clustered(1, 16, 5);
  std::vector<float> x;
  for (int i = 0; i < 60000; ++i) x.insert(x.end(), one.begin(), one.end());
  pair.add(x);
  const std::vector<float> queries = clustered(70, 16, 6);
  for (const std::int64_t k : {1, 100, 2048}) {
    expect_same(search(pair.cpu, queries, k), search(pair.gpu, queries, k));
  }
}

// The rows of the sample are the worst, so that far more than there is room for beats its k-th
// best.
TEST(GpuIndex, MoreCandidatesThanThereIsRoomFor) {
  TQ_NEEDS_DEVICE();
  constexpr std::size_t kD = 16;
  constexpr std::size_t kN = 100000;
  const std::vector<cuda::Round> plan =
      cuda::plan_rounds(kN, 16, 10, cuda::candidate_capacity(1, 10));
  ASSERT_GT(kN - plan[0].tiles * 16, cuda::candidate_capacity(1, 10));
  std::vector<float> size(kN, 1);
  for (std::uint32_t j = 0; j < plan[0].tiles; ++j) {
    for (std::size_t r = 0; r < 16 && plan[0].tile(j) * 16 + r < kN; ++r) {
      size[plan[0].tile(j) * 16 + r] = 1e-3f;
    }
  }
  const std::vector<float> query = clustered(1, kD, 7);
  std::vector<float> x = clustered(kN, kD, 8);
  for (std::size_t i = 0; i < kN; ++i) {
    for (std::size_t j = 0; j < kD; ++j) x[i * kD + j] = (query[j] * 5 + x[i * kD + j]) * size[i];
  }
  Pair pair(kD, "TQ3", kIp);
  pair.add(x);
  expect_same(search(pair.cpu, query, 10), search(pair.gpu, query, 10));
}

TEST(GpuIndex, SelectorsLeaveRowsOut) {
  TQ_NEEDS_DEVICE();
  for (const std::string name : {"TQ4", "TQ2c", "TQ3qjl", "TQ3t"}) {
    Pair pair(64, name, kL2);
    pair.add(clustered(50003, 64, 9));
    const std::vector<float> queries = clustered(70, 64, 10);
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 5; i < 50003; i += 997) ids.push_back(i);
    const faiss::IDSelectorBatch few(ids.size(), ids.data());
    const faiss::IDSelectorRange range(1234, 41000);
    const faiss::IDSelectorRange none(7, 7);
    const faiss::IDSelectorRange five(49998, 60000);
    for (const faiss::IDSelector* selector :
         std::initializer_list<const faiss::IDSelector*>{&few, &range, &none, &five}) {
      faiss::SearchParameters params;
      params.sel = const_cast<faiss::IDSelector*>(selector);
      for (const std::int64_t k : {10, 100}) {
        expect_same(search(pair.cpu, queries, k, &params), search(pair.gpu, queries, k, &params));
        const std::vector<float> one(queries.begin(), queries.begin() + 64);
        expect_same(search(pair.cpu, one, k, &params), search(pair.gpu, one, k, &params));
      }
    }
  }
}

TEST(GpuIndex, RemovedRowsMoveTheOthersDown) {
  TQ_NEEDS_DEVICE();
  for (const std::string name : {"TQ3", "TQ4qjlc", "TQ3tc"}) {
    Pair pair(100, name, kL2);
    pair.add(clustered(30000, 100, 11));
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 100; i < 30000; i += 3) ids.push_back(i);
    const faiss::IDSelectorBatch some(ids.size(), ids.data());
    EXPECT_EQ(pair.cpu.remove_ids(some), pair.gpu.remove_ids(some));
    pair.expect_same_codes();
    pair.add(clustered(500, 100, 12));
    pair.expect_same_codes();
    EXPECT_EQ(pair.gpu.remove_ids(faiss::IDSelectorRange(0, 1000000)),
              static_cast<std::size_t>(pair.cpu.ntotal));
    EXPECT_EQ(pair.gpu.ntotal, 0);
    const Results found = search(pair.gpu, clustered(1, 100, 1), 3);
    EXPECT_EQ(found.labels, std::vector<std::int64_t>({-1, -1, -1}));
  }
}

TEST(GpuIndex, CopiesBothWays) {
  TQ_NEEDS_DEVICE();
  for (const std::string& name : names()) {
    for (const int d : {50, 192}) {
      SCOPED_TRACE(name);
      IndexTurboQuant cpu(d, parse_index_name(name), kL2);
      const std::vector<float> x = clustered(777, static_cast<std::size_t>(d), 13);
      cpu.add(777, x.data());
      const auto gpu = index_cpu_to_gpu(0, cpu);
      const auto back = index_gpu_to_cpu(*gpu);
      ASSERT_EQ(back->ntotal, 777);
      EXPECT_EQ(back->centre(), cpu.centre());
      EXPECT_EQ(0, std::memcmp(back->codes.data(), cpu.codes.data(), 777 * cpu.code_size));
      const std::vector<float> queries = clustered(3, static_cast<std::size_t>(d), 14);
      expect_same(search(cpu, queries, 5), search(*gpu, queries, 5));
      cpu.add(10, x.data());
      gpu->add(10, x.data());
      const auto again = index_gpu_to_cpu(*gpu);
      EXPECT_EQ(0, std::memcmp(again->codes.data(), cpu.codes.data(), 787 * cpu.code_size));
    }
  }
}

TEST(GpuIndex, AnIndexOfTheHostIsSearchedInParts) {
  TQ_NEEDS_DEVICE();
  for (const std::string name : {"TQ4", "TQ3c", "TQ2qjl", "TQ4t"}) {
    for (const auto metric : {kIp, kL2}) {
      IndexTurboQuant index(40, parse_index_name(name), metric);
      // Twice the same, so that parts hold equal scores.
      const std::vector<float> x = clustered(1500, 40, 29);
      index.add(1500, x.data());
      index.add(1500, x.data());
      const std::vector<float> queries = clustered(9, 40, 30);
      const faiss::IDSelectorRange range(100, 2900);
      faiss::SearchParameters selected;
      selected.sel = const_cast<faiss::IDSelectorRange*>(&range);
      for (const faiss::SearchParameters* params :
           std::initializer_list<const faiss::SearchParameters*>{nullptr, &selected}) {
        for (const std::int64_t k : {1, 10, 2000}) {
          Results found;
          found.distances.resize(static_cast<std::size_t>(9 * k));
          found.labels.resize(static_cast<std::size_t>(9 * k));
          search_in_parts(0, index, 9, queries.data(), k, found.distances.data(),
                          found.labels.data(), params, 20000);
          expect_same(search(index, queries, k, params), found);
        }
      }
    }
  }
}

TEST(GpuIndex, MemoryOfTheDeviceIsTakenAsItIs) {
  TQ_NEEDS_DEVICE();
  Pair pair(96, "TQ4", kIp);
  const std::vector<float> x = clustered(5000, 96, 15);
  const std::vector<float> queries = clustered(20, 96, 16);
  const cuda::Buffer rows(0, x.size() * 4);
  const cuda::Buffer asked(0, queries.size() * 4);
  const cuda::Buffer distances(0, 20 * 7 * 4);
  const cuda::Buffer labels(0, 20 * 7 * 8);
  cuda::copy(rows.get(), x.data(), rows.bytes(), nullptr);
  cuda::copy(asked.get(), queries.data(), asked.bytes(), nullptr);
  const cuda::Stream stream(0);
  cuda::synchronize(nullptr);
  pair.gpu.set_stream(stream.get());
  pair.cpu.add(5000, x.data());
  pair.gpu.add(5000, rows.as<float>());
  pair.expect_same_codes();
  pair.gpu.search(20, asked.as<float>(), 7, distances.as<float>(), labels.as<std::int64_t>());
  Results found;
  found.distances.resize(140);
  found.labels.resize(140);
  cuda::copy(found.distances.data(), distances.get(), 560, stream.get());
  cuda::copy(found.labels.data(), labels.get(), 1120, stream.get());
  cuda::synchronize(stream.get());
  expect_same(search(pair.cpu, queries, 7), found);
}

TEST(GpuIndex, NaNIsRefusedAndChangesNothing) {
  TQ_NEEDS_DEVICE();
  Pair pair(70, "TQ4", kL2);
  pair.add(clustered(100, 70, 17));
  std::vector<float> bad = clustered(50, 70, 18);
  bad[70 * 31 + 5] = std::numeric_limits<float>::infinity();
  bad[70 * 33 + 5] = std::nanf("");
  EXPECT_EQ(error_of([&] { pair.cpu.add(50, bad.data()); }),
            error_of([&] { pair.gpu.add(50, bad.data()); }));
  EXPECT_THAT(error_of([&] { pair.gpu.add(50, bad.data()); }), HasSubstr("row 31 holds NaN"));
  EXPECT_EQ(pair.gpu.ntotal, 100);
  pair.expect_same_codes();
  EXPECT_THAT(error_of([&] { search(pair.gpu, bad, 3); }), HasSubstr("query 31 holds NaN"));
  std::vector<float> d1(3);
  std::vector<std::int64_t> l1(3);
  EXPECT_THAT(error_of([&] { pair.gpu.search(1, bad.data(), 0, d1.data(), l1.data()); }),
              HasSubstr("k must be"));
  EXPECT_THAT(error_of([&] { pair.gpu.search(1, bad.data(), 2049, d1.data(), l1.data()); }),
              HasSubstr("2048"));
}

TEST(GpuIndex, ProductsWithACentreThatOverflowAreTheSameBytes) {
  TQ_NEEDS_DEVICE();
  for (const int d : {64, 200}) {
    for (const auto metric : {kIp, kL2}) {
      Pair pair(d, "TQ3c", metric);
      std::vector<float> centre(static_cast<std::size_t>(d));
      for (std::size_t i = 0; i < centre.size(); ++i) centre[i] = i % 3 == 0 ? -3e38f : 3e38f;
      pair.cpu.set_centre(centre.data());
      pair.gpu.set_centre(centre.data());
      std::vector<float> x = clustered(50, static_cast<std::size_t>(d), 41);
      for (float& value : x) value *= 100;
      pair.add(x);
      pair.expect_same_codes();
      const std::vector<float> queries(x.begin(), x.begin() + 5 * d);
      expect_same(search(pair.cpu, queries, 7), search(pair.gpu, queries, 7));
    }
  }
}

TEST(GpuIndex, NotEnoughMemoryNamesTheBytesAndLosesNothing) {
  TQ_NEEDS_DEVICE();
  Pair pair(4096, "TQ4", kIp);
  pair.add(clustered(200, 4096, 19));
  const auto rows =
      static_cast<std::int64_t>(cuda::device_properties(0).memory_bytes / 2048 + 1000);
  EXPECT_THAT(error_of([&] { pair.gpu.reserve(rows); }),
              HasSubstr(std::to_string(rows * (2048 + 4)) + " bytes"));
  pair.expect_same_codes();
  const std::vector<float> queries = clustered(2, 4096, 20);
  expect_same(search(pair.cpu, queries, 4), search(pair.gpu, queries, 4));
  pair.add(clustered(200, 4096, 21));
  pair.expect_same_codes();
}

TEST(GpuIndex, LongRows) {
  TQ_NEEDS_DEVICE();
  for (const std::string name : {"TQ4", "TQ3", "TQ2qjl", "TQ1", "TQ3t"}) {
    for (const int d : sizes<int>({20000, 50000, 65536}, {20000})) {
      if (name == "TQ3t" && d > 20000) continue;  // encoding takes long
      SCOPED_TRACE(name + " " + std::to_string(d));
      Pair pair(d, name, kIp);
      pair.add(clustered(small() ? 20 : 300, static_cast<std::size_t>(d), 22));
      pair.expect_same_codes();
      const std::vector<float> queries = clustered(9, static_cast<std::size_t>(d), 23);
      expect_same(search(pair.cpu, queries, 5), search(pair.gpu, queries, 5));
    }
  }
}

TEST(GpuIndex, SeveralIndexesAndThreadsShareADevice) {
  TQ_NEEDS_DEVICE();
  Pair a(64, "TQ4", kIp);
  Pair b(128, "TQ2", kL2);
  a.add(clustered(20000, 64, 24));
  b.add(clustered(30000, 128, 25));
  const std::vector<float> of_a = clustered(5, 64, 26);
  const std::vector<float> of_b = clustered(40, 128, 27);
  const Results wanted_a = search(a.cpu, of_a, 10);
  const Results wanted_b = search(b.cpu, of_b, 10);
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        if (t % 2 == 0) {
          expect_same(wanted_a, search(a.gpu, of_a, 10));
        } else {
          expect_same(wanted_b, search(b.gpu, of_b, 10));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(GpuIndex, EncodesDecodesAndReconstructs) {
  TQ_NEEDS_DEVICE();
  Pair pair(70, "TQ3", kL2);
  const std::vector<float> x = clustered(300, 70, 28);
  pair.add(x);
  std::vector<std::uint8_t> bytes(300 * pair.gpu.sa_code_size());
  pair.gpu.sa_encode(300, x.data(), bytes.data());
  EXPECT_EQ(0, std::memcmp(bytes.data(), pair.cpu.codes.data(), bytes.size()));
  std::vector<float> from_cpu(70);
  std::vector<float> from_gpu(70);
  pair.cpu.reconstruct(123, from_cpu.data());
  pair.gpu.reconstruct(123, from_gpu.data());
  EXPECT_EQ(from_cpu, from_gpu);
  EXPECT_THROW(pair.gpu.reconstruct(300, from_gpu.data()), faiss::FaissException);
  pair.gpu.reset();
  EXPECT_EQ(pair.gpu.ntotal, 0);
  EXPECT_EQ(pair.gpu.device_bytes(), 0U);
  pair.gpu.add(300, x.data());
  pair.expect_same_codes();
}

}  // namespace
}  // namespace turboquant
