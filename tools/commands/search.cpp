#include "tools/commands/search.h"

#include <faiss/AutoTune.h>
#include <faiss/impl/FaissException.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tools/commands/index_file.h"
#include "tools/commands/index_tree.h"
#include "tools/commands/result_files.h"
#include "tools/io/errors.h"
#include "tools/io/interrupt.h"
#include "tools/io/text_lines.h"
#include "turboquant/index_turboquant.h"
#include "turboquant/index_two_level.h"

namespace turboquant::tools {
namespace {

constexpr std::size_t kBatch = 1024;

std::unique_ptr<io::TextLines> open_text(const std::string& path) {
  return path.empty() ? nullptr : std::make_unique<io::TextLines>(path);
}

// Query by query: its text or number, then rank, score, row and the row's text.
class Table {
 public:
  Table(std::ostream& out, const SearchOptions& options)
      : out_(out), text_(open_text(options.text)), query_text_(open_text(options.query_text)) {}

  void print(std::uint64_t query, const std::int64_t* ids, const float* scores, std::size_t k) {
    out_ << "query " << query;
    if (query_text_ && query < query_text_->size()) {
      out_ << ": " << query_text_->line(static_cast<std::size_t>(query));
    }
    out_ << "\n";
    for (std::size_t rank = 0; rank < k && ids[rank] >= 0; ++rank) {
      std::array<char, 80> line{};
      std::snprintf(line.data(), line.size(), "  %3zu  %9.4f  %8lld", rank + 1,
                    double{scores[rank]}, static_cast<long long>(ids[rank]));
      out_ << line.data();
      const auto row = static_cast<std::size_t>(ids[rank]);
      if (text_ && row < text_->size()) out_ << "  " << text_->line(row);
      out_ << "\n";
    }
    out_ << "\n";
  }

 private:
  std::ostream& out_;
  std::unique_ptr<io::TextLines> text_;
  std::unique_ptr<io::TextLines> query_text_;
};

const std::string kPruneConfidence = "prune_confidence=";
const std::string kFactor = "k_factor_rf=";

void set_prune_confidence(faiss::Index& index, const std::string& value) {
  auto* codes = dynamic_cast<IndexTurboQuant*>(parts_of(index).core);
  if (codes == nullptr) {
    throw io::UsageError("--param prune_confidence: the index is no flat TurboQuant index");
  }
  char* end = nullptr;
  codes->prune_confidence = std::strtof(value.c_str(), &end);
  if (value.empty() || *end != '\0' ||
      !(codes->prune_confidence > 0.5f && codes->prune_confidence < 1)) {
    throw io::UsageError("--param prune_confidence: '" + value +
                         "' is not a number between 1/2 and 1");
  }
}

}  // namespace

void set_search_parameters(faiss::Index& index, const std::string& parameters) {
  std::string of_faiss;
  std::istringstream list(parameters);
  for (std::string one; std::getline(list, one, ',');) {
    if (one.rfind(kPruneConfidence, 0) == 0) {
      set_prune_confidence(index, one.substr(kPruneConfidence.size()));
    } else if (one.rfind(kFactor, 0) == 0 &&
               set_k_factor(index, std::strtof(one.c_str() + kFactor.size(), nullptr))) {
      continue;
    } else {
      of_faiss += (of_faiss.empty() ? "" : ",") + one;
    }
  }
  if (of_faiss.empty()) return;
  try {
    faiss::ParameterSpace().set_index_parameters(&index, of_faiss.c_str());
  } catch (const faiss::FaissException& error) {
    throw io::UsageError("--param '" + parameters + "': " + error.what());
  }
}

void require_dimension(const io::VectorReader& queries, const faiss::Index& index) {
  if (queries.dimension() == static_cast<std::size_t>(index.d)) return;
  throw io::DataError(queries.name() + ": its dimension is " + std::to_string(queries.dimension()) +
                      ", that of the index is " + std::to_string(index.d));
}

SearchReport search_index(const SearchOptions& options, std::ostream& out, Progress& progress) {
  if (options.k == 0) throw io::UsageError("-k must be at least 1");
  const auto queries = io::open_vectors(options.queries, options.format, io::kTestDataset);
  const auto index = load_index(options.index);
  require_dimension(*queries, *index);
  set_search_parameters(*index, options.parameters);

  SearchReport report;
  report.queries = std::min(options.limit.value_or(queries->rows()), queries->rows());
  const bool to_files = !options.output.empty() || !options.distances.empty();
  const bool to_table = !options.text.empty() || !to_files;
  ResultFiles files(options.output, options.distances, report.queries, options.k);
  Table table(out, options);

  std::vector<float> x(kBatch * queries->dimension());
  std::vector<float> scores(kBatch * options.k);
  std::vector<std::int64_t> ids(kBatch * options.k);
  Progress silent;  // a bar would run through the table
  Progress& shown = to_table ? silent : progress;
  shown.begin("search", report.queries);
  for (std::uint64_t done = 0; done < report.queries;) {
    io::check_interrupt();
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(kBatch, report.queries - done));
    io::read_finite(*queries, done, n, x.data());
    const auto start = std::chrono::steady_clock::now();
    index->search(static_cast<std::int64_t>(n), x.data(), static_cast<std::int64_t>(options.k),
                  scores.data(), ids.data());
    report.seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    files.append(ids.data(), scores.data(), n);
    for (std::size_t i = 0; to_table && i < n; ++i) {
      table.print(done + i, ids.data() + i * options.k, scores.data() + i * options.k, options.k);
    }
    done += n;
    shown.update(done);
  }
  files.commit();
  shown.end();
  return report;
}

}  // namespace turboquant::tools
