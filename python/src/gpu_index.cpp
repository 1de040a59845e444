#include <faiss/impl/FaissException.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>

#include "python/src/arrays.h"
#include "python/src/bind_gpu_index.h"
#include "python/src/index.h"
#include "python/src/names.h"
#include "python/src/selector.h"
#include "turboquant/gpu_index_turboquant.h"

namespace turboquant::python {
namespace {

using Address = std::uintptr_t;

const float* floats(Address address) { return reinterpret_cast<const float*>(address); }

// GpuIndexTurboQuant behind a lock, with addresses in the place of arrays: turboquant.cuda knows
// whose they are and keeps them alive. One call at a time, since a call has a stream.
class PyGpuIndex {
  template <class F>
  auto on_stream(Address stream, F&& f) {
    const nb::gil_scoped_release no_gil;
    const std::lock_guard<std::mutex> lock(mutex_);
    index_->set_stream(reinterpret_cast<void*>(stream));
    return f(*index_);
  }

 public:
  explicit PyGpuIndex(std::unique_ptr<GpuIndexTurboQuant> index) : index_(std::move(index)) {}

  static std::unique_ptr<PyGpuIndex> make(int d, int bits, nb::handle metric,
                                          const std::string& estimator, std::uint64_t seed,
                                          bool centre, int device) {
    IndexOptions options;
    options.bits = bits;
    options.seed = seed;
    options.centre = centre;
    parse_estimator(estimator, options.estimator, options.projection);
    const MetricName parsed = parse_metric(metric);
    options.normalize = parsed.normalize;
    const nb::gil_scoped_release no_gil;
    return std::make_unique<PyGpuIndex>(
        std::make_unique<GpuIndexTurboQuant>(d, options, parsed.metric, device));
  }

  static std::unique_ptr<PyGpuIndex> from_cpu(PyIndexTurboQuant& index, int device) {
    return std::make_unique<PyGpuIndex>(index.read_flat(
        [&](const IndexTurboQuant& flat) { return index_cpu_to_gpu(device, flat); }));
  }

  std::unique_ptr<PyIndex> to_cpu() {
    return PyIndex::wrap(on_stream(0, [](GpuIndexTurboQuant& index) {
      return std::unique_ptr<faiss::Index>(index_gpu_to_cpu(index));
    }));
  }

  void train(Address x, std::int64_t n, Address stream) {
    on_stream(stream, [&](GpuIndexTurboQuant& index) { index.train(n, floats(x)); });
  }

  void add(Address x, std::int64_t n, Address stream) {
    on_stream(stream, [&](GpuIndexTurboQuant& index) { index.add(n, floats(x)); });
  }

  void search(Address queries, std::int64_t n, std::int64_t k, Address scores, Address ids,
              nb::handle selector_object, Address stream) {
    std::unique_ptr<Selector> made;
    const Selector* selector = Selector::from(selector_object, made);
    faiss::SearchParameters params;
    if (selector != nullptr) params.sel = const_cast<faiss::IDSelector*>(&selector->get());
    on_stream(stream, [&](GpuIndexTurboQuant& index) {
      index.search(n, floats(queries), k, reinterpret_cast<float*>(scores),
                   reinterpret_cast<std::int64_t*>(ids), &params);
    });
  }

  std::size_t remove_ids(nb::handle selector_object) {
    std::unique_ptr<Selector> made;
    const Selector* selector = Selector::from(selector_object, made);
    if (selector == nullptr) throw nb::type_error("remove_ids needs ids, not None");
    return on_stream(0,
                     [&](GpuIndexTurboQuant& index) { return index.remove_ids(selector->get()); });
  }

  nb::object reconstruct(std::int64_t id) {
    const auto d = static_cast<std::size_t>(index_->d);
    std::unique_ptr<float[]> x(new float[d]);
    const bool there = on_stream(0, [&](GpuIndexTurboQuant& index) {
      if (id < 0 || id >= index.ntotal) return false;
      index.reconstruct(id, x.get());
      return true;
    });
    if (!there)
      throw nb::index_error(("id " + std::to_string(id) + " is not in the index").c_str());
    return to_numpy(std::move(x), 1, d, true);
  }

  nb::object codes() {
    std::size_t rows = 0;
    const std::size_t width = index_->sa_code_size();
    auto bytes = on_stream(0, [&](GpuIndexTurboQuant& index) {
      rows = static_cast<std::size_t>(index.ntotal);
      std::unique_ptr<std::uint8_t[]> copied(new std::uint8_t[rows * width]);
      index.copy_codes(0, index.ntotal, copied.get());
      return copied;
    });
    return to_numpy(std::move(bytes), rows, width, false);
  }

  void reset() {
    on_stream(0, [](GpuIndexTurboQuant& index) { index.reset(); });
  }
  void reserve(std::int64_t n) {
    on_stream(0, [&](GpuIndexTurboQuant& index) { index.reserve(n); });
  }
  std::int64_t size() {
    return on_stream(0, [](GpuIndexTurboQuant& index) { return index.ntotal; });
  }
  std::size_t device_bytes() {
    return on_stream(0, [](GpuIndexTurboQuant& index) { return index.device_bytes(); });
  }
  const GpuIndexTurboQuant& get() const { return *index_; }  // for what never changes

 private:
  std::unique_ptr<GpuIndexTurboQuant> index_;
  std::mutex mutex_;
};

void translate(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const GpuOutOfMemory& e) {
    PyErr_SetString(PyExc_MemoryError, e.msg.c_str());
  } catch (const GpuError& e) {
    PyErr_SetString(PyExc_RuntimeError, e.msg.c_str());
  }
}

using DeviceArray = nb::ndarray<const float, nb::c_contig, nb::device::cuda>;

// Address, shape and device of an array that offers DLPack and nothing better; the array itself
// keeps its memory.
nb::object view(nb::handle object) {
  DeviceArray array;
  if (!nb::try_cast(object, array, false)) return nb::none();
  nb::list shape;
  for (std::size_t i = 0; i < array.ndim(); ++i) shape.append(array.shape(i));
  return nb::make_tuple(reinterpret_cast<Address>(array.data()), nb::tuple(shape),
                        array.device_id());
}

}  // namespace

void bind_gpu_index(nb::module_& m) {
  nb::register_exception_translator(translate);
  m.def("_gpu_device_count", [] { return gpu_device_count(); });
  m.def("_gpu_view", &view, nb::arg("array"));
  nb::class_<PyGpuIndex>(m, "_GpuIndex", "What turboquant.cuda.GpuIndexTurboQuant is made of.")
      .def(nb::new_(&PyGpuIndex::make), nb::arg("d"), nb::arg("bits"), nb::arg("metric"),
           nb::arg("estimator"), nb::arg("seed"), nb::arg("centre"), nb::arg("device"))
      .def_static("from_cpu", &PyGpuIndex::from_cpu, nb::arg("index"), nb::arg("device"))
      .def("to_cpu", &PyGpuIndex::to_cpu)
      .def("train", &PyGpuIndex::train, nb::arg("x"), nb::arg("n"), nb::arg("stream"))
      .def("add", &PyGpuIndex::add, nb::arg("x"), nb::arg("n"), nb::arg("stream"))
      .def("search", &PyGpuIndex::search, nb::arg("queries"), nb::arg("n"), nb::arg("k"),
           nb::arg("scores"), nb::arg("ids"), nb::arg("selector").none(), nb::arg("stream"))
      .def("remove_ids", &PyGpuIndex::remove_ids, nb::arg("ids"))
      .def("reconstruct", &PyGpuIndex::reconstruct, nb::arg("id"))
      .def("codes", &PyGpuIndex::codes)
      .def("reset", &PyGpuIndex::reset)
      .def("reserve", &PyGpuIndex::reserve, nb::arg("n"))
      .def("device_bytes", &PyGpuIndex::device_bytes)
      .def("__len__", &PyGpuIndex::size)
      .def_prop_ro("d", [](const PyGpuIndex& self) { return self.get().d; })
      .def_prop_ro("device", [](const PyGpuIndex& self) { return self.get().device(); })
      .def_prop_ro("code_size", [](const PyGpuIndex& self) { return self.get().sa_code_size(); })
      .def_prop_ro("name", [](const PyGpuIndex& self) { return index_name(self.get().options()); })
      .def_prop_ro("metric", [](const PyGpuIndex& self) {
        return metric_name(self.get().metric_type, self.get().options().normalize);
      });
}

}  // namespace turboquant::python
