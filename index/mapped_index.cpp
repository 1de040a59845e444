#include "index/mapped_index.h"

#include <faiss/impl/io.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "index/carrier.h"
#include "index/checked_reader.h"
#include "index/checks.h"
#include "index/code_search.h"
#include "turboquant/faiss_io.h"

namespace turboquant {

FileMapping::FileMapping(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  void* memory = MAP_FAILED;
  if (file >= 0 && ::fstat(file, &status) == 0) {
    size_ = static_cast<std::size_t>(status.st_size);
    memory = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
  }
  const int error = errno;
  if (file >= 0) ::close(file);
  if (memory == MAP_FAILED) fail("cannot map " + path + ": " + std::strerror(error));
  data_ = static_cast<const std::uint8_t*>(memory);
}

FileMapping::~FileMapping() { ::munmap(const_cast<std::uint8_t*>(data_), size_); }

MappedIndex::MappedIndex(const std::string& path, bool check_codes)
    : MappedIndex([&] {
        auto file = std::make_shared<const FileMapping>(path);
        const FlatView view = view_flat_carrier(file->data(), file->size(), check_codes);
        return MappedIndex(std::move(file), view);
      }()) {}

MappedIndex::MappedIndex(std::shared_ptr<const FileMapping> file, const FlatView& view)
    : faiss::Index(static_cast<std::int64_t>(view.dimension), view.metric),
      file_(std::move(file)),
      options_(view.options),
      codec_(make_codec(static_cast<std::int64_t>(view.dimension), view.options, view.metric,
                        view.centre)),
      codes_(view.codes) {
  ntotal = view.count;
  is_trained = true;
}

void MappedIndex::add(std::int64_t, const float*) {
  fail("an index that is mapped from a file is read-only");
}

void MappedIndex::reset() { fail("an index that is mapped from a file is read-only"); }

void MappedIndex::search(std::int64_t n, const float* x, std::int64_t k, float* distances,
                         std::int64_t* labels, const faiss::SearchParameters* params) const {
  const CodeView view{codec_, options_.normalize, metric_type, codes_, ntotal};
  search_codes(view, n, x, k, distances, labels, params);
}

void MappedIndex::range_search(std::int64_t n, const float* x, float radius,
                               faiss::RangeSearchResult* result,
                               const faiss::SearchParameters* params) const {
  const CodeView view{codec_, options_.normalize, metric_type, codes_, ntotal};
  range_search_codes(view, n, x, radius, result, params);
}

void MappedIndex::reconstruct(std::int64_t key, float* x) const {
  if (key < 0 || key >= ntotal) fail("id " + std::to_string(key) + " is not in the index");
  codec_.dequantize(codes_ + static_cast<std::size_t>(key) * codec_.code_size(), 1, x);
}

bool is_flat_index_file(const std::string& path) {
  faiss::FileIOReader file(path.c_str());
  return starts_flat_index(peek(&file, kLeafPrefix));
}

std::unique_ptr<faiss::Index> map_flat_index(const std::string& path, bool check_codes) {
  return std::make_unique<MappedIndex>(path, check_codes);
}

}  // namespace turboquant
