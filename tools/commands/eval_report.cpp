#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "tools/commands/eval.h"
#include "tools/commands/memory.h"

namespace turboquant::tools {
namespace {

class Lines {
 public:
  explicit Lines(std::ostream& out) : out_(out) {}
  void text(const std::string& label, const std::string& value) {
    std::array<char, 32> start{};
    std::snprintf(start.data(), start.size(), "%-22s ", label.c_str());
    out_ << start.data() << value << "\n";
  }
  void number(const std::string& label, double value, int digits, const std::string& unit = "") {
    std::array<char, 48> text_value{};
    std::snprintf(text_value.data(), text_value.size(), "%.*f", digits, value);
    text(label, text_value.data() + (unit.empty() ? "" : " " + unit));
  }

 private:
  std::ostream& out_;
};

double file_bytes_per_vector(const EvalReport& report) {
  return report.vectors > 0
             ? static_cast<double>(report.file_bytes) / static_cast<double>(report.vectors)
             : 0;
}

}  // namespace

void print_report(const EvalReport& report, std::ostream& out) {
  Lines lines(out);
  lines.text("index",
             report.index + " (" + report.description + ", " + metric_name(report.metric) + ")");
  lines.text("vectors",
             std::to_string(report.vectors) + " of dimension " + std::to_string(report.dimension));
  lines.text("queries", std::to_string(report.queries) + ", k = " + std::to_string(report.k) +
                            ", " + std::to_string(report.threads) + " threads");
  for (const auto& [rank, share] : report.recall_at) {
    lines.number("recall@" + std::to_string(rank), share, 4);
  }
  for (const auto& [depth, share] : report.k_recall_at) {
    if (depth == 1) continue;  // the same as recall@1
    std::string name = std::to_string(depth);
    name.append("-recall@").append(std::to_string(depth));
    lines.number(name, share, 4);
  }
  lines.number("one query, mean", report.latency_mean_ms, 3, "ms");
  lines.number("           p50", report.latency_p50_ms, 3, "ms");
  lines.number("           p95", report.latency_p95_ms, 3, "ms");
  lines.number("           p99", report.latency_p99_ms, 3, "ms");
  lines.number("batch", report.batch_qps, 0, "queries/s");
  if (report.vector_bytes) lines.text("bytes per vector", std::to_string(*report.vector_bytes));
  lines.number("file bytes per vector", file_bytes_per_vector(report), 1,
               "(" + format_size(report.file_bytes) + " in all)");
  if (!report.estimate) return;
  lines.number("estimate, slope", report.estimate->slope, 4);
  lines.number(
      "estimate, variance*d", report.estimate->variance_times_d, 5,
      "(" + std::to_string(report.estimate->pairs) + " pairs, " + report.estimate->method + ")");
}

void print_report_json(const EvalReport& report, std::ostream& out) {
  nlohmann::ordered_json json;
  json["index"] = report.index;
  json["description"] = report.description;
  json["metric"] = metric_name(report.metric);
  json["vectors"] = report.vectors;
  json["dimension"] = report.dimension;
  json["queries"] = report.queries;
  json["k"] = report.k;
  json["threads"] = report.threads;
  for (const auto& [rank, share] : report.recall_at) {
    json["recall_at"][std::to_string(rank)] = share;
  }
  for (const auto& [depth, share] : report.k_recall_at) {
    json["k_recall_at"][std::to_string(depth)] = share;
  }
  json["latency_ms"] = {{"mean", report.latency_mean_ms},
                        {"p50", report.latency_p50_ms},
                        {"p95", report.latency_p95_ms},
                        {"p99", report.latency_p99_ms}};
  json["batch_qps"] = report.batch_qps;
  json["bytes_per_vector"] = nullptr;
  if (report.vector_bytes) json["bytes_per_vector"] = *report.vector_bytes;
  json["file_bytes"] = report.file_bytes;
  json["file_bytes_per_vector"] = file_bytes_per_vector(report);
  json["estimate"] = nullptr;
  if (report.estimate) {
    json["estimate"] = {{"slope", report.estimate->slope},
                        {"variance_times_d", report.estimate->variance_times_d},
                        {"pairs", report.estimate->pairs},
                        {"method", report.estimate->method}};
  }
  out << json.dump(2) << "\n";
}

}  // namespace turboquant::tools
