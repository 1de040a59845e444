#include "python/src/arrays.h"

#include <nanobind/stl/string.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace turboquant::python {
namespace {

float from_bits(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float from_bfloat16(std::uint16_t bits) { return from_bits(std::uint32_t{bits} << 16); }

float from_float16(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8F;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (mantissa << 13));
  return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

std::string text(const nb::object& object) {
  return nb::cast<std::string>(nb::str(nb::handle(object)));
}

std::string type_of(nb::handle object) { return text(nb::object(object.type().attr("__name__"))); }

std::string element_name(nb::handle object) {
  return nb::hasattr(object, "dtype") ? text(nb::object(object.attr("dtype"))) : "";
}

// What an array protocol can hand over: host memory that needs no gradient, numpy where nothing
// else is known.
nb::object to_exporter(nb::handle object, const char* what) {
  nb::object result = nb::borrow(object);
  if (nb::hasattr(result, "detach")) result = result.attr("detach")();
  if (element_name(result) == "bfloat16") {  // numpy with ml_dtypes: numpy itself has no bfloat16
    return result.attr("view")("uint16");
  }
  const bool array = nb::hasattr(result, "__dlpack__") || PyObject_CheckBuffer(result.ptr()) != 0;
  if (array) return result;
  try {
    return nb::module_::import_("numpy").attr("asarray")(result, "float32");
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError)) throw;
    const std::string message = std::string(what) + " must be an array of floats, not " +
                                type_of(object) + ": " + error.what();
    throw nb::type_error(message.c_str());
  }
}

bool is_float(nb::dlpack::dtype type, int bits) {
  return type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) &&
         type.bits == bits && type.lanes == 1;
}

}  // namespace

void Rows::load(nb::handle object, const char* what) {
  nb::object exporter = to_exporter(object, what);
  if (!nb::try_cast(exporter, array_)) {
    const std::string message = std::string(what) + " of type " + type_of(object) + " (" +
                                element_name(object) +
                                ") cannot be read as an array of float32, float16, bfloat16 or "
                                "float64 in the machine's byte order";
    throw nb::type_error(message.c_str());
  }
  if (array_.device_type() == nb::device::cpu::value) return;
  for (const char* to_host : {"cpu", "get"}) {  // torch's and cupy's names
    if (nb::hasattr(exporter, to_host)) {
      load(exporter.attr(to_host)(), what);
      return;
    }
  }
  throw nb::type_error((std::string(what) + " must be in host memory").c_str());
}

Rows::Rows(nb::handle object, std::size_t dimension, const char* what)
    : what_(what), dimension_(dimension) {
  load(object, what);
  const auto type = array_.dtype();
  if (is_float(type, 32)) {
    type_ = Type::kFloat32;
  } else if (is_float(type, 64)) {
    type_ = Type::kFloat64;
  } else if (is_float(type, 16)) {
    type_ = Type::kFloat16;
  } else if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) ||
             (element_name(object) == "bfloat16" && type.bits == 16)) {
    type_ = Type::kBfloat16;
  } else {
    const std::string message = std::string(what) +
                                " must be float32, float16, bfloat16 or float64, not " +
                                element_name(object);
    throw nb::type_error(message.c_str());
  }
  single_ = array_.ndim() == 1;
  if ((!single_ && array_.ndim() != 2) || array_.shape(single_ ? 0 : 1) != dimension) {
    std::string shape;
    for (std::size_t i = 0; i < array_.ndim(); ++i) {
      shape += (i > 0 ? ", " : "") + std::to_string(array_.shape(i));
    }
    throw std::invalid_argument(std::string(what) + " must have the shape (n, " +
                                std::to_string(dimension) + ") or (" + std::to_string(dimension) +
                                ",), not (" + shape + (array_.ndim() == 1 ? ",)" : ")"));
  }
  count_ = single_ ? 1 : array_.shape(0);
  row_stride_ = single_ ? 0 : array_.stride(0);
  column_stride_ = array_.stride(single_ ? 0 : 1);
}

template <class T, class Convert>
void Rows::convert(std::size_t first, std::size_t count, Convert to_float) {
  const auto size = static_cast<std::int64_t>(sizeof(T));
  const auto* data = static_cast<const char*>(array_.data());
  for (std::size_t i = 0; i < count; ++i) {
    const char* row = data + static_cast<std::int64_t>(first + i) * row_stride_ * size;
    float* out = buffer_.data() + i * dimension_;
    for (std::size_t j = 0; j < dimension_; ++j) {
      T value;  // numpy arrays need not be aligned
      std::memcpy(&value, row + static_cast<std::int64_t>(j) * column_stride_ * size, sizeof value);
      out[j] = to_float(value);
    }
  }
}

const float* Rows::block(std::size_t first, std::size_t count) {
  const auto packed = static_cast<std::int64_t>(dimension_);
  const bool contiguous =
      (column_stride_ == 1 || dimension_ == 1) && (row_stride_ == packed || count_ == 1);
  const bool aligned = reinterpret_cast<std::uintptr_t>(array_.data()) % alignof(float) == 0;
  if (type_ == Type::kFloat32 && contiguous && aligned) {
    return static_cast<const float*>(array_.data()) + first * dimension_;
  }
  buffer_.resize(count * dimension_);
  switch (type_) {
    case Type::kFloat32:
      convert<float>(first, count, [](float v) { return v; });
      break;
    case Type::kFloat64:
      convert<double>(first, count, [](double v) { return static_cast<float>(v); });
      break;
    case Type::kFloat16:
      convert<std::uint16_t>(first, count, from_float16);
      break;
    case Type::kBfloat16:
      convert<std::uint16_t>(first, count, from_bfloat16);
      break;
  }
  return buffer_.data();
}

void Rows::require_finite() {
  constexpr std::size_t kBlock = 4096;
  for (std::size_t first = 0; first < count_; first += kBlock) {
    const std::size_t rows = std::min(kBlock, count_ - first);
    const float* x = block(first, rows);
    for (std::size_t i = 0; i < rows * dimension_; ++i) {
      if (!std::isfinite(x[i])) {
        throw std::invalid_argument(std::string(what_) + ": row " +
                                    std::to_string(first + i / dimension_) +
                                    " holds NaN or infinity (as float32)");
      }
    }
  }
}

Ids to_ids(nb::handle object, const char* what) {
  nb::object array = nb::borrow(object);
  Ids ids;
  if (nb::try_cast(array, ids, false)) return ids;
  const nb::module_ numpy = nb::module_::import_("numpy");
  if (nb::hasattr(array, "cpu")) array = array.attr("cpu")();
  array = numpy.attr("asarray")(array);
  const auto kind = nb::cast<std::string>(array.attr("dtype").attr("kind"));
  const bool empty = nb::cast<std::size_t>(array.attr("size")) == 0;
  if (!empty && kind != "i" && kind != "u") {
    throw nb::type_error((std::string(what) + " must be integers").c_str());
  }
  array = numpy.attr("ascontiguousarray")(array.attr("reshape")(-1), "int64");
  return nb::cast<Ids>(array);
}

}  // namespace turboquant::python
