// Our indexes against FAISS's own, in one process, on real vectors: recall, bytes, and time of a
// batch and of single queries. The repetitions are interleaved, index after index, so that a slow
// spell of the machine hits all alike; ratios are taken inside a repetition.
#include <faiss/AutoTune.h>
#include <faiss/IndexFlat.h>
#include <faiss/impl/io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tools/io/vector_file.h"

namespace {

struct Options {
  std::string base, queries;
  std::vector<std::string> factories = {"Flat", "SQ8", "PQ{d/2}x4fs", "PQ{d}x4fs",
                                        "TQ1",  "TQ2", "TQ3",         "TQ4"};
  std::string reference = "PQ{d}x4fs";
  std::size_t rows = 0, batch = 960, singles = 100;
  std::vector<int> nprobes, efs;
  int k = 100, repetitions = 5, threads = 2;
  bool l2 = false;
  faiss::MetricType metric() const { return l2 ? faiss::METRIC_L2 : faiss::METRIC_INNER_PRODUCT; }
};

struct Data {
  std::size_t d = 0, n = 0, nq = 0;
  std::vector<float> base, queries;
};

// An index and, where it has one, what sets how much of it a search looks at.
struct Contender {
  std::string name;
  std::shared_ptr<faiss::Index> index;
  std::string parameter;  // nprobe=8
  double train_s = 0, add_s = 0, bytes_per_vector = 0, recall = 0;
  std::vector<double> batch_s, single_s;
};

constexpr int kRecallAt = 10;

template <typename Function>
double seconds(const Function& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

double smallest(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

// `wanted` rows; a smaller file is repeated.
std::vector<float> read_rows(const std::string& path, std::size_t wanted, std::size_t* d,
                             std::size_t* n) {
  const auto reader = turboquant::io::open_vectors(path);
  *d = reader->dimension();
  *n = wanted == 0 ? static_cast<std::size_t>(reader->rows()) : wanted;
  std::vector<float> x(*n * *d);
  for (std::size_t row = 0; row < *n;) {
    const auto count = std::min<std::size_t>(static_cast<std::size_t>(reader->rows()), *n - row);
    turboquant::io::read_finite(*reader, 0, count, x.data() + row * *d);
    row += count;
  }
  return x;
}

Data read_data(const Options& options) {
  Data data;
  std::size_t query_dimension = 0;
  data.base = read_rows(options.base, options.rows, &data.d, &data.n);
  data.queries = read_rows(options.queries, options.batch, &query_dimension, &data.nq);
  if (query_dimension != data.d) throw std::runtime_error("dimensions of the files differ");
  return data;
}

// "PQ{d/2}x4fs" for a dimension.
std::string expand(std::string name, std::size_t d) {
  const std::pair<const char*, std::size_t> values[] = {{"{d}", d}, {"{d/2}", d / 2}};
  for (const auto& [token, value] : values) {
    const auto at = name.find(token);
    if (at != std::string::npos) name.replace(at, std::string(token).size(), std::to_string(value));
  }
  return name;
}

Contender build(const std::string& name, const Data& data, faiss::MetricType metric) {
  Contender c;
  c.name = name;
  c.index.reset(faiss::index_factory(static_cast<int>(data.d), name.c_str(), metric));
  const auto n = static_cast<std::int64_t>(data.n);
  // Product quantizers train in thousands of tiny parallel loops, where threads only wait.
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  c.train_s = seconds([&] { c.index->train(n, data.base.data()); });
  omp_set_num_threads(threads);
  c.add_s = seconds([&] { c.index->add(n, data.base.data()); });
  faiss::VectorIOWriter file;
  faiss::write_index(c.index.get(), &file);
  c.bytes_per_vector = static_cast<double>(file.data.size()) / static_cast<double>(data.n);
  return c;
}

// One contender for each value of the parameter that the index has.
std::vector<Contender> sweep(const Options& options, const Contender& built) {
  const bool lists = built.name.find("IVF") != std::string::npos;
  const bool graph = !lists && built.name.find("HNSW") != std::string::npos;
  const std::vector<int>& values = lists ? options.nprobes : options.efs;
  if ((!lists && !graph) || values.empty()) return {built};
  std::vector<Contender> all;
  for (const int value : values) {
    all.push_back(built);
    all.back().parameter = (lists ? "nprobe=" : "efSearch=") + std::to_string(value);
  }
  return all;
}

// The score of the kRecallAt-th nearest row, for each query.
std::vector<float> exact_cutoffs(const Data& data, faiss::MetricType metric) {
  faiss::IndexFlat exact(static_cast<std::int64_t>(data.d), metric);
  exact.add(static_cast<std::int64_t>(data.n), data.base.data());
  std::vector<float> scores(data.nq * kRecallAt), cutoffs(data.nq);
  std::vector<std::int64_t> ids(scores.size());
  exact.search(static_cast<std::int64_t>(data.nq), data.queries.data(), kRecallAt, scores.data(),
               ids.data());
  for (std::size_t q = 0; q < data.nq; ++q) cutoffs[q] = scores[(q + 1) * kRecallAt - 1];
  return cutoffs;
}

// The share of the first kRecallAt answers that are as near as the true ones. Judged by the exact
// score, so that of equal rows any counts.
double recall(const Data& data, faiss::MetricType metric, const std::vector<float>& cutoffs, int k,
              const std::vector<std::int64_t>& ids) {
  const bool l2 = metric == faiss::METRIC_L2;
  std::size_t found = 0;
  for (std::size_t q = 0; q < data.nq; ++q) {
    for (std::size_t i = 0; i < kRecallAt; ++i) {
      const std::int64_t id = ids[q * static_cast<std::size_t>(k) + i];
      if (id < 0) continue;
      const float* x = data.base.data() + static_cast<std::size_t>(id) * data.d;
      const float* query = data.queries.data() + q * data.d;
      double score = 0;
      for (std::size_t j = 0; j < data.d; ++j) {
        const double difference = static_cast<double>(x[j]) - query[j];
        score += l2 ? -difference * difference : static_cast<double>(x[j]) * query[j];
      }
      const double cutoff = l2 ? -cutoffs[q] : cutoffs[q];
      found += score >= cutoff - 1e-5 * std::abs(cutoff);
    }
  }
  return static_cast<double>(found) / static_cast<double>(data.nq * kRecallAt);
}

void measure(const Options& options, const Data& data, std::vector<Contender>& contenders) {
  const auto k = static_cast<std::size_t>(options.k);
  std::vector<float> scores(data.nq * k);
  std::vector<std::int64_t> ids(scores.size());
  const std::vector<float> cutoffs = exact_cutoffs(data, options.metric());
  const auto search = [&](const Contender& c, std::size_t first, std::size_t count) {
    c.index->search(static_cast<std::int64_t>(count), data.queries.data() + first * data.d,
                    options.k, scores.data() + first * k, ids.data() + first * k);
  };
  const std::size_t singles = std::min(options.singles, data.nq);
  for (int repetition = -1; repetition < options.repetitions; ++repetition) {  // -1 warms up
    for (Contender& c : contenders) {
      if (!c.parameter.empty()) {
        faiss::ParameterSpace().set_index_parameters(c.index.get(), c.parameter.c_str());
      }
      const double batch = seconds([&] { search(c, 0, data.nq); });
      if (repetition < 0) {
        c.recall = recall(data, options.metric(), cutoffs, options.k, ids);
        continue;
      }
      c.batch_s.push_back(batch);
      const double single = seconds([&] {
        for (std::size_t q = 0; q < singles; ++q) search(c, q, 1);
      });
      c.single_s.push_back(single / static_cast<double>(singles));
    }
  }
}

// How many times faster than the reference, as the median over the repetitions.
double ratio(const std::vector<double>& reference, const std::vector<double>& own) {
  std::vector<double> ratios(own.size());
  for (std::size_t i = 0; i < own.size(); ++i) ratios[i] = reference[i] / own[i];
  return median(ratios);
}

// The contender that the ratios of another refer to: of the same parameter where there is one.
const Contender& reference_of(const std::string& name, const std::vector<Contender>& contenders,
                              const Contender& c) {
  const Contender* any = nullptr;
  for (const Contender& other : contenders) {
    if (other.name != name) continue;
    if (other.parameter == c.parameter) return other;
    if (any == nullptr) any = &other;
  }
  if (any == nullptr) throw std::runtime_error("no such reference: " + name);
  return *any;
}

void print(const Options& options, const Data& data, const std::vector<Contender>& contenders) {
  const std::string name = expand(options.reference, data.d);
  std::printf(
      "%zu rows x %zu, %zu queries, %s, k = %d, %d threads, %d repetitions, FAISS %d.%d.%d\n\n",
      data.n, data.d, data.nq, options.l2 ? "L2" : "inner product", options.k, options.threads,
      options.repetitions, FAISS_VERSION_MAJOR, FAISS_VERSION_MINOR, FAISS_VERSION_PATCH);
  std::printf(
      "| index | bytes/vector | 10-recall@10 | train s, one thread | add s | batch s, min / median "
      "| one query ms, min / median | batch, times %s | one query, times %s |\n"
      "|---|---|---|---|---|---|---|---|---|\n",
      name.c_str(), name.c_str());
  for (const Contender& c : contenders) {
    const Contender& reference = reference_of(name, contenders, c);
    std::printf("| %s %s | %.1f | %.4f | %.2f | %.3f | %.4f / %.4f | %.3f / %.3f | %.2f | %.2f |\n",
                c.name.c_str(), c.parameter.c_str(), c.bytes_per_vector, c.recall, c.train_s,
                c.add_s, smallest(c.batch_s), median(c.batch_s), 1e3 * smallest(c.single_s),
                1e3 * median(c.single_s), ratio(reference.batch_s, c.batch_s),
                ratio(reference.single_s, c.single_s));
  }
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Our indexes against FAISS's own");
  app.add_option("--base", options.base, "vectors to search")->required();
  app.add_option("--queries", options.queries, "query vectors")->required();
  app.add_option("--factory", options.factories,
                 "index, may be repeated; {d} and {d/2} stand for numbers")
      ->capture_default_str();
  app.add_option("--reference", options.reference, "the index that ratios refer to")
      ->capture_default_str();
  app.add_option("--nprobe", options.nprobes, "values of nprobe, for names with IVF");
  app.add_option("--ef", options.efs, "values of efSearch, for other names with HNSW");
  app.add_flag("--l2", options.l2, "squared distances instead of inner products");
  app.add_option("--rows", options.rows,
                 "rows; the file is repeated where it has fewer; 0: its own");
  app.add_option("--batch", options.batch, "queries in a batch")->capture_default_str();
  app.add_option("--singles", options.singles, "single queries a repetition")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("-k", options.k, "answers a query")
      ->check(CLI::Range(kRecallAt, 100000))
      ->capture_default_str();
  app.add_option("--repetitions", options.repetitions)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::PositiveNumber)->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  omp_set_num_threads(options.threads);
  const Data data = read_data(options);
  std::vector<Contender> contenders;
  for (const std::string& factory : options.factories) {
    const Contender built = build(expand(factory, data.d), data, options.metric());
    for (Contender& c : sweep(options, built)) contenders.push_back(std::move(c));
  }
  measure(options, data, contenders);
  print(options, data, contenders);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "faiss_bench: %s\n", error.what());
    return 1;
  }
}
