#include "tools/commands/build.h"

#include <faiss/IndexIVF.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <vector>

#include "tools/commands/checkpoint.h"
#include "tools/commands/index_file.h"
#include "tools/commands/index_tree.h"
#include "tools/commands/memory.h"
#include "tools/commands/sampling.h"
#include "tools/io/errors.h"
#include "tools/io/ids_file.h"
#include "tools/io/interrupt.h"

namespace turboquant::tools {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr std::uint64_t kTrainSeed = 20'240'601;
constexpr std::uint64_t kBatchBytes = std::uint64_t{64} << 20;
constexpr std::size_t kDefaultTrainRows = 65'536;
constexpr std::size_t kTrainRowsPerList = 64;

class Builder {
 public:
  Builder(const BuildOptions& options, Progress& progress)
      : options_(options),
        progress_(progress),
        reader_(io::open_vectors(options.input, options.format, options.dataset)) {}

  BuildReport run() {
    const auto start = Clock::now();
    check_input();
    index_ = make_index();
    if (options_.resume && has_graph(*index_)) {
      throw io::UsageError("--resume: the graph of '" + options_.factory +
                           "' depends on random numbers that no index file keeps");
    }
    choose_batch();
    check_memory_need();
    const Checkpoint checkpoint(options_.output, describe_build());
    BuildReport report;
    if (options_.resume) report.resumed_at = take_up(checkpoint);
    if (!index_->is_trained) {
      train();
      if (options_.resume) checkpoint.save(*index_);
    }
    add(checkpoint);
    progress_.begin("write", reader_->rows());
    try {
      save_index(*index_, options_.output, {options_.pack});
    } catch (const io::Interrupted&) {
      stop(checkpoint, reader_->rows());
    }
    progress_.update(reader_->rows());
    progress_.end();
    if (options_.resume) checkpoint.remove();
    report.rows = reader_->rows();
    report.dimension = reader_->dimension();
    report.description = describe(*index_);
    struct stat status {};
    if (::stat(options_.output.c_str(), &status) == 0) {
      report.file_bytes = static_cast<std::uint64_t>(status.st_size);
    }
    report.seconds = seconds_since(start);
    return report;
  }

 private:
  void check_input() {
    if (!options_.ids.empty()) {
      ids_ = io::read_ids(options_.ids);
      if (ids_.size() != reader_->rows()) {
        throw io::DataError(options_.ids + ": holds " + std::to_string(ids_.size()) + " ids, " +
                            reader_->name() + " holds " + std::to_string(reader_->rows()) +
                            " rows");
      }
    }
  }

  std::unique_ptr<faiss::Index> make_index() {
    const auto metric =
        options_.metric == SearchMetric::kL2 ? faiss::METRIC_L2 : faiss::METRIC_INNER_PRODUCT;
    const std::string factory =
        (options_.metric == SearchMetric::kCosine ? "L2norm," : "") + options_.factory;
    const int dimension = static_cast<int>(reader_->dimension());
    auto index = tools::make_index(dimension, factory, metric);
    if (!ids_.empty() && !takes_ids(*index)) {
      index = tools::make_index(dimension, "IDMap," + factory, metric);
    }
    if (ids_.empty() && parts_of(*index).has_ids) {
      throw io::UsageError("factory string '" + options_.factory +
                           "' holds an IDMap, which needs --ids");
    }
    return index;
  }

  void choose_batch() {
    const std::uint64_t row_bytes = reader_->dimension() * sizeof(float);
    std::uint64_t bytes = kBatchBytes;
    if (options_.memory_limit > 0) bytes = std::min(bytes, options_.memory_limit / 8);
    batch_ = options_.batch_rows > 0
                 ? options_.batch_rows
                 : static_cast<std::size_t>(std::max<std::uint64_t>(1, bytes / row_bytes));
    const std::uint64_t rows = std::max<std::uint64_t>(reader_->rows(), 1);
    if (needs_single_add(*index_)) batch_ = static_cast<std::size_t>(rows);
    batch_ = static_cast<std::size_t>(std::min<std::uint64_t>(batch_, rows));
  }

  void check_memory_need() const {
    if (options_.memory_limit == 0) return;
    const std::uint64_t batch = batch_ * reader_->dimension() * sizeof(float);
    const std::uint64_t index = reader_->rows() * vector_bytes(*index_).value_or(0);
    const std::uint64_t need = resident_bytes() + batch + index;
    if (need <= options_.memory_limit) return;
    throw io::UsageError("--memory-limit " + format_size(options_.memory_limit) + ": about " +
                         format_size(need) + " are needed (" + format_size(index) +
                         " for the index, " + format_size(batch) + " for a batch)");
  }

  void check_memory_use(std::uint64_t done) const {
    if (options_.memory_limit == 0) return;
    const std::uint64_t used = resident_bytes();
    if (used <= options_.memory_limit) return;
    throw io::UsageError("--memory-limit " + format_size(options_.memory_limit) + ": " +
                         format_size(used) + " in use after " + std::to_string(done) + " rows");
  }

  nlohmann::json describe_build() const {
    nlohmann::json build = {{"input", file_identity(options_.input)},
                            {"rows", reader_->rows()},
                            {"dimension", reader_->dimension()},
                            {"dataset", reader_->name()},
                            {"factory", options_.factory},
                            {"metric", metric_name(options_.metric)},
                            {"train_size", options_.train_size},
                            {"batch_rows", batch_},
                            {"ids", nullptr}};
    if (!options_.ids.empty()) build["ids"] = file_identity(options_.ids);
    return build;
  }

  // Rows that the checkpoint holds.
  std::uint64_t take_up(const Checkpoint& checkpoint) {
    auto found = checkpoint.load();
    if (!found) return 0;
    const auto done = static_cast<std::uint64_t>(found->ntotal);
    if (found->d != index_->d || done > reader_->rows() ||
        (done % batch_ != 0 && done != reader_->rows())) {
      throw io::DataError(checkpoint.index_path() + ": holds " + std::to_string(done) +
                          " rows of dimension " + std::to_string(found->d) +
                          ", which is no state of this build; remove it to start over");
    }
    index_ = std::move(found);
    progress_.note("going on after row " + std::to_string(done) + " of " +
                   std::to_string(reader_->rows()));
    return done;
  }

  std::size_t train_rows() const {
    std::uint64_t rows = options_.train_size;
    if (rows == 0) {
      rows = kDefaultTrainRows;
      if (const auto* ivf = dynamic_cast<faiss::IndexIVF*>(parts_of(*index_).core)) {
        rows = std::max<std::uint64_t>(rows, kTrainRowsPerList * ivf->nlist);
      }
      if (options_.memory_limit > 0) {
        const std::uint64_t row_bytes = reader_->dimension() * sizeof(float);
        rows = std::min(rows, options_.memory_limit / 4 / row_bytes);
      }
    }
    return static_cast<std::size_t>(std::min(rows, reader_->rows()));
  }

  void train() {
    const std::size_t n = train_rows();
    if (n == 0)
      throw io::DataError(reader_->name() + ": no rows to train '" + options_.factory + "' on");
    progress_.begin("train", n);
    const std::vector<float> sample = read_sample(*reader_, n, kTrainSeed);
    io::check_interrupt();
    index_->train(static_cast<std::int64_t>(n), sample.data());
    io::check_interrupt();
    progress_.update(n);
    progress_.end();
  }

  void add(const Checkpoint& checkpoint) {
    const std::uint64_t rows = reader_->rows();
    auto done = static_cast<std::uint64_t>(index_->ntotal);
    progress_.begin("add", rows, done);
    reserve();
    std::vector<float> batch(batch_ * reader_->dimension());
    auto saved = Clock::now();
    double save_cost = 0;
    while (done < rows) {
      if (io::interrupt_signal() != 0) stop(checkpoint, done);
      const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(batch_, rows - done));
      io::read_finite(*reader_, done, n, batch.data());
      add_rows(batch.data(), n, done);
      done += n;
      progress_.update(done);
      check_memory_use(done);
      // Never more than a tenth of the time goes into checkpoints.
      const double pause = std::max(options_.checkpoint_seconds, 10 * save_cost);
      const bool due = options_.checkpoint_seconds <= 0 || seconds_since(saved) >= pause;
      if (options_.resume && due && done < rows) {
        const auto start = Clock::now();
        try {
          checkpoint.save(*index_);
        } catch (const io::Interrupted&) {
          stop(checkpoint, done);
        }
        saved = Clock::now();
        save_cost = seconds_since(start);
      }
    }
    progress_.end();
  }

  void add_rows(const float* x, std::size_t n, std::uint64_t first) {
    const auto count = static_cast<std::int64_t>(n);
    if (ids_.empty()) {
      index_->add(count, x);
    } else {
      index_->add_with_ids(count, x, ids_.data() + first);
    }
  }

  // Called on a signal, with whole batches in the index.
  [[noreturn]] void stop(const Checkpoint& checkpoint, std::uint64_t done) {
    const int signal = io::interrupt_signal();
    if (options_.resume) {
      io::clear_interrupt();  // so that the checkpoint can be written
      checkpoint.save(*index_);
      progress_.note("stopped after row " + std::to_string(done) +
                     "; the same command goes on from there");
    }
    throw io::Interrupted(signal);
  }

  // Growing by doubling would need the memory of the codes twice over.
  void reserve() { reserve_codes(*parts_of(*index_).core, reader_->rows()); }

  const BuildOptions& options_;
  Progress& progress_;
  std::unique_ptr<io::VectorReader> reader_;
  std::vector<std::int64_t> ids_;
  std::unique_ptr<faiss::Index> index_;
  std::size_t batch_ = 0;
};

}  // namespace

BuildReport build_index(const BuildOptions& options, Progress& progress) {
  return Builder(options, progress).run();
}

}  // namespace turboquant::tools
