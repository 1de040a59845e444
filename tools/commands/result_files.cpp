#include "tools/commands/result_files.h"

#include "tools/io/errors.h"

namespace turboquant::tools {
namespace {

std::unique_ptr<io::VectorWriter> open_writer(const std::string& path, io::Element wanted,
                                              std::uint64_t queries, std::size_t k) {
  if (path.empty()) return nullptr;
  const io::Format format = io::guess_format(path);
  const io::Element element = io::element_for(format, wanted);
  if (io::is_float(element) != io::is_float(wanted) || io::element_size(element) < 4) {
    throw io::UsageError(path + ": " + io::format_name(format) + " does not hold " +
                         (io::is_float(wanted) ? "scores; use .fbin, .fvecs or .npy"
                                               : "ids; use .ibin, .ivecs or .npy"));
  }
  return std::make_unique<io::VectorWriter>(path, format, element, queries, k);
}

}  // namespace

ResultFiles::ResultFiles(const std::string& ids_path, const std::string& scores_path,
                         std::uint64_t queries, std::size_t k)
    : ids_(open_writer(ids_path, io::Element::kI8, queries, k)),
      scores_(open_writer(scores_path, io::Element::kF4, queries, k)) {}

void ResultFiles::append(const std::int64_t* ids, const float* scores, std::size_t n) {
  if (ids_) ids_->append(ids, n);
  if (scores_) scores_->append(scores, n);
}

void ResultFiles::commit() {
  if (scores_) scores_->commit();
  if (ids_) ids_->commit();
}

}  // namespace turboquant::tools
