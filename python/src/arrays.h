// Arrays in and out. Vectors come as numpy arrays or anything with DLPack (torch, cupy, jax) of
// float32, float16, bfloat16 or float64 in any layout. Rows of C-contiguous float32 are used where
// they are; others are converted block by block.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace turboquant::python {

namespace nb = nanobind;

/// [n][d] vectors of a caller, or one vector [d], kept alive by this object.
/// Everything but the constructor works without the GIL.
class Rows {
 public:
  /// Throws nb::type_error or std::invalid_argument, in sentences that say `what` ("queries").
  Rows(nb::handle object, std::size_t dimension, const char* what);

  std::size_t count() const { return count_; }
  bool is_single() const { return single_; }

  /// count rows from `first` as float32, valid until the next call.
  const float* block(std::size_t first, std::size_t count);

  /// Throws std::invalid_argument naming the first row that holds NaN or infinity.
  void require_finite();

 private:
  enum class Type { kFloat32, kFloat64, kFloat16, kBfloat16 };

  void load(nb::handle object, const char* what);
  template <class T, class Convert>
  void convert(std::size_t first, std::size_t count, Convert to_float);

  nb::ndarray<nb::ro> array_;
  const char* what_;
  Type type_ = Type::kFloat32;
  bool single_ = false;
  std::size_t count_ = 0;
  std::size_t dimension_ = 0;
  std::int64_t row_stride_ = 0;     // in elements
  std::int64_t column_stride_ = 0;  // in elements
  std::vector<float> buffer_;
};

using Ids = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

/// Ids [n] from any array or sequence of integers. Throws nb::type_error.
Ids to_ids(nb::handle object, const char* what);

/// A new numpy array over memory that it takes over. rows_only: shape [rows * columns].
template <class T>
nb::object to_numpy(std::unique_ptr<T[]> data, std::size_t rows, std::size_t columns,
                    bool one_dimensional) {
  T* raw = data.release();
  const nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  if (one_dimensional) {
    return nb::cast(nb::ndarray<nb::numpy, T>(raw, {rows * columns}, owner));
  }
  return nb::cast(nb::ndarray<nb::numpy, T>(raw, {rows, columns}, owner));
}

}  // namespace turboquant::python
