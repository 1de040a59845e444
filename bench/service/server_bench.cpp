// Queries a second of a server on loopback, with 1, 8 and 64 clients, against the bare index over
// the same vectors in the same run; what the server adds to one small query; and how fast rows come
// in with every batch on disk. Everything is in this process, so clients take processor time too.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "service/server.h"
#include "turboquant/client.h"
#include "turboquant/index_turboquant.h"

namespace {

using Clock = std::chrono::steady_clock;
using turboquant::Client;

struct Options {
  std::size_t rows = 50'000;
  std::size_t dimension = 384;
  int bits = 3;
  std::size_t k = 10;
  double seconds = 3;  // of each measurement
  std::vector<std::size_t> clients{1, 8, 64};
  std::vector<std::size_t> batches{1, 16, 64};  // queries a call
  std::string folder = "/tmp";
};

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<float> random_vectors(std::size_t n, std::size_t dimension, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n * dimension);
  for (float& value : x) value = normal(random);
  return x;
}

void fail_unless(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << "\n";
  std::exit(1);
}

// Queries a second of `threads` callers, each asking for `batch` queries at a time; and the median
// time of a call in milliseconds.
struct Rate {
  double qps = 0;
  double median_ms = 0;
};
template <class Ask>
Rate measure(std::size_t threads, std::size_t batch, double seconds, Ask ask) {
  std::atomic<bool> stop{false};
  std::vector<std::vector<double>> times(threads);
  std::vector<std::thread> callers;
  const auto start = Clock::now();
  for (std::size_t t = 0; t < threads; ++t) {
    callers.emplace_back([&, t] {
      for (std::size_t i = t; !stop; i += threads) {
        const auto begin = Clock::now();
        ask(t, i);
        times[t].push_back(since(begin));
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop = true;
  for (std::thread& caller : callers) caller.join();
  const double elapsed = since(start);
  std::vector<double> all;
  for (const auto& mine : times) all.insert(all.end(), mine.begin(), mine.end());
  std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2),
                   all.end());
  return {static_cast<double>(all.size() * batch) / elapsed, 1e3 * all[all.size() / 2]};
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        base_(random_vectors(options.rows, options.dimension, 1)),
        queries_(random_vectors(kQueries, options.dimension, 2)),
        index_(static_cast<int>(options.dimension), index_options(options),
               faiss::METRIC_INNER_PRODUCT) {
    index_.add(static_cast<std::int64_t>(options.rows), base_.data());
    folder_ = options.folder + "/turboquant-bench-" + std::to_string(::getpid());
  }
  ~Bench() {
    std::filesystem::remove_all(folder_);
    std::filesystem::remove_all(folder_ + "-store");
  }

  void run() {
    start();
    ingest();
    searches();
    single();
    fail_unless(server_->stop());
  }

 private:
  static constexpr std::size_t kQueries = 1024;

  static turboquant::IndexOptions index_options(const Options& options) {
    turboquant::IndexOptions made;
    made.bits = options.bits;
    return made;
  }

  void start() {
    turboquant::service::ServerOptions options;
    options.data_dir = folder_;
    options.front.address = "127.0.0.1:0";
    options.limits.max_rows = 1U << 20;
    auto server = turboquant::service::Server::start(options, log_);
    fail_unless(server.status());
    server_ = *std::move(server);
  }

  void ingest() {
    turboquant::ClientOptions where;
    where.address = "127.0.0.1:" + std::to_string(server_->port());
    Client writer(where);
    fail_unless(writer.create_collection("bench", collection_options()).status());
    turboquant::BulkOptions bulk;
    absl::Status refused;
    bulk.acknowledged = [&](const auto& one) { refused.Update(one.result.status()); };
    const auto begin = Clock::now();
    auto stream = writer.bulk_add("bench", bulk);
    constexpr std::size_t kBatch = 1000;
    for (std::size_t first = 0; first < options_.rows; first += kBatch) {
      fail_unless(stream->send(batch_of(first, kBatch)).status());
    }
    fail_unless(stream->finish());
    fail_unless(refused);
    const double seconds = since(begin);
    std::printf("ingest, FSYNC, batches of 1,000: %.0f rows/s, window %zu at the end\n",
                static_cast<double>(options_.rows) / seconds, stream->window());
  }

  absl::Span<const float> query(std::size_t i, std::size_t batch) const {
    const std::size_t first = i * batch % (kQueries - batch + 1);
    return absl::MakeConstSpan(queries_).subspan(first * options_.dimension,
                                                 batch * options_.dimension);
  }

  // The index alone, one call at a time with all threads.
  Rate bare(std::size_t batch) const {
    std::vector<float> scores(batch * options_.k);
    std::vector<std::int64_t> ids(batch * options_.k);
    return measure(1, batch, options_.seconds, [&](std::size_t, std::size_t i) {
      index_.search(static_cast<std::int64_t>(batch), query(i, batch).data(),
                    static_cast<std::int64_t>(options_.k), scores.data(), ids.data());
    });
  }

  turboquant::CollectionOptions collection_options() const {
    turboquant::CollectionOptions options;
    options.dimension = options_.dimension;
    options.factory = "TQ" + std::to_string(options_.bits);
    return options;
  }

  // The same rows as a collection of this process.
  std::shared_ptr<turboquant::Collection> stored(turboquant::Store& store) const {
    auto collection = store.create_collection("bench", collection_options());
    fail_unless(collection.status());
    constexpr std::size_t kBatch = 1000;
    for (std::size_t first = 0; first < options_.rows; first += kBatch) {
      fail_unless((*collection)->insert(batch_of(first, kBatch)).status());
    }
    return *std::move(collection);
  }

  Rate in_process(const turboquant::Collection& collection, std::size_t batch) const {
    turboquant::SearchOptions search;
    search.k = options_.k;
    return measure(1, batch, options_.seconds, [&](std::size_t, std::size_t i) {
      fail_unless(collection.search(query(i, batch), search).status());
    });
  }

  turboquant::RecordBatch batch_of(std::size_t first, std::size_t most) const {
    const std::size_t n = std::min(most, options_.rows - first);
    turboquant::RecordBatch batch;
    for (std::size_t i = 0; i < n; ++i) batch.ids.emplace_back(std::uint64_t{first + i});
    batch.vectors =
        absl::MakeConstSpan(base_).subspan(first * options_.dimension, n * options_.dimension);
    return batch;
  }

  Rate served(std::size_t clients, std::size_t batch) const {
    turboquant::ClientOptions where;
    where.address = "127.0.0.1:" + std::to_string(server_->port());
    where.connections = std::min<std::size_t>(clients, 4);
    Client shared(where);
    turboquant::SearchOptions search;
    search.k = options_.k;
    return measure(clients, batch, options_.seconds, [&](std::size_t, std::size_t i) {
      fail_unless(shared.search("bench", query(i, batch), search).status());
    });
  }

  void searches() {
    std::printf("%zu rows of dimension %zu, TQ%d, k = %zu\n", options_.rows, options_.dimension,
                options_.bits, options_.k);
    std::printf("| queries a call | bare index | store without a server |");
    for (const std::size_t clients : options_.clients) std::printf(" %zu clients |", clients);
    std::printf("\n|---|---|---|");
    for (std::size_t i = 0; i < options_.clients.size(); ++i) std::printf("---|");
    std::printf("\n");
    double best = 0;
    auto store = turboquant::Store::open(folder_ + "-store");
    fail_unless(store.status());
    const auto collection = stored(**store);
    for (const std::size_t batch : options_.batches) {
      const double alone = bare(batch).qps;
      best = std::max(best, alone);
      const double stored = in_process(*collection, batch).qps;
      std::printf("| %zu | %.0f q/s | %.0f (%.0f%%) |", batch, alone, stored, 100 * stored / alone);
      for (const std::size_t clients : options_.clients) {
        const double qps = served(clients, batch).qps;
        std::printf(" %.0f (%.0f%%) |", qps, 100 * qps / alone);
        if (batch == 1) single_most_ = qps;
        std::fflush(stdout);
      }
      std::printf("\n");
    }
    if (single_most_ > 0) {
      std::printf("%zu clients with one query each: %.0f%% of the bare index's best batch rate\n",
                  options_.clients.back(), 100 * single_most_ / best);
    }
  }

  // A collection so small that the scan costs nothing: what is left is the way there and back.
  void single() {
    turboquant::ClientOptions where;
    where.address = "127.0.0.1:" + std::to_string(server_->port());
    Client one(where);
    turboquant::CollectionOptions options;
    options.dimension = options_.dimension;
    fail_unless(one.create_collection("small", options).status());
    turboquant::RecordBatch batch;
    for (std::uint64_t i = 0; i < 100; ++i) batch.ids.emplace_back(i);
    batch.vectors = absl::MakeConstSpan(base_).first(100 * options_.dimension);
    fail_unless(one.upsert("small", batch).status());
    turboquant::SearchOptions search;
    search.k = options_.k;
    const Rate rate = measure(1, 1, options_.seconds, [&](std::size_t, std::size_t i) {
      fail_unless(one.search("small", query(i, 1), search).status());
    });
    std::printf("one query over 100 rows: %.3f ms at the median\n", rate.median_ms);
  }

  const Options options_;
  const std::vector<float> base_;
  const std::vector<float> queries_;
  turboquant::IndexTurboQuant index_;
  std::string folder_;
  std::ostringstream log_;
  std::unique_ptr<turboquant::service::Server> server_;
  double single_most_ = 0;  // queries a second of the most clients, with one query each
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Server against bare index.");
  app.add_option("--rows", options.rows)->capture_default_str();
  app.add_option("--dimension", options.dimension)->capture_default_str();
  app.add_option("--bits", options.bits)->check(CLI::Range(1, 4))->capture_default_str();
  app.add_option("-k", options.k)->capture_default_str();
  app.add_option("--seconds", options.seconds, "of each measurement")->capture_default_str();
  app.add_option("--clients", options.clients, "how many ask at once")->capture_default_str();
  app.add_option("--batches", options.batches, "queries a call")->capture_default_str();
  app.add_option("--folder", options.folder, "on the disk to write to")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  Bench(options).run();
  return 0;
}
