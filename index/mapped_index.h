// A flat index whose codes lie in a mapped file (turboquant::map_flat_index).
#pragma once

#include <faiss/Index.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "turboquant/index_turboquant.h"

namespace turboquant {

/// Read-only memory over a whole file.
class FileMapping {
 public:
  /// Throws faiss::FaissException when the file cannot be mapped.
  explicit FileMapping(const std::string& path);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  const std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

struct FlatView;

struct MappedIndex : faiss::Index {
  MappedIndex(const std::string& path, bool check_codes);

  const IndexOptions& options() const { return options_; }

  void add(std::int64_t n, const float* x) override;
  void reset() override;
  void search(std::int64_t n, const float* x, std::int64_t k, float* distances,
              std::int64_t* labels, const faiss::SearchParameters* params = nullptr) const override;
  void range_search(std::int64_t n, const float* x, float radius, faiss::RangeSearchResult* result,
                    const faiss::SearchParameters* params = nullptr) const override;
  void reconstruct(std::int64_t key, float* x) const override;

 private:
  MappedIndex(std::shared_ptr<const FileMapping> file, const FlatView& view);

  std::shared_ptr<const FileMapping> file_;
  IndexOptions options_;
  Quantizer codec_;
  const std::uint8_t* codes_;
};

/// True when the file starts as the file of a flat index does.
bool is_flat_index_file(const std::string& path);

}  // namespace turboquant
