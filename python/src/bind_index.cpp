// Index, IndexTurboQuant, index_factory and index files as Python sees them.
#include <faiss/impl/io.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "index/mapped_index.h"
#include "python/src/index.h"
#include "python/src/names.h"

namespace turboquant::python {
namespace {

std::unique_ptr<PyIndex> from_factory(int d, const std::string& description, nb::handle metric) {
  const MetricName parsed = parse_metric(metric);
  if (!parsed.normalize) return PyIndex::wrap(index_factory(d, description, parsed.metric));
  // "cosine" is part of a TurboQuant name; in a composite it is a transform before the index.
  IndexOptions options = parse_index_name(description.substr(description.rfind(',') + 1));
  options.normalize = true;
  const std::string wrappers = description.substr(0, description.rfind(',') + 1);
  for (const char* plain : {"", "IDMap,", "IDMap2,"}) {
    if (wrappers == plain) {
      return PyIndex::wrap(index_factory(d, wrappers + index_name(options), parsed.metric));
    }
  }
  throw std::invalid_argument("for cosines in \"" + description + "\" use \"L2norm," + description +
                              "\" with the metric \"ip\"");
}

std::unique_ptr<PyIndex> from_bytes(const nb::bytes& data) {
  faiss::VectorIOReader reader;
  const auto* bytes = static_cast<const std::uint8_t*>(data.data());
  reader.data.assign(bytes, bytes + data.size());
  std::unique_ptr<faiss::Index> index;
  {
    const nb::gil_scoped_release no_gil;
    index = turboquant::read_index(static_cast<faiss::IOReader*>(&reader));
  }
  return PyIndex::wrap(std::move(index));
}

std::unique_ptr<PyIndex> from_file(nb::handle path, bool mapped, bool check) {
  const auto name = nb::cast<std::string>(nb::module_::import_("os").attr("fspath")(path));
  nb::module_::import_("os").attr("stat")(name);  // FileNotFoundError
  std::unique_ptr<faiss::Index> index;
  {
    const nb::gil_scoped_release no_gil;
    if (!mapped) {
      index = turboquant::read_index(name);
    } else if (is_flat_index_file(name)) {
      index = map_flat_index(name, check);
    } else {
      index = turboquant::read_index(name, faiss::IO_FLAG_MMAP);
    }
  }
  return PyIndex::wrap(std::move(index));
}

void to_file(PyIndex& index, nb::handle path, bool pack) {
  index.write(nb::cast<std::string>(nb::module_::import_("os").attr("fspath")(path)), pack);
}

void bind_base(nb::module_& m) {
  nb::class_<PyIndex>(
      m, "Index",
      "An index of n vectors of dimension d, made by index_factory or read_index.\n\n"
      "Vectors and queries are arrays (numpy, or anything with DLPack) of float32,\n"
      "float16, bfloat16 or float64 and of shape (n, d); one vector may be (d,).\n"
      "Any number of threads may search while others add or remove: a call sees\n"
      "the index before or after each of those, never half of it.")
      .def("train", &PyIndex::train, nb::arg("x"), nb::sig("def train(self, x: object) -> None"),
           "Trains what the index has to learn (inverted lists, PCA); TurboQuant codes need none.")
      .def("add", &PyIndex::add, nb::arg("x"), nb::sig("def add(self, x: object) -> None"),
           "Adds x of shape (n, d); rows get the ids ntotal to ntotal + n - 1. A failed or\n"
           "interrupted call on an IndexTurboQuant leaves it unchanged.")
      .def("add_with_ids", &PyIndex::add_with_ids, nb::arg("x"), nb::arg("ids"),
           nb::sig("def add_with_ids(self, x: object, ids: object) -> None"),
           "Adds x of shape (n, d) under the int64 ids of shape (n,), in an index with ids\n"
           "(\"IDMap2,TQ3\", \"IVF64,TQ4\"). An interrupted call keeps the blocks it had added.")
      .def("search", &PyIndex::search, nb::arg("queries"), nb::arg("k"), nb::kw_only(),
           nb::arg("selector") = nb::none(),
           nb::sig("def search(self, queries: object, k: int, *, selector: object | None = None) "
                   "-> tuple[numpy.ndarray, numpy.ndarray]"),
           "The k best of each query: scores float32 and ids int64, both (nq, k), or (k,) for one\n"
           "query of shape (d,). Best first: largest inner products or cosines, smallest squared\n"
           "distances. Places that no vector fills have id -1.\n"
           "selector: an IDSelector, or ids or booleans to make one of.")
      .def("range_search", &PyIndex::range_search, nb::arg("queries"), nb::arg("radius"),
           nb::kw_only(), nb::arg("selector") = nb::none(),
           nb::sig("def range_search(self, queries: object, radius: float, *, "
                   "selector: object | None = None) "
                   "-> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]"),
           "All vectors with a product above, or a squared distance below, the radius: limits\n"
           "int64 (nq + 1,), scores, ids. Those of query i are scores[limits[i]:limits[i + 1]].")
      .def("reconstruct", &PyIndex::reconstruct, nb::arg("ids"),
           nb::sig("def reconstruct(self, ids: object) -> numpy.ndarray"),
           "The decoded vector float32 (d,) of one id, or (n, d) of an array of ids. IndexError\n"
           "for an id that is not in the index.")
      .def("remove_ids", &PyIndex::remove_ids, nb::arg("ids"),
           nb::sig("def remove_ids(self, ids: object) -> int"),
           "Removes the vectors that ids (an IDSelector, ids or booleans) name; returns their\n"
           "number. Without IDMap or IVF the vectors behind them move up and get smaller ids.")
      .def("reset", &PyIndex::reset, "Removes all vectors.")
      .def("set_parameter", &PyIndex::set_parameter, nb::arg("name"), nb::arg("value"),
           "Sets a search parameter by FAISS's name: \"nprobe\", \"efSearch\", \"k_factor_rf\".")
      .def_prop_rw(
          "nprobe", &PyIndex::nprobe,
          [](PyIndex& self, std::int64_t n) {
            self.set_parameter("nprobe", static_cast<double>(n));
          },
          "The number of inverted lists that a search visits.")
      .def("to_bytes", &PyIndex::to_bytes, nb::kw_only(), nb::arg("pack") = false,
           nb::sig("def to_bytes(self, *, pack: bool = False) -> bytes"),
           "The bytes that write_index would write.")
      .def_static("from_bytes", &from_bytes, nb::arg("data"), "The inverse of to_bytes.")
      .def("clone", &PyIndex::clone, "A deep copy.")
      .def("__copy__", &PyIndex::clone)
      .def(
          "__deepcopy__", [](PyIndex& self, nb::handle) { return self.clone(); }, nb::arg("memo"),
          nb::sig("def __deepcopy__(self, memo: object) -> Index"))
      .def("__reduce__",
           [](PyIndex& self) {
             return nb::make_tuple(nb::module_::import_("turboquant").attr("_index_from_bytes"),
                                   nb::make_tuple(self.to_bytes(false)));
           })
      .def("__len__", &PyIndex::size)
      .def_prop_ro("ntotal", &PyIndex::size, "Number of vectors.")
      .def_prop_ro("d", &PyIndex::dimension, "Dimension of the vectors.")
      .def_prop_ro("is_trained", &PyIndex::is_trained)
      .def_prop_ro(
          "metric", [](const PyIndex& self) { return metric_name(self.metric(), false); },
          "\"ip\", \"l2\" or \"cosine\".");
}

void bind_flat(nb::module_& m) {
  nb::class_<PyIndexTurboQuant, PyIndex>(
      m, "IndexTurboQuant",
      "A flat index of TurboQuant codes: no training, ceil(d * bits / 8) + 4 bytes per vector (4\n"
      "more for L2 and for qjl, 1 more for t). Scores and ids are the same bits on every\n"
      "processor, for every number of threads and from C++.")
      .def(nb::init<int, int, nb::handle, const std::string&, std::uint64_t, bool>(), nb::arg("d"),
           nb::arg("bits") = 3, nb::arg("metric") = "l2", nb::arg("estimator") = "tq",
           nb::arg("seed") = QuantizerOptions::kDefaultSeed, nb::arg("centre") = false,
           nb::sig("def __init__(self, d: int, bits: int = 3, metric: str | int = 'l2', "
                   "estimator: str = 'tq', seed: int = 6085896237504099681, "
                   "centre: bool = False) -> None"),
           "d: 1 to 65,536. bits: 1 to 4 per coordinate. metric: \"ip\", \"l2\", \"cosine\" (or\n"
           "FAISS's METRIC_INNER_PRODUCT, METRIC_L2). estimator: \"tq\" (unbiased), \"t\" (a "
           "trellis\n"
           "code: also unbiased, smaller errors, slower to add), \"qjl\" (the paper's\n"
           "Algorithm 2), \"qjlg\" (the same with a Gaussian projection) or \"mse\" (smallest\n"
           "reconstruction error). centre: subtract the mean of the vectors given to train, or "
           "else\n"
           "to the first add, and keep 4 bytes more per vector; it pays where vectors share a\n"
           "direction.")
      .def_prop_rw("prune_confidence", &PyIndexTurboQuant::prune_confidence,
                   &PyIndexTurboQuant::set_prune_confidence,
                   "0 (scan everything), or above 0.5 and below 1: searches of up to 3 queries in\n"
                   "16,384 vectors or more look at the sign bits first, several times faster, and\n"
                   "those of more queries at some coordinates of long vectors. At 0.999 about one\n"
                   "in 10,000 results is missed. Takes ceil(d / 8) + 4 (l2 and centre: 8) bytes\n"
                   "per vector more, and 4 for each length of prefix that is looked at.")
      .def_prop_ro("bits", [](const PyIndexTurboQuant& self) { return self.flat().options().bits; })
      .def_prop_ro("seed", [](const PyIndexTurboQuant& self) { return self.flat().options().seed; })
      .def_prop_ro("estimator",
                   [](const PyIndexTurboQuant& self) {
                     const IndexOptions& options = self.flat().options();
                     return estimator_name(options.estimator, options.projection);
                   })
      .def_prop_ro("metric",
                   [](const PyIndexTurboQuant& self) {
                     return metric_name(self.metric(), self.flat().options().normalize);
                   })
      .def_prop_ro(
          "name", [](const PyIndexTurboQuant& self) { return index_name(self.flat().options()); },
          "The factory name, \"TQ3\".")
      .def_prop_ro(
          "code_size", [](const PyIndexTurboQuant& self) { return self.flat().code_size; },
          "Bytes per vector.")
      .def_prop_ro(
          "sign_bytes", [](const PyIndexTurboQuant& self) { return self.flat().sign_bytes(); },
          "Bytes that prune_confidence takes at present.")
      .def_prop_ro("codes", &PyIndexTurboQuant::codes,
                   "A copy of the codes, uint8 (ntotal, code_size).")
      .def("__repr__", [](PyIndexTurboQuant& self) {
        return "IndexTurboQuant(d=" + std::to_string(self.dimension()) + ", \"" +
               index_name(self.flat().options()) + "\", \"" +
               metric_name(self.metric(), self.flat().options().normalize) +
               "\", ntotal=" + std::to_string(self.size()) + ")";
      });
}

}  // namespace

void bind_index(nb::module_& m) {
  static_assert(QuantizerOptions::kDefaultSeed == 6085896237504099681u, "said in a signature");
  bind_base(m);
  bind_flat(m);
  m.def(
      "index_factory", &from_factory, nb::arg("d"), nb::arg("description"),
      nb::arg("metric") = "l2",
      nb::sig("def index_factory(d: int, description: str, metric: str | int = 'l2') -> Index"),
      "An index by FAISS's factory grammar with TurboQuant names in it: \"TQ3\", \"IDMap2,TQ4\",\n"
      "\"IVF256,TQ4\", \"HNSW16,TQ3\", \"IVF256,TQ4,Refine(+TQ4)\".");
  m.def(
      "write_index", &to_file, nb::arg("index"), nb::arg("path"), nb::kw_only(),
      nb::arg("pack") = false,
      nb::sig("def write_index(index: Index, path: str | os.PathLike, *, pack: bool = False)"
              " -> None"),
      "Writes a file that C++, the command line and FAISS with the plugin read too.\n\n"
      "pack: store the codes at about their entropy. The file is 4 to 6% smaller, loads a little\n"
      "slower, cannot be mapped, and is refused by versions from before packing.");
  m.def("_read_index", &from_file, nb::arg("path"), nb::arg("mmap"), nb::arg("check"));
}

}  // namespace turboquant::python
