#include "tools/io/hdf5_reader.h"

#include <hdf5.h>

#include <array>
#include <utility>

#include "tools/io/errors.h"

namespace turboquant::io {
namespace {

// Closes an HDF5 identifier.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&&) = delete;
  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

herr_t take_description(unsigned /*depth*/, const H5E_error2_t* error, void* out) {
  auto* text = static_cast<std::string*>(out);
  if (text->empty() && error->desc != nullptr) *text = error->desc;
  return 0;
}

// The innermost reason that HDF5 recorded for the last failed call.
std::string last_reason() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_description, &text);
  return text.empty() ? "unknown reason" : text;
}

Element element_of(const std::string& where, hid_t type) {
  const std::size_t size = H5Tget_size(type);
  switch (H5Tget_class(type)) {
    case H5T_FLOAT:
      return size <= 4 ? Element::kF4 : Element::kF8;
    case H5T_INTEGER: {
      const bool is_signed = H5Tget_sign(type) != H5T_SGN_NONE;
      if (size == 1) return is_signed ? Element::kI1 : Element::kU1;
      if (size <= 4) return is_signed ? Element::kI4 : Element::kU4;
      if (size == 8) return is_signed ? Element::kI8 : Element::kU8;
      break;
    }
    default:
      break;
  }
  throw DataError(where + ": holds neither floats nor integers");
}

hid_t memory_type(Element element) {
  switch (element) {
    case Element::kF2:
      break;  // element_of never gives it
    case Element::kF4:
      return H5T_NATIVE_FLOAT;
    case Element::kF8:
      return H5T_NATIVE_DOUBLE;
    case Element::kI1:
      return H5T_NATIVE_INT8;
    case Element::kU1:
      return H5T_NATIVE_UINT8;
    case Element::kI4:
      return H5T_NATIVE_INT32;
    case Element::kU4:
      return H5T_NATIVE_UINT32;
    case Element::kI8:
      return H5T_NATIVE_INT64;
    case Element::kU8:
      return H5T_NATIVE_UINT64;
  }
  throw std::logic_error("element type without an HDF5 type");
}

class Hdf5Reader final : public VectorReader {
 public:
  Hdf5Reader(std::string where, Handle file, Handle dataset, Element element, std::uint64_t rows,
             std::uint64_t dimension)
      : VectorReader(std::move(where), Format::kHdf5),
        file_(std::move(file)),
        dataset_(std::move(dataset)) {
    set_shape(element, rows, dimension);
  }

 private:
  void read_elements(std::uint64_t first, std::size_t n, void* out) override {
    const std::array<hsize_t, 2> start = {first, 0};
    const std::array<hsize_t, 2> count = {n, dimension()};
    const Handle space(H5Dget_space(dataset_.get()), H5Sclose);
    const Handle memory(H5Screate_simple(2, count.data(), nullptr), H5Sclose);
    if (!space.valid() || !memory.valid() ||
        H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(),
                            nullptr) < 0 ||
        H5Dread(dataset_.get(), memory_type(element()), memory.get(), space.get(), H5P_DEFAULT,
                out) < 0) {
      throw DataError(name() + ": rows " + std::to_string(first) + " to " +
                      std::to_string(first + n - 1) + ": " + last_reason());
    }
  }

  Handle file_;
  Handle dataset_;
};

}  // namespace

std::unique_ptr<VectorReader> open_hdf5(const std::string& path, const std::string& dataset) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // errors become exceptions, not lines on stderr
  open_file(path);                              // a clearer reason than HDF5's when it is missing
  Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  if (!file.valid()) throw DataError(path + ": not an HDF5 file: " + last_reason());
  const std::string where = path + ": dataset '" + dataset + "'";
  Handle set(H5Dopen2(file.get(), dataset.c_str(), H5P_DEFAULT), H5Dclose);
  if (!set.valid()) throw DataError(where + ": " + last_reason());

  const Handle type(H5Dget_type(set.get()), H5Tclose);
  const Handle space(H5Dget_space(set.get()), H5Sclose);
  if (!type.valid() || !space.valid()) throw DataError(where + ": " + last_reason());
  const int axes = H5Sget_simple_extent_ndims(space.get());
  if (axes != 2) {
    throw DataError(where + ": has " + std::to_string(axes) + " axes; vectors need two");
  }
  std::array<hsize_t, 2> shape{};
  H5Sget_simple_extent_dims(space.get(), shape.data(), nullptr);
  const Element element = element_of(where, type.get());
  return std::make_unique<Hdf5Reader>(where, std::move(file), std::move(set), element, shape[0],
                                      shape[1]);
}

}  // namespace turboquant::io
