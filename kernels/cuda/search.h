// The k best rows of each query, on the device. Plain C++: no CUDA header is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>

#include "kernels/cuda/buffer.h"
#include "kernels/cuda/codec.h"
#include "kernels/cuda/round_plan.h"

namespace turboquant::cuda {

/// The largest k of a search.
inline constexpr std::size_t kMostResults = 2048;

/// Everything but the rounds and the queries' preparation; pointers of the device,
/// where nothing else is said.
struct SearchTask {
  const Codec* codec = nullptr;
  kernels::CodeTable levels{};  // readings of a code, as CodecTables has them
  kernels::CodeTable signs{};
  const kernels::TrellisTable* trellis = nullptr;  // of trellis codes: how to read them
  bool two_parts = false;
  bool l2 = false;
  RowPointers rows;
  std::size_t n = 0;                    // rows: at most 2^32 - 1
  const std::uint32_t* mask = nullptr;  // bit i % 32 of word i / 32: row i counts; null for all
  const float* queries = nullptr;       // [n_queries][d]
  std::size_t n_queries = 0;
  std::size_t k = 0;            // 1 to kMostResults
  float* scores = nullptr;      // [n_queries][k], of the device or a PinnedBuffer
  std::int64_t* ids = nullptr;  // [n_queries][k], likewise
};

/// Working memory of searches on one device, kept from one to the next. One search at a time.
class Searcher {
 public:
  static constexpr std::size_t kNoQuery = ~std::size_t{0};

  explicit Searcher(int device);

  /// Same scores and order as search_topk of quantizer/scanner.h. Waits for the result. Returns the
  /// first query that holds NaN or infinity (results are then of no use), else kNoQuery. Throws
  /// Error or OutOfMemory.
  std::size_t search(const SearchTask& task, StreamPointer stream);

 private:
  struct Batch;
  bool run(const SearchTask& task, const Batch& batch, StreamPointer stream);
  void rounds(const SearchTask& task, const Batch& batch, bool safe, StreamPointer stream);
  void wait(StreamPointer stream);

  /// Blocks of a kernel that the device holds at once.
  std::size_t resident_blocks(const void* kernel, std::size_t warps, std::size_t shared);

  int device_;
  std::map<std::pair<const void*, std::size_t>, std::size_t> resident_;
  PinnedBuffer report_;
  std::uint32_t number_ = 0;  // of the last report that was asked for
  bool clean_ = false;        // flags_ are as a search expects them
  Buffer operands_, factors_, keys_, state_, flags_;
};

}  // namespace turboquant::cuda
