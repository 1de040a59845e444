// build, convert, search, eval and info as functions, on the example data.
#include "tools/commands/build.h"

#include <faiss/Index.h>
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/tools/test_files.h"
#include "tools/commands/checkpoint.h"
#include "tools/commands/convert.h"
#include "tools/commands/eval.h"
#include "tools/commands/index_file.h"
#include "tools/commands/index_tree.h"
#include "tools/commands/info.h"
#include "tools/commands/search.h"
#include "tools/io/errors.h"
#include "tools/io/interrupt.h"

namespace turboquant::tools {
namespace {

class Build : public testing::FolderTest {
 protected:
  BuildOptions options(const std::string& factory, const std::string& output = "x.tqi") {
    BuildOptions build;
    build.input = testing::example("base.npy");
    build.factory = factory;
    build.output = path(output);
    return build;
  }
  BuildReport run(const BuildOptions& build) { return build_index(build, silent_); }
  EvalReport eval(const std::string& index, const std::string& ids = "") {
    EvalOptions evaluation;
    evaluation.index = path(index);
    evaluation.queries = testing::example("queries.npy");
    evaluation.base = testing::example("base.npy");
    evaluation.ids = ids;
    evaluation.limit = 100;
    return evaluate_index(evaluation, silent_);
  }
  Progress silent_;
};

TEST_F(Build, Tq3OnTheExampleData) {
  const BuildReport report = run(options("TQ3"));
  EXPECT_EQ(report.rows, 5000U);
  EXPECT_EQ(report.description, "TQ3");
  EXPECT_EQ(names(), std::vector<std::string>{"x.tqi"});
  const EvalReport result = eval("x.tqi");
  EXPECT_GT(result.k_recall_at.at(10), 0.91);
  EXPECT_GT(result.recall_at.at(10), 0.99);
  EXPECT_EQ(result.vector_bytes, 384 * 3 / 8 + 4U);
  EXPECT_LT(static_cast<double>(result.file_bytes), 5000 * 148.0 + 2000);
  ASSERT_TRUE(result.estimate);
  EXPECT_NEAR(result.estimate->slope, 1.0, 0.01);
  EXPECT_NEAR(result.estimate->variance_times_d, 0.035, 0.004);
  EXPECT_GT(result.batch_qps, 0);
  EXPECT_LE(result.latency_p50_ms, result.latency_p95_ms);
  EXPECT_LE(result.latency_p95_ms, result.latency_p99_ms);
}

TEST_F(Build, EveryMetric) {
  for (const SearchMetric metric :
       {SearchMetric::kInnerProduct, SearchMetric::kL2, SearchMetric::kCosine}) {
    BuildOptions build = options("TQ4");
    build.metric = metric;
    run(build);
    const EvalReport result = eval("x.tqi");
    EXPECT_EQ(result.metric, metric);
    EXPECT_GT(result.k_recall_at.at(10), 0.94) << metric_name(metric);
    ASSERT_TRUE(result.estimate);
    EXPECT_NEAR(result.estimate->slope, 1.0, 0.01) << metric_name(metric);
  }
  run(options("TQ4cos"));
  EXPECT_EQ(eval("x.tqi").metric, SearchMetric::kCosine);
}

TEST_F(Build, CompositesTrainOnASample) {
  struct Case {
    const char* factory;
    bool keeps_products;  // PCA takes the mean away
  };
  for (const Case& c :
       {Case{"Flat", true}, Case{"SQ8", true}, Case{"PCA64,TQ4", false}, Case{"PCA32,PQ8x4", false},
        Case{"IVF16,TQ4", true}, Case{"TQ2,RFlat", true}, Case{"HNSW8,TQ4", true}}) {
    BuildOptions build = options(c.factory);
    build.train_size = 2000;
    run(build);
    const EvalReport result = eval("x.tqi");
    EXPECT_EQ(result.vectors, 5000U) << c.factory;
    EXPECT_GT(result.recall_at.at(10), 0.3) << c.factory;
    ASSERT_TRUE(result.estimate) << c.factory;
    if (c.keeps_products) {
      EXPECT_NEAR(result.estimate->slope, 1.0, 0.02) << c.factory;
    }
  }
}

TEST_F(Build, DescribesWhatTheFactoryMade) {
  for (const char* factory : {"TQ3",
                              "TQ2qjl",
                              "TQ1mse",
                              "TQ4cos",
                              "Flat",
                              "SQ8",
                              "PCA16,TQ3",
                              "L2norm,TQ3",
                              "IVF16,TQ4",
                              "IVF16,Flat",
                              "IVF16,SQ8",
                              "PQ8x4",
                              "HNSW8,TQ3",
                              "IDMap,TQ3",
                              "IDMap2,Flat",
                              "TQ3,Refine(Flat)",
                              "IVF8,TQ4,Refine(+TQ4)",
                              "IDMap,TQ2t,Refine(+TQ3t)",
                              "OPQ8_16,TQ3",
                              "RR16,TQ3",
                              "IVF8,PQ4x4"}) {
    const auto index = make_index(32, factory, faiss::METRIC_L2);
    EXPECT_EQ(describe(*index), factory);
  }
}

// No PCA here: on some processors BLAS rounds a row differently in a batch of another size.
TEST_F(Build, BatchesMakeNoDifference) {
  for (const char* factory : {"TQ3", "TQ2qjl", "SQ8", "IVF16,TQ3"}) {
    BuildOptions build = options(factory, "a");
    run(build);
    build.output = path("b");
    build.batch_rows = 77;
    run(build);
    EXPECT_EQ(testing::read_bytes(path("a")), testing::read_bytes(path("b"))) << factory;
  }
}

TEST_F(Build, IdsOfYourOwn) {
  std::ofstream text(path("ids.txt"));
  for (int i = 0; i < 5000; ++i) text << 1'000'000'000'000 + 3 * i << "\n";
  text.close();
  for (const char* factory : {"TQ3", "PCA64,SQ8", "IVF8,Flat", "IDMap,TQ3", "IDMap2,TQ3"}) {
    BuildOptions build = options(factory);
    build.ids = path("ids.txt");
    build.batch_rows = 1000;
    run(build);
    const EvalReport result = eval("x.tqi", path("ids.txt"));
    EXPECT_GT(result.recall_at.at(10), 0.4) << factory;
    const auto index = load_index(path("x.tqi"));
    std::vector<float> query(384);
    io::open_vectors(testing::example("queries.npy"))->read(0, 1, query.data());
    std::int64_t id = 0;
    float score = 0;
    index->search(1, query.data(), 1, &score, &id);
    EXPECT_GE(id, 1'000'000'000'000) << factory;
  }
  EXPECT_FAILS(eval("x.tqi"), io::UsageError, "--ids");
  BuildOptions build = options("TQ3");
  testing::write_bytes(path("few.txt"), "1\n2\n");
  build.ids = path("few.txt");
  EXPECT_FAILS(run(build), io::DataError, "few.txt", "2 ids", "5000 rows");
  EXPECT_FAILS(run(options("IDMap,TQ3")), io::UsageError, "--ids");
}

TEST_F(Build, BadInputLeavesTheOutputAlone) {
  testing::write_bytes(path("x.tqi"), "old");
  std::vector<float> x(300 * 8, 1.F);
  x[217 * 8 + 3] = std::numeric_limits<float>::quiet_NaN();
  testing::write_bytes(path("bad.fbin"), testing::fbin_bytes(300, 8, x));
  BuildOptions build = options("TQ3");
  build.input = path("bad.fbin");
  build.batch_rows = 50;
  EXPECT_FAILS(run(build), io::DataError, "bad.fbin", "row 217", "value 3", "NaN");
  build.factory = "TQ9";
  EXPECT_FAILS(run(build), io::UsageError, "'TQ9'");
  build.factory = "nonsense";
  EXPECT_FAILS(run(build), io::UsageError, "'nonsense'");
  build.input = path("none.fbin");
  EXPECT_FAILS(run(build), io::IoError, "none.fbin");
  EXPECT_EQ(testing::read_bytes(path("x.tqi")), "old");
  EXPECT_EQ(names(), (std::vector<std::string>{"bad.fbin", "x.tqi"}));
}

TEST_F(Build, EmptyInput) {
  testing::write_bytes(path("empty.fbin"), testing::fbin_bytes(0, 8, {}));
  BuildOptions build = options("TQ3");
  build.input = path("empty.fbin");
  EXPECT_EQ(run(build).rows, 0U);
  EXPECT_EQ(load_index(path("x.tqi"))->ntotal, 0);
  build.factory = "PCA4,SQ8";
  EXPECT_FAILS(run(build), io::DataError, "empty.fbin", "no rows");
}

TEST_F(Build, MemoryLimit) {
  BuildOptions build = options("TQ3");
  build.memory_limit = 1 << 20;
  EXPECT_FAILS(run(build), io::UsageError, "--memory-limit 1.0 MiB", "needed");
  build.memory_limit = std::uint64_t{4} << 30;
  run(build);
  EXPECT_EQ(names(), std::vector<std::string>{"x.tqi"});
}

// Stops as a signal would, after some batches; the next build goes on.
TEST_F(Build, ResumeAfterASignalGivesTheSameBytes) {
  io::install_interrupt_handlers();
  for (const char* factory : {"TQ3", "PCA32,SQ8", "IVF16,TQ3", "IDMap"}) {
    BuildOptions build = options(std::string(factory) == "IDMap" ? "TQ3" : factory, "whole");
    if (std::string(factory) == "IDMap") {
      std::ofstream text(path("ids.txt"));
      for (int i = 0; i < 5000; ++i) text << 2 * i << "\n";
      build.ids = path("ids.txt");
    }
    build.batch_rows = 900;
    build.train_size = 1000;
    run(build);

    build.output = path("parts");
    build.resume = true;
    build.checkpoint_seconds = 0;
    // The signal comes when a checkpoint is there.
    struct SignalAtCheckpoint : std::stringbuf {
      int sync() override {
        if (str().find("\"phase\":\"add\",\"done\":1800") != std::string::npos) ::raise(SIGINT);
        str("");
        return 0;
      }
    } buffer;
    std::ostream lines(&buffer);
    Progress progress(lines, ProgressMode::kJson, 0);
    EXPECT_FAILS(build_index(build, progress), io::Interrupted, "interrupted");
    io::clear_interrupt();
    EXPECT_FALSE(std::filesystem::exists(path("parts")));
    EXPECT_TRUE(std::filesystem::exists(path("parts.partial")));
    const auto manifest = nlohmann::json::parse(testing::read_bytes(path("parts.partial.json")));
    EXPECT_EQ(manifest["rows_done"], 1800);

    BuildOptions other = build;
    other.metric = SearchMetric::kL2;
    EXPECT_FAILS(run(other), io::UsageError, "parts.partial.json", "metric", "l2");

    const BuildReport report = run(build);
    EXPECT_EQ(report.resumed_at, 1800U);
    EXPECT_EQ(report.rows, 5000U);
    EXPECT_EQ(testing::read_bytes(path("parts")), testing::read_bytes(path("whole"))) << factory;
    EXPECT_FALSE(std::filesystem::exists(path("parts.partial")));
    EXPECT_FALSE(std::filesystem::exists(path("parts.partial.json")));
    std::filesystem::remove(path("parts"));
  }
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

TEST_F(Build, ResumeRefusesWhatItCannotDo) {
  BuildOptions build = options("HNSW8,TQ3");
  build.resume = true;
  EXPECT_FAILS(run(build), io::UsageError, "--resume", "graph");
  build.factory = "TQ3";
  testing::write_bytes(path("x.tqi.partial.json"), "{ not json");
  EXPECT_FAILS(run(build), io::DataError, "x.tqi.partial.json", "not a checkpoint");
  testing::write_bytes(path("x.tqi.partial.json"), "{\"format\": \"another\"}");
  EXPECT_FAILS(run(build), io::DataError, "this version");
}

TEST_F(Build, AChangedInputIsNoticed) {
  testing::write_bytes(path("in.fbin"), testing::fbin_bytes(4, 8, std::vector<float>(32, 1.F)));
  const Checkpoint checkpoint(path("x"), {{"input", file_identity(path("in.fbin"))}});
  checkpoint.save(*make_index(8, "TQ3", faiss::METRIC_L2));
  EXPECT_NE(checkpoint.load(), nullptr);
  testing::write_bytes(path("in.fbin"), testing::fbin_bytes(5, 8, std::vector<float>(40, 1.F)));
  const Checkpoint changed(path("x"), {{"input", file_identity(path("in.fbin"))}});
  EXPECT_FAILS(changed.load(), io::UsageError, "another build", "input");
}

TEST_F(Build, SearchTableAndFiles) {
  run(options("TQ3"));
  SearchOptions search;
  search.index = path("x.tqi");
  search.queries = testing::example("queries.npy");
  search.text = testing::example("base.txt");
  search.query_text = testing::example("queries.txt");
  search.k = 3;
  search.limit = 10;
  std::ostringstream table;
  EXPECT_EQ(search_index(search, table, silent_).queries, 10U);
  EXPECT_NE(table.str().find("query 0: plunge or bury (a knife or sword) in flesh"),
            std::string::npos);
  EXPECT_NE(table.str().find("sheathe: plunge or bury"), std::string::npos);

  search.text.clear();
  search.output = path("ids.ibin");
  search.distances = path("scores.npy");
  search.limit.reset();
  std::ostringstream nothing;
  search_index(search, nothing, silent_);
  EXPECT_TRUE(nothing.str().empty());
  EXPECT_EQ(io::open_vectors(path("ids.ibin"))->rows(), 200U);
  EXPECT_EQ(io::open_vectors(path("scores.npy"))->dimension(), 3U);

  search.parameters = "nprobe=4";
  EXPECT_FAILS(search_index(search, nothing, silent_), io::UsageError, "nprobe");
  search.parameters.clear();
  search.k = 0;
  EXPECT_FAILS(search_index(search, nothing, silent_), io::UsageError, "-k");
  search.k = 1;
  testing::write_bytes(path("q.fbin"), testing::fbin_bytes(1, 3, {1, 2, 3}));
  search.queries = path("q.fbin");
  EXPECT_FAILS(search_index(search, nothing, silent_), io::DataError, "q.fbin", "384");
  search.index = search.queries;
  EXPECT_FAILS(search_index(search, nothing, silent_), io::DataError, "q.fbin", "not an index");
}

TEST_F(Build, EvalWithGroundTruthFile) {
  run(options("Flat"));
  SearchOptions search;
  search.index = path("x.tqi");
  search.queries = testing::example("queries.npy");
  search.output = path("gt.ivecs");
  search.k = 20;
  std::ostringstream nothing;
  search_index(search, nothing, silent_);
  EvalOptions evaluation;
  evaluation.index = path("x.tqi");
  evaluation.queries = search.queries;
  evaluation.ground_truth = path("gt.ivecs");
  const EvalReport result = evaluate_index(evaluation, silent_);
  EXPECT_EQ(result.k_recall_at.at(10), 1.0);
  EXPECT_FALSE(result.estimate);
  std::ostringstream text;
  print_report_json(result, text);
  const auto json = nlohmann::json::parse(text.str());
  EXPECT_EQ(json["recall_at"]["1"], 1.0);
  EXPECT_EQ(json["bytes_per_vector"], 1536);
  EXPECT_TRUE(json["estimate"].is_null());
  evaluation.k = 21;
  EXPECT_FAILS(evaluate_index(evaluation, silent_), io::DataError, "gt.ivecs", "20 neighbours");
  evaluation.ground_truth.clear();
  EXPECT_FAILS(evaluate_index(evaluation, silent_), io::UsageError, "--base or --ground-truth");
}

TEST_F(Build, InfoOfIndexesAndVectors) {
  run(options("TQ3"));
  std::ostringstream text;
  print_info(path("x.tqi"), true, text);
  const auto json = nlohmann::json::parse(text.str());
  EXPECT_EQ(json["description"], "TQ3");
  EXPECT_EQ(json["vectors"], 5000);
  EXPECT_EQ(json["bytes_per_vector"], 148);
  EXPECT_EQ(json["metric"], "ip");
  std::ostringstream vectors;
  print_info(testing::example("base.npy"), false, vectors);
  EXPECT_NE(vectors.str().find("f2"), std::string::npos);
  EXPECT_NE(vectors.str().find("5000"), std::string::npos);
}

class Convert : public testing::FolderTest {
 protected:
  std::uint64_t convert(const std::string& in, const std::string& out) {
    ConvertOptions options;
    options.input = in;
    options.output = path(out);
    return convert_vectors(options, silent_);
  }
  Progress silent_;
};

TEST_F(Convert, ARoundThroughEveryFloatFormat) {
  const std::string start = testing::example("queries.npy");
  convert(start, "a.fbin");
  convert(path("a.fbin"), "a.fvecs");
  convert(path("a.fvecs"), "a.npy");
  ConvertOptions back;
  back.input = path("a.npy");
  back.output = path("b.npy");
  back.element = io::Element::kF2;
  EXPECT_EQ(convert_vectors(back, silent_), 200U);
  const std::string before = testing::read_bytes(start);
  const std::string after = testing::read_bytes(path("b.npy"));
  EXPECT_EQ(before.substr(128), after.substr(128));
}

TEST_F(Convert, IntegersAndPieces) {
  testing::write_bytes(path("a.ibin"), testing::little_endian(3U, 2U, 1, 2, 3, 4, 5, 300));
  ConvertOptions options;
  options.input = path("a.ibin");
  options.output = path("a.u8bin");
  options.rows = 2;
  EXPECT_EQ(convert_vectors(options, silent_), 2U);
  EXPECT_EQ(testing::read_bytes(path("a.u8bin")).substr(8), "\x01\x02\x03\x04");
  options.rows.reset();
  options.first = 1;
  EXPECT_FAILS(convert_vectors(options, silent_), io::DataError, "row 1", "300");
  options.first = 4;
  EXPECT_FAILS(convert_vectors(options, silent_), io::UsageError, "--first 4");
  EXPECT_FAILS(convert(testing::example("queries.npy"), "b.ibin"), io::UsageError, "floats");
  EXPECT_FAILS(convert(testing::example("queries.npy"), "b.hdf5"), io::UsageError, "HDF5");
  EXPECT_EQ(names(), (std::vector<std::string>{"a.ibin", "a.u8bin"}));
}

}  // namespace
}  // namespace turboquant::tools
