// turboquant::GpuIndexTurboQuant: IndexTurboQuant with its codes on a CUDA device. Same codes, ids
// and score bits. Library turboquant::index_cuda, which is there in builds with CUDA.
//
//   auto on_gpu = turboquant::index_cpu_to_gpu(0, index);
//   on_gpu->search(nq, queries, k, distances, labels);
//
// x, distances and labels of add and search may be memory of the host or of the index's device,
// each for itself. Calls return when their result is there. Work goes to the default stream unless
// set_stream names another, and so follows what was put there before.
//
// Any number of threads may call const methods at once; searches then wait for one another. add,
// remove_ids, reset and set_stream need the index to themselves. Every failure is a
// faiss::FaissException; one of CUDA is a GpuError, which names the call and the device. Where the
// device's memory does not suffice it is a GpuOutOfMemory, whose message says how many bytes are
// needed, and the index is unchanged.
#pragma once

#include <faiss/Index.h>
#include <faiss/impl/FaissException.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "turboquant/index_turboquant.h"

namespace turboquant {

/// A CUDA call that failed.
struct GpuError : faiss::FaissException {
  GpuError(const std::string& message, int error_code)
      : faiss::FaissException(message), code(error_code) {}
  int code;  ///< CUDA's number for the error
};

struct GpuOutOfMemory : GpuError {
  using GpuError::GpuError;
};

/// Number of CUDA devices; 0 where there is none, or no driver.
int gpu_device_count();

struct GpuIndexTurboQuant : faiss::Index {
  /// The largest k of a search.
  static constexpr std::int64_t kMostResults = 2048;

  /// As IndexTurboQuant. device: from 0; throws where there is none.
  GpuIndexTurboQuant(int dimension, const IndexOptions& options,
                     faiss::MetricType metric = faiss::METRIC_L2, int device = 0);
  ~GpuIndexTurboQuant() override;
  GpuIndexTurboQuant(const GpuIndexTurboQuant&) = delete;
  GpuIndexTurboQuant& operator=(const GpuIndexTurboQuant&) = delete;

  const IndexOptions& options() const;
  const Quantizer& codec() const;
  int device() const;

  /// A cudaStream_t of the device, which must outlive its use here; null is the default stream.
  void set_stream(void* stream);

  /// As IndexTurboQuant::train, centre and set_centre.
  void train(std::int64_t n, const float* x) override;
  std::vector<float> centre() const;
  void set_centre(const float* centre);

  /// Makes room for n rows in all.
  void reserve(std::int64_t n);
  /// Bytes of the device that the rows take, spare room included.
  std::size_t device_bytes() const;

  /// x: [n][d]; the rows get the ids ntotal to ntotal + n - 1. At most 2^32 - 1 rows in all.
  void add(std::int64_t n, const float* x) override;

  /// distances, labels: [n][k], k from 1 to kMostResults. Of params only the selector is used,
  /// which is asked about ids from 0 to ntotal - 1, once per call.
  void search(std::int64_t n, const float* x, std::int64_t k, float* distances,
              std::int64_t* labels, const faiss::SearchParameters* params = nullptr) const override;

  void reset() override;
  /// Rows that stay move down and keep their order, as in FAISS's flat indexes.
  std::size_t remove_ids(const faiss::IDSelector& selector) override;

  /// x: [d] of the host.
  void reconstruct(std::int64_t key, float* x) const override;

  std::size_t sa_code_size() const override;
  /// bytes: [n][code_size] of the host, as IndexTurboQuant stores them; x of host or device.
  void sa_encode(std::int64_t n, const float* x, std::uint8_t* bytes) const override;
  void sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const override;

  /// Rows first to first + n - 1 to bytes [n][code_size] of the host, and rows added from such.
  void copy_codes(std::int64_t first, std::int64_t n, std::uint8_t* bytes) const;
  void add_codes(std::int64_t n, const std::uint8_t* bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Copies; the source stays as it is.
std::unique_ptr<GpuIndexTurboQuant> index_cpu_to_gpu(int device, const IndexTurboQuant& index);
std::unique_ptr<IndexTurboQuant> index_gpu_to_cpu(const GpuIndexTurboQuant& index);

/// Searches an index that stays in the host's memory, of any size, by way of the device: its rows
/// go there in parts of at most device_bytes (0: half of what is free), one after another. Results
/// are those of index.search; x, distances and labels are of the host.
void search_in_parts(int device, const IndexTurboQuant& index, std::int64_t n, const float* x,
                     std::int64_t k, float* distances, std::int64_t* labels,
                     const faiss::SearchParameters* params = nullptr, std::size_t device_bytes = 0);

}  // namespace turboquant
