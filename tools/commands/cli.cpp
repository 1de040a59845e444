#include "tools/commands/cli.h"

#include <faiss/impl/AuxIndexStructures.h>
#include <omp.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "tools/commands/build.h"
#include "tools/commands/convert.h"
#include "tools/commands/eval.h"
#include "tools/commands/exit_codes.h"
#include "tools/commands/ground_truth.h"
#include "tools/commands/index_file.h"
#include "tools/commands/info.h"
#include "tools/commands/memory.h"
#include "tools/commands/search.h"
#ifdef TURBOQUANT_WITH_SERVICE
#include "tools/commands/remote_cli.h"
#endif
#include "tools/io/byte_source.h"
#include "tools/io/errors.h"
#include "tools/io/interrupt.h"

namespace turboquant::tools {
namespace {

constexpr const char* kProgram = "turboquant-index";
constexpr const char* kFooter =
    "Formats by extension: .npy .fvecs .bvecs .ivecs .fbin .u8bin .i8bin .ibin .hdf5 .h5\n"
    "Exit codes: 0 done, 1 internal, 2 usage, 3 input data, 4 input/output, 130 interrupted, "
    "143 terminated";

// Options that several commands share, as they are typed.
struct Common {
  int threads = 0;
  std::string progress = "auto";
  double progress_interval = -1;
  std::string format;
  std::string metric = "ip";
  std::string memory_limit;
  std::string element;
  std::string output_format;
  bool json = false;
};

// Lets long trainings inside FAISS end early; the caller knows why from interrupt_signal().
struct StopOnSignal final : faiss::InterruptCallback {
  bool want_interrupt() override { return io::interrupt_signal() != 0; }
};

class CommandLine {
 public:
  CommandLine(std::ostream& out, std::ostream& err) : out_(out), err_(err) {
    app_.description("Builds, searches and measures vector indexes from files.");
    app_.name(kProgram);
    app_.footer(kFooter);
    app_.require_subcommand(1);
    add_build();
    add_search();
    add_eval();
    add_ground_truth();
    add_convert();
    add_repack();
    add_info();
#ifdef TURBOQUANT_WITH_SERVICE
    remote_ = std::make_unique<RemoteCommands>(
        app_, RemoteCommands::Host{[this](CLI::App* sub, const std::function<void()>& work) {
                                     sub->callback([this, work] { command_ = work; });
                                   },
                                   [this](CLI::App* sub) { add_common(sub); },
                                   [this] { return progress(); }, &out_});
#endif
  }

  int run(int argc, const char* const* argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      return app_.exit(error, out_, err_) == 0 ? kExitOk : kExitUsage;
    }
    if (common_.threads > 0) omp_set_num_threads(common_.threads);
    command_();
    return kExitOk;
  }

 private:
  CLI::App* command(const std::string& name, const std::string& description,
                    const std::function<void()>& work) {
    CLI::App* sub = app_.add_subcommand(name, description);
    sub->callback([this, work] { command_ = work; });
    return sub;
  }

  void add_common(CLI::App* sub) {
    sub->add_option("--threads", common_.threads, "threads to use (default: all)")
        ->check(CLI::Range(1, 4096));
    sub->add_option("--progress", common_.progress,
                    "auto (a bar on a terminal, else JSON lines), bar, json or none")
        ->check(CLI::IsMember({"auto", "bar", "json", "none"}));
    sub->add_option("--progress-interval", common_.progress_interval,
                    "seconds between reports (default: 0.1 for a bar, 1 for JSON)")
        ->check(CLI::NonNegativeNumber);
  }

  void add_format(CLI::App* sub, const std::string& what) {
    sub->add_option("--format", common_.format, "format of " + what + ", whatever the extension");
  }

  void add_metric(CLI::App* sub) {
    sub->add_option("--metric", common_.metric, "ip (default), l2 or cosine")
        ->check(CLI::IsMember({"ip", "l2", "cosine"}));
  }

  void add_build() {
    CLI::App* sub = command("build", "vectors to an index file", [this] { build(); });
    sub->add_option("-i,--input", build_.input, "vectors")->required();
    sub->add_option("--factory", build_.factory, "FAISS factory string, such as TQ3")->required();
    sub->add_option("-o,--output", build_.output, "index file to write")->required();
    add_metric(sub);
    sub->add_option("--ids", build_.ids, "one id a row: .npy, .ibin or text lines");
    add_format(sub, "the input");
    sub->add_option("--dataset", build_.dataset, "of an HDF5 input (default: train)");
    sub->add_option("--memory-limit", common_.memory_limit, "such as 2G: refuse to use more");
    sub->add_option("--train-size", build_.train_size, "rows to train on (default: chosen)");
    sub->add_option("--batch-rows", build_.batch_rows, "rows added at a time (default: chosen)");
    sub->add_flag("--resume", build_.resume,
                  "keep checkpoints next to the output, and go on from one that is there");
    sub->add_option("--checkpoint-seconds", build_.checkpoint_seconds,
                    "time between checkpoints (default: 60; 0: after every batch)")
        ->check(CLI::NonNegativeNumber);
    sub->add_flag("--pack", build_.pack, "store the codes at about their entropy");
    add_common(sub);
  }

  void add_search() {
    CLI::App* sub = command("search", "neighbours of every query", [this] { search(); });
    sub->add_option("--index", search_.index, "index file")->required();
    sub->add_option("--queries", search_.queries, "vectors")->required();
    sub->add_option("-k", search_.k, "neighbours a query (default: 10)");
    sub->add_option("-o,--output", search_.output, "ids to write: .ibin, .ivecs or .npy");
    sub->add_option("--distances", search_.distances, "scores to write: .fbin, .fvecs or .npy");
    sub->add_option("--text", search_.text, "text with a line a row, for a readable table");
    sub->add_option("--query-text", search_.query_text, "text with a line a query");
    sub->add_option("--limit", search_.limit, "only the first so many queries");
    sub->add_option("--param", search_.parameters,
                    "search parameters, such as nprobe=16 or prune_confidence=0.999");
    add_format(sub, "the queries");
    add_common(sub);
  }

  void add_eval() {
    CLI::App* sub = command("eval", "recall, speed and size of an index", [this] { eval(); });
    sub->add_option("--index", eval_.index, "index file")->required();
    sub->add_option("--queries", eval_.queries, "vectors")->required();
    sub->add_option("--base", eval_.base, "the indexed vectors");
    sub->add_option("--ids", eval_.ids, "ids of the base's rows, if built with them");
    sub->add_option("--ground-truth", eval_.ground_truth,
                    "true neighbours: .ivecs, .ibin, .npy or HDF5");
    sub->add_option("-k", eval_.k, "neighbours a query (default: 10)");
    sub->add_option("--limit", eval_.limit, "only the first so many queries");
    sub->add_option("--param", eval_.parameters,
                    "search parameters, such as nprobe=16 or prune_confidence=0.999");
    sub->add_flag("--json", common_.json, "print JSON");
    add_format(sub, "queries and base");
    add_common(sub);
  }

  void add_ground_truth() {
    CLI::App* sub =
        command("ground-truth", "true neighbours by exact search", [this] { ground_truth(); });
    sub->add_option("--base", truth_.base, "vectors")->required();
    sub->add_option("--queries", truth_.queries, "vectors")->required();
    sub->add_option("-o,--output", truth_.output, "rows to write: .ibin, .ivecs or .npy")
        ->required();
    sub->add_option("--distances", truth_.distances, "scores to write: .fbin, .fvecs or .npy");
    sub->add_option("-k", truth_.k, "neighbours a query (default: 100)");
    add_metric(sub);
    add_format(sub, "queries and base");
    add_common(sub);
  }

  void add_repack() {
    CLI::App* sub =
        command("repack", "an index file to one with packed codes, or back", [this] { repack(); });
    sub->add_option("--index", repack_input_, "index file")->required();
    sub->add_option("-o,--output", repack_output_, "index file to write")->required();
    sub->add_flag("--unpack", unpack_, "write codes that are not packed");
    add_common(sub);
  }

  void add_convert() {
    CLI::App* sub = command("convert", "vectors to another format", [this] { convert(); });
    sub->add_option("-i,--input", convert_.input, "vectors")->required();
    sub->add_option("-o,--output", convert_.output, "vectors to write")->required();
    add_format(sub, "the input");
    sub->add_option("--output-format", common_.output_format, "whatever the extension");
    sub->add_option("--dataset", convert_.dataset, "of an HDF5 input (default: train)");
    sub->add_option("--dtype", common_.element, "element type of a .npy output: f2, f4, i8 ...");
    sub->add_option("--first", convert_.first, "first row (default: 0)");
    sub->add_option("--rows", convert_.rows, "at most so many rows");
    add_common(sub);
  }

  void add_info() {
    CLI::App* sub = command("info", "what a file holds",
                            [this] { print_info(info_path_, common_.json, out_); });
    sub->add_option("file", info_path_, "an index or vectors")->required();
    sub->add_flag("--json", common_.json, "print JSON");
  }

  static std::optional<io::Format> parse_format(const std::string& name) {
    if (name.empty()) return std::nullopt;
    const auto format = io::parse_format(name);
    if (!format) throw io::UsageError("unknown format '" + name + "'");
    return format;
  }

  SearchMetric metric() const {
    if (common_.metric == "l2") return SearchMetric::kL2;
    return common_.metric == "ip" ? SearchMetric::kInnerProduct : SearchMetric::kCosine;
  }

  Progress progress() const {
    ProgressMode mode = ProgressMode::kNone;
    if (common_.progress == "bar") mode = ProgressMode::kBar;
    if (common_.progress == "json") mode = ProgressMode::kJson;
    if (common_.progress == "auto") {
      mode = ::isatty(STDERR_FILENO) ? ProgressMode::kBar : ProgressMode::kJson;
    }
    const double usual = mode == ProgressMode::kBar ? 0.1 : 1.0;
    return {err_, mode, common_.progress_interval >= 0 ? common_.progress_interval : usual};
  }

  void build() {
    build_.format = parse_format(common_.format);
    build_.metric = metric();
    if (!common_.memory_limit.empty()) build_.memory_limit = parse_size(common_.memory_limit);
    Progress shown = progress();
    const BuildReport report = build_index(build_, shown);
    out_ << build_.output << ": " << report.description << ", " << report.rows
         << " vectors of dimension " << report.dimension << ", " << format_size(report.file_bytes)
         << ", " << report.seconds << " s";
    if (report.resumed_at > 0) out_ << ", resumed after row " << report.resumed_at;
    out_ << "\n";
  }

  void search() {
    search_.format = parse_format(common_.format);
    Progress shown = progress();
    const SearchReport report = search_index(search_, out_, shown);
    err_ << kProgram << ": " << report.queries << " queries in " << report.seconds << " s\n";
  }

  void eval() {
    eval_.format = parse_format(common_.format);
    Progress shown = progress();
    const EvalReport report = evaluate_index(eval_, shown);
    common_.json ? print_report_json(report, out_) : print_report(report, out_);
  }

  void ground_truth() {
    truth_.format = parse_format(common_.format);
    truth_.metric = metric();
    Progress shown = progress();
    const std::size_t queries = write_ground_truth(truth_, shown);
    out_ << truth_.output << ": " << truth_.k << " neighbours of " << queries << " queries\n";
  }

  void repack() {
    save_index(*load_index(repack_input_), repack_output_, {!unpack_});
    out_ << repack_output_ << ": " << io::open_file(repack_output_)->size() << " bytes, from "
         << io::open_file(repack_input_)->size() << "\n";
  }

  void convert() {
    convert_.format = parse_format(common_.format);
    convert_.output_format = parse_format(common_.output_format);
    if (!common_.element.empty()) {
      convert_.element = io::parse_element(common_.element);
      if (!convert_.element) throw io::UsageError("unknown element type " + common_.element);
    }
    Progress shown = progress();
    const std::uint64_t rows = convert_vectors(convert_, shown);
    out_ << convert_.output << ": " << rows << " rows\n";
  }

  std::ostream& out_;
  std::ostream& err_;
  CLI::App app_;
  std::function<void()> command_;
#ifdef TURBOQUANT_WITH_SERVICE
  std::unique_ptr<RemoteCommands> remote_;
#endif
  Common common_;
  BuildOptions build_;
  SearchOptions search_;
  EvalOptions eval_;
  GroundTruthOptions truth_;
  ConvertOptions convert_;
  std::string repack_input_;
  std::string repack_output_;
  bool unpack_ = false;
  std::string info_path_;
};

}  // namespace

int run_turboquant_index(int argc, const char* const* argv, std::ostream& out, std::ostream& err) {
  const auto fail = [&](const std::string& message, int code) {
    err << kProgram << ": " << message << std::endl;
    return code;
  };
  faiss::InterruptCallback::instance = std::make_unique<StopOnSignal>();
  try {
    const int code = CommandLine(out, err).run(argc, argv);
    out.flush();
    if (!out) return fail("cannot write the results", kExitIo);
    return code;
  } catch (const io::Interrupted& stop) {
    return fail(stop.what(), 128 + stop.signal);
  } catch (const io::UsageError& error) {
    return fail(error.what(), kExitUsage);
  } catch (const io::DataError& error) {
    return fail(error.what(), kExitData);
  } catch (const io::IoError& error) {
    return fail(error.what(), kExitIo);
  } catch (const std::bad_alloc&) {
    return fail("out of memory", kExitInternal);
  } catch (const std::exception& error) {
    if (const int signal = io::interrupt_signal()) {
      return fail(io::Interrupted(signal).what(), 128 + signal);
    }
    return fail(error.what(), kExitInternal);
  }
}

}  // namespace turboquant::tools
