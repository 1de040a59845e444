// Exact scores of single rows of the index that refines another: floats, half floats and FAISS's
// codes of 8 bits by our kernels, whose speed does not depend on how FAISS was compiled, and all
// else by FAISS.
#pragma once

#include <faiss/Index.h>
#include <faiss/impl/DistanceComputer.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernel_table.h"
#include "turboquant/quantizer.h"

namespace turboquant {

/// One query at a time; one object per thread.
class RefineRows {
 public:
  /// index: trained, of metric inner product or L2; borrowed.
  explicit RefineRows(const faiss::Index& index);
  ~RefineRows();

  void set_query(const float* query);

  /// Asks for a row that will be scored soon.
  void fetch(std::int64_t row) const;

  /// row: below the index's ntotal.
  float score(std::int64_t row);

 private:
  enum class Kind { kFloats, kHalves, kBytes, kOther };

  void take_codes(const std::uint8_t* codes, std::size_t code_size, std::size_t bytes);
  float score_bytes(const std::uint8_t* code) const;
  float score_floats(const float* x);

  const std::size_t ntotal_;
  const Metric metric_;
  const std::size_t d_;
  const kernels::KernelTable& kernels_;
  Kind kind_ = Kind::kOther;
  const std::uint8_t* codes_ = nullptr;
  std::size_t code_size_ = 0;
  const float* query_ = nullptr;
  std::vector<float> row_;           // kHalves: decoded; kL2: the difference
  std::vector<float> step_, start_;  // kBytes: value i is start + step * (code - 128)
  std::vector<float> factors_;       // kBytes: the query times step, or less start
  float offset_ = 0;                 // kBytes: product of the query and start
  std::unique_ptr<faiss::DistanceComputer> other_;
};

}  // namespace turboquant
