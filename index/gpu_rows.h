// The rows of a GpuIndexTurboQuant: memory of the device that grows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/cuda/buffer.h"
#include "kernels/cuda/codec.h"
#include "quantizer/quantizer_impl.h"

namespace turboquant {

/// What cuda::Codec takes of a quantizer. Points into it.
cuda::CodecTables codec_tables(const Quantizer::Impl& impl, bool normalize);

class GpuRows {
 public:
  GpuRows(int device, const Quantizer::Impl& impl);

  std::size_t size() const { return n_; }
  std::size_t capacity() const { return capacity_; }
  /// What a row takes on the device.
  static std::size_t row_bytes(const Quantizer::Impl& impl);
  cuda::RowPointers at(std::size_t row) const { return pointers_.at(layout_, row); }

  /// Throws cuda::OutOfMemory, with all that there was in place, when there is no room.
  void reserve(std::size_t n, cuda::StreamPointer stream);
  /// Room for n rows in all, with some to spare where memory allows.
  void grow(std::size_t n, cuda::StreamPointer stream);
  /// Counts rows that were written behind the last one; at most capacity().
  void resize(std::size_t n) { n_ = n; }
  void clear();

  /// Keeps the rows listed, ascending, in that order.
  void keep(const std::vector<std::uint32_t>& rows, cuda::StreamPointer stream);

 private:
  struct Memory {
    cuda::Buffer codes, scale, residual, centre, norm;
  };
  Memory allocate(std::size_t n) const;
  static cuda::RowPointers pointers(const Memory& memory);
  void copy_rows(const cuda::RowPointers& from, std::size_t n, const cuda::RowPointers& to,
                 cuda::StreamPointer stream) const;

  int device_;
  cuda::RowLayout layout_;
  bool residual_, centre_, norm_;
  std::size_t row_bytes_;
  std::size_t n_ = 0;
  std::size_t capacity_ = 0;
  Memory memory_;
  cuda::RowPointers pointers_;
};

}  // namespace turboquant
