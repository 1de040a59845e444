// The commands' helpers: sizes, samples, progress, recall.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/tools/test_files.h"
#include "tools/commands/eval.h"
#include "tools/commands/memory.h"
#include "tools/commands/progress.h"
#include "tools/commands/sampling.h"
#include "tools/io/errors.h"

namespace turboquant::tools {
namespace {

TEST(Size, ParsesUnits) {
  EXPECT_EQ(parse_size("0"), 0U);
  EXPECT_EQ(parse_size("1500000"), 1500000U);
  EXPECT_EQ(parse_size("4K"), 4096U);
  EXPECT_EQ(parse_size("512M"), 512U << 20);
  EXPECT_EQ(parse_size("2GB"), std::uint64_t{2} << 30);
  EXPECT_EQ(parse_size("1.5GiB"), std::uint64_t{3} << 29);
  EXPECT_EQ(parse_size("1T"), std::uint64_t{1} << 40);
  for (const char* bad : {"", "G", "-1", "1X", "1 G", "nan", "1e30", "2GiBs", "1KM"}) {
    EXPECT_FAILS(parse_size(bad), io::UsageError, "is not a size");
  }
  EXPECT_EQ(format_size(512), "512 B");
  EXPECT_EQ(format_size(std::uint64_t{3} << 29), "1.5 GiB");
  EXPECT_GT(resident_bytes(), 1U << 20);
}

TEST(Sample, IsDistinctSortedAndSpread) {
  const auto rows = sample_rows(1000, 100, 3);
  EXPECT_EQ(rows, sample_rows(1000, 100, 3));
  EXPECT_NE(rows, sample_rows(1000, 100, 4));
  for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i] / 10, i);
  const auto uneven = sample_rows(1003, 100, 3);
  EXPECT_EQ(std::set<std::uint64_t>(uneven.begin(), uneven.end()).size(), 100U);
  EXPECT_LT(uneven.back(), 1003U);
  const auto all = sample_rows(50, 50, 9);
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], i);
  EXPECT_TRUE(sample_rows(10, 0, 1).empty());
  EXPECT_THROW(sample_rows(10, 11, 1), std::invalid_argument);
  const auto far = sample_rows(~std::uint64_t{0}, 3, 1);
  EXPECT_TRUE(std::is_sorted(far.begin(), far.end()));
}

TEST(Sample, ReadsThoseRows) {
  const auto base = io::open_vectors(testing::example("base.npy"));
  const auto rows = sample_rows(5000, 300, 1);
  const std::vector<float> x = read_sample(*base, 300, 1);
  std::vector<float> row(384);
  for (const std::size_t i : {0U, 150U, 299U}) {
    base->read(rows[i], 1, row.data());
    EXPECT_TRUE(std::equal(row.begin(), row.end(), x.begin() + static_cast<int>(i * 384)));
  }
}

TEST(ProgressReport, JsonLines) {
  std::ostringstream out;
  Progress progress(out, ProgressMode::kJson, 0);
  progress.begin("add", 100, 20);
  progress.update(60);
  progress.note("half \"way\"");
  progress.update(100);
  progress.end();
  std::istringstream lines(out.str());
  std::vector<nlohmann::json> events;
  for (std::string line; std::getline(lines, line);) events.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(events.size(), 5U);
  EXPECT_EQ(events[0]["event"], "progress");
  EXPECT_EQ(events[0]["done"], 20);
  EXPECT_TRUE(events[0]["eta_seconds"].is_null());
  EXPECT_EQ(events[1]["done"], 60);
  EXPECT_GT(events[1]["rows_per_second"], 0);
  EXPECT_GT(events[1]["eta_seconds"], 0);
  EXPECT_EQ(events[2]["event"], "note");
  EXPECT_EQ(events[2]["message"], "half \"way\"");
  EXPECT_EQ(events[4]["event"], "done");
  EXPECT_EQ(events[4]["phase"], "add");
  EXPECT_EQ(events[4]["total"], 100);
}

TEST(ProgressReport, BarAndSilence) {
  std::ostringstream out;
  Progress bar(out, ProgressMode::kBar, 0);
  bar.begin("add", 200);
  bar.update(50);
  bar.end();
  EXPECT_NE(out.str().find(" 25%  50/200"), std::string::npos) << out.str();
  EXPECT_NE(out.str().find("rows/s"), std::string::npos);
  EXPECT_EQ(out.str().back(), '\n');

  std::ostringstream rare;
  Progress slow(rare, ProgressMode::kJson, 3600);
  slow.begin("add", 10);
  for (std::uint64_t i = 0; i < 10; ++i) slow.update(i);
  slow.end();
  const std::string text = rare.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);

  Progress silent;
  silent.begin("add", 10);
  silent.update(3);
  silent.end();
}

TEST(Recall, CountsByHand) {
  // Two queries, truth of 12, found 11.
  std::vector<std::int64_t> truth(24);
  std::vector<std::int64_t> found(22);
  for (std::size_t i = 0; i < 12; ++i) truth[i] = static_cast<std::int64_t>(i);
  for (std::size_t i = 0; i < 12; ++i) truth[12 + i] = static_cast<std::int64_t>(100 + i);
  for (std::size_t i = 0; i < 11; ++i) found[i] = static_cast<std::int64_t>(i);  // all right
  for (std::size_t i = 0; i < 11; ++i) found[11 + i] = static_cast<std::int64_t>(500 + i);
  found[11 + 10] = 100;  // the nearest, in the last place
  EvalReport report;
  count_recall(truth, 12, found, 11, report);
  EXPECT_DOUBLE_EQ(report.recall_at.at(1), 0.5);
  EXPECT_DOUBLE_EQ(report.recall_at.at(10), 0.5);
  EXPECT_EQ(report.recall_at.count(100), 0U);
  EXPECT_EQ(report.recall_at.count(11), 0U);
  EXPECT_DOUBLE_EQ(report.k_recall_at.at(1), 0.5);
  EXPECT_DOUBLE_EQ(report.k_recall_at.at(10), 10.0 / 20);
  EXPECT_DOUBLE_EQ(report.k_recall_at.at(11), 12.0 / 22);
}

TEST(Recall, MissingTruthIsNotCounted) {
  EvalReport report;
  count_recall({7, -1, -1, 8, -1, -1}, 3, {7, -1, 9, -1, -1, -1}, 3, report);
  EXPECT_DOUBLE_EQ(report.k_recall_at.at(3), 0.5);
  EXPECT_DOUBLE_EQ(report.recall_at.at(1), 0.5);
}

}  // namespace
}  // namespace turboquant::tools
