// The command line in this process: exit codes and messages.
#include "tools/commands/cli.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/tools/test_files.h"
#include "tools/commands/exit_codes.h"

namespace turboquant::tools {
namespace {

class Cli : public testing::FolderTest {
 protected:
  int run(const std::vector<std::string>& arguments) {
    std::vector<const char*> argv = {"turboquant-index"};
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    std::ostringstream out;
    std::ostringstream err;
    const int code = run_turboquant_index(static_cast<int>(argv.size()), argv.data(), out, err);
    out_ = out.str();
    err_ = err.str();
    return code;
  }
  bool says(const std::string& part) const { return err_.find(part) != std::string::npos; }

  std::string out_;
  std::string err_;
};

TEST_F(Cli, Help) {
  EXPECT_EQ(run({"--help"}), kExitOk);
  for (const char* word :
       {"build", "search", "eval", "info", "ground-truth", "convert", "repack", "Exit codes"}) {
    EXPECT_NE(out_.find(word), std::string::npos) << word;
  }
  EXPECT_EQ(run({"build", "--help"}), kExitOk);
  EXPECT_NE(out_.find("--resume"), std::string::npos);
}

TEST_F(Cli, UsageErrors) {
  EXPECT_EQ(run({}), kExitUsage);
  EXPECT_EQ(run({"paint"}), kExitUsage);
  EXPECT_EQ(run({"build"}), kExitUsage);
  EXPECT_TRUE(says("--input")) << err_;
  const std::string base = testing::example("base.npy");
  EXPECT_EQ(run({"build", "-i", base, "-o", path("x"), "--factory", "TQ3", "--metric", "l3"}),
            kExitUsage);
  EXPECT_EQ(run({"build", "-i", base, "-o", path("x"), "--factory", "TQ7"}), kExitUsage);
  EXPECT_TRUE(says("TQ7")) << err_;
  EXPECT_EQ(run({"build", "-i", base, "-o", path("x"), "--factory", "TQ3", "--memory-limit", "x"}),
            kExitUsage);
  EXPECT_EQ(run({"build", "-i", base, "-o", path("x"), "--factory", "TQ3", "--format", "csv"}),
            kExitUsage);
  EXPECT_EQ(run({"convert", "-i", base, "-o", path("x.npy"), "--dtype", "f3"}), kExitUsage);
  EXPECT_EQ(run({"convert", "-i", base, "-o", path("x.fbin"), "--dtype", "f2"}), kExitUsage);
  EXPECT_EQ(run({"convert", "-i", base, "-o", path("x.txt")}), kExitUsage);
  EXPECT_EQ(run({"build", "-i", base, "-o", path("x"), "--factory", "TQ3", "--threads", "0"}),
            kExitUsage);
  EXPECT_TRUE(names().empty());
}

TEST_F(Cli, PackedCodesAndBack) {
  const std::string base = testing::example("base.npy");
  EXPECT_EQ(run({"build", "-i", base, "-o", path("plain.tqi"), "--factory", "TQ4"}), kExitOk);
  EXPECT_EQ(run({"build", "-i", base, "-o", path("packed.tqi"), "--factory", "TQ4", "--pack"}),
            kExitOk);
  const std::string plain = testing::read_bytes(path("plain.tqi"));
  EXPECT_LT(testing::read_bytes(path("packed.tqi")).size(), plain.size());
  EXPECT_EQ(run({"repack", "--index", path("plain.tqi"), "-o", path("again.tqi")}), kExitOk);
  EXPECT_NE(out_.find(std::to_string(plain.size())), std::string::npos) << out_;
  EXPECT_EQ(testing::read_bytes(path("again.tqi")), testing::read_bytes(path("packed.tqi")));
  EXPECT_EQ(run({"repack", "--index", path("again.tqi"), "-o", path("back.tqi"), "--unpack"}),
            kExitOk);
  EXPECT_EQ(testing::read_bytes(path("back.tqi")), plain);
  EXPECT_EQ(run({"repack", "--index", path("none.tqi"), "-o", path("x.tqi")}), kExitIo);
}

TEST_F(Cli, DataAndSystemErrors) {
  testing::write_bytes(path("a.fbin"), "abc");
  EXPECT_EQ(run({"build", "-i", path("a.fbin"), "-o", path("x"), "--factory", "TQ3"}), kExitData);
  EXPECT_TRUE(says("turboquant-index: " + path("a.fbin"))) << err_;
  EXPECT_EQ(run({"build", "-i", path("b.fbin"), "-o", path("x"), "--factory", "TQ3"}), kExitIo);
  EXPECT_TRUE(says("No such file")) << err_;
  EXPECT_EQ(run({"build", "-i", testing::example("queries.npy"), "-o", path("none/x"), "--factory",
                 "TQ3"}),
            kExitIo);
  EXPECT_TRUE(says("none/x")) << err_;
  EXPECT_EQ(run({"info", path("c.tqi")}), kExitIo);
  EXPECT_EQ(run({"search", "--index", path("a.fbin"), "--queries", path("a.fbin")}), kExitData);
  EXPECT_EQ(names(), std::vector<std::string>{"a.fbin"});
}

TEST_F(Cli, BuildSearchEvalInfo) {
  const std::string base = testing::example("base.npy");
  const std::string queries = testing::example("queries.npy");
  ASSERT_EQ(run({"build", "-i", base, "--factory", "TQ3", "-o", path("x.tqi"), "--metric", "cosine",
                 "--threads", "2", "--progress", "json"}),
            kExitOk)
      << err_;
  EXPECT_NE(out_.find("L2norm,TQ3, 5000 vectors of dimension 384"), std::string::npos) << out_;
  std::istringstream lines(err_);
  int events = 0;
  for (std::string line; std::getline(lines, line); ++events) {
    EXPECT_TRUE(nlohmann::json::parse(line).contains("event"));
  }
  EXPECT_GE(events, 4);
  ASSERT_EQ(run({"search", "--index", path("x.tqi"), "--queries", queries, "-k", "2", "--limit",
                 "1", "--progress", "none", "--text", testing::example("base.txt")}),
            kExitOk);
  EXPECT_NE(out_.find("sheathe"), std::string::npos) << out_;
  ASSERT_EQ(run({"ground-truth", "--base", base, "--queries", queries, "--metric", "cosine", "-k",
                 "100", "-o", path("gt.ibin"), "--progress", "none"}),
            kExitOk);
  ASSERT_EQ(run({"eval", "--index", path("x.tqi"), "--queries", queries, "--ground-truth",
                 path("gt.ibin"), "-k", "100", "--json", "--progress", "none"}),
            kExitOk);
  const auto json = nlohmann::json::parse(out_);
  EXPECT_GT(json["k_recall_at"]["10"], 0.91);
  EXPECT_GT(json["recall_at"]["100"], 0.999);
  EXPECT_EQ(json["metric"], "cosine");
  ASSERT_EQ(run({"eval", "--index", path("x.tqi"), "--queries", queries, "--base", base, "--limit",
                 "50", "--progress", "none"}),
            kExitOk);
  EXPECT_NE(out_.find("estimate, slope"), std::string::npos) << out_;
  ASSERT_EQ(run({"info", path("x.tqi")}), kExitOk);
  EXPECT_NE(out_.find("L2norm,TQ3"), std::string::npos);
}

}  // namespace
}  // namespace turboquant::tools
