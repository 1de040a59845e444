#include "index/gpu_rows.h"

#include <algorithm>

#include "kernels/cuda/error.h"
#include "quantizer/levels.h"

namespace turboquant {
namespace {

cuda::RotationTable rotation_table(const Rotation& rotation) {
  return {rotation.factors(), rotation.window(), rotation.rounds()};
}

cuda::RowLayout row_layout(const Quantizer::Impl& impl) {
  return {static_cast<int>(impl.options.dimension), impl.options.bits, impl.trellis != nullptr};
}

}  // namespace

cuda::CodecTables codec_tables(const Quantizer::Impl& impl, bool normalize) {
  const QuantizerOptions& options = impl.options;
  cuda::CodecTables tables;
  tables.dimension = options.dimension;
  tables.bits = options.bits;
  tables.trellis = impl.trellis;
  tables.two_parts = impl.two_parts();
  tables.mse = options.estimator == Estimator::kMse;
  tables.with_norm = options.with_norm;
  tables.normalize = normalize;
  tables.rotation = rotation_table(impl.rotation);
  if (impl.projection.has_value()) tables.projection = rotation_table(*impl.projection);
  if (impl.gaussian.has_value()) tables.gaussian = impl.gaussian->entries();
  if (impl.centred()) tables.centre = options.centre.data();
  tables.centre_norm_squared = impl.centre_norm_squared;
  tables.quantizer_bits = options.bits - (impl.two_parts() ? 1 : 0);
  if (tables.quantizer_bits > 0) {
    tables.quantizer = level_table(tables.quantizer_bits);
    tables.step = level_step(tables.quantizer_bits);
  }
  tables.levels = impl.levels;
  tables.signs = impl.signs;
  return tables;
}

GpuRows::GpuRows(int device, const Quantizer::Impl& impl)
    : device_(device),
      layout_(row_layout(impl)),
      residual_(impl.two_parts()),
      centre_(impl.centred()),
      norm_(impl.options.with_norm),
      row_bytes_(row_bytes(impl)) {}

std::size_t GpuRows::row_bytes(const Quantizer::Impl& impl) {
  const cuda::RowLayout layout = row_layout(impl);
  const std::size_t factors = 1u + (impl.two_parts() ? 1u : 0u) + (impl.centred() ? 1u : 0u) +
                              (impl.options.with_norm ? 1u : 0u);
  return static_cast<std::size_t>(layout.stride) + 4 * factors;
}

GpuRows::Memory GpuRows::allocate(std::size_t n) const {
  Memory memory;
  try {
    memory.codes = cuda::Buffer(device_, n * static_cast<std::size_t>(layout_.stride));
    memory.scale = cuda::Buffer(device_, n * 4);
    if (residual_) memory.residual = cuda::Buffer(device_, n * 4);
    if (centre_) memory.centre = cuda::Buffer(device_, n * 4);
    if (norm_) memory.norm = cuda::Buffer(device_, n * 4);
  } catch (const cuda::OutOfMemory& error) {
    throw cuda::OutOfMemory(std::to_string(n) + " rows need " + std::to_string(n * row_bytes_) +
                                " bytes, beside the " + std::to_string(capacity_ * row_bytes_) +
                                " held while they are copied: " + error.what(),
                            error.code(), error.device(), n * row_bytes_);
  }
  return memory;
}

cuda::RowPointers GpuRows::pointers(const Memory& memory) {
  return {memory.codes.as<std::uint8_t>(), memory.scale.as<float>(), memory.residual.as<float>(),
          memory.centre.as<float>(), memory.norm.as<float>()};
}

void GpuRows::copy_rows(const cuda::RowPointers& from, std::size_t n, const cuda::RowPointers& to,
                        cuda::StreamPointer stream) const {
  cuda::copy(to.codes, from.codes, n * static_cast<std::size_t>(layout_.stride), stream);
  cuda::copy(to.scale, from.scale, n * 4, stream);
  if (residual_) cuda::copy(to.residual, from.residual, n * 4, stream);
  if (centre_) cuda::copy(to.centre, from.centre, n * 4, stream);
  if (norm_) cuda::copy(to.norm, from.norm, n * 4, stream);
}

void GpuRows::reserve(std::size_t n, cuda::StreamPointer stream) {
  if (n <= capacity_) return;
  Memory larger = allocate(n);
  const cuda::RowPointers to = pointers(larger);
  copy_rows(pointers_, n_, to, stream);
  cuda::synchronize(stream);
  memory_ = std::move(larger);
  pointers_ = to;
  capacity_ = n;
}

void GpuRows::grow(std::size_t n, cuda::StreamPointer stream) {
  if (n <= capacity_) return;
  const std::size_t spare = capacity_ + capacity_ / 2;
  if (spare > n) {
    try {
      return reserve(spare, stream);
    } catch (const cuda::OutOfMemory&) {
      // Then without room to spare.
    }
  }
  reserve(n, stream);
}

void GpuRows::clear() {
  memory_ = Memory();
  pointers_ = {};
  n_ = 0;
  capacity_ = 0;
}

void GpuRows::keep(const std::vector<std::uint32_t>& rows, cuda::StreamPointer stream) {
  // By way of a part of the rows at a time: a row never moves up, so what a later part reads is not
  // overwritten by an earlier one.
  const std::size_t most = std::max<std::size_t>(1, (std::size_t{32} << 20) / row_bytes_);
  const std::size_t part = std::min(most, rows.size());
  if (part > 0) {
    const Memory moved = allocate(part);
    const cuda::Buffer chosen(device_, part * 4);
    for (std::size_t first = 0; first < rows.size(); first += part) {
      const std::size_t count = std::min(part, rows.size() - first);
      if (rows[first + count - 1] == first + count - 1) continue;  // they all stay where they are
      cuda::copy(chosen.get(), rows.data() + first, count * 4, stream);
      cuda::gather_rows(layout_, pointers_, chosen.as<std::uint32_t>(), count, pointers(moved),
                        stream);
      copy_rows(pointers(moved), count, at(first), stream);
    }
    cuda::synchronize(stream);
  }
  n_ = rows.size();
}

}  // namespace turboquant
