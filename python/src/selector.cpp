#include "python/src/selector.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <string>

#include "python/src/arrays.h"

namespace turboquant::python {
namespace {

using Bools = nb::ndarray<const bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::object to_numpy_array(nb::handle object) {
  nb::object array = nb::borrow(object);
  if (nb::hasattr(array, "cpu")) array = array.attr("cpu")();
  return nb::module_::import_("numpy").attr("ascontiguousarray")(array).attr("reshape")(-1);
}

}  // namespace

void Selector::use_bitmap() {
  selector_ = std::make_unique<faiss::IDSelectorBitmap>(bitmap_.size(), bitmap_.data());
}

Selector::Selector(nb::handle object) {
  const nb::object array = to_numpy_array(object);
  if (nb::cast<std::string>(array.attr("dtype").attr("kind")) == "b") {
    const auto mask = nb::cast<Bools>(array);
    bitmap_.resize((mask.size() + 7) / 8);
    for (std::size_t i = 0; i < mask.size(); ++i) {
      if (mask.data()[i]) bitmap_[i / 8] |= static_cast<std::uint8_t>(1u << (i % 8));
    }
    use_bitmap();
    return;
  }
  const Ids ids = to_ids(array, "ids");
  selector_ = std::make_unique<faiss::IDSelectorBatch>(ids.size(), ids.data());
}

std::unique_ptr<Selector> Selector::from_bitmap(nb::handle bits) {
  Bytes bytes;
  if (!nb::try_cast(to_numpy_array(bits), bytes, false)) {
    throw nb::type_error("a bitmap must be an array of uint8");
  }
  std::unique_ptr<Selector> selector(new Selector);
  selector->bitmap_.assign(bytes.data(), bytes.data() + bytes.size());
  selector->use_bitmap();
  return selector;
}

const Selector* Selector::from(nb::handle object, std::unique_ptr<Selector>& made) {
  if (object.is_none()) return nullptr;
  if (nb::isinstance<Selector>(object)) return nb::cast<const Selector*>(object);
  made = std::make_unique<Selector>(object);
  return made.get();
}

void bind_selector(nb::module_& m) {
  nb::class_<Selector>(m, "IDSelector",
                       "A set of ids: what a search may return, or what remove_ids removes.")
      .def(nb::init<nb::handle>(), nb::arg("ids_or_mask"),
           nb::sig("def __init__(self, ids_or_mask: object) -> None"),
           "ids_or_mask: an array or sequence of integers (ids), or of booleans (element i says\n"
           "whether id i is selected; ids past its end are not).")
      .def_static("from_bitmap", &Selector::from_bitmap, nb::arg("bits"),
                  nb::sig("def from_bitmap(bits: object) -> IDSelector"),
                  "bits: uint8 array of shape (ceil(n / 8),), as from\n"
                  "numpy.packbits(mask, bitorder='little').")
      .def("__contains__", &Selector::contains, nb::arg("id"));
}

}  // namespace turboquant::python
