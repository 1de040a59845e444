// The quantizer without an index, as Python sees it.
#include "python/src/bind_quantizer.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "python/src/arrays.h"
#include "python/src/interrupt.h"
#include "python/src/names.h"
#include "python/src/threads.h"
#include "turboquant/quantizer.h"

namespace turboquant::python {
namespace {

using Codes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;

Quantizer make(std::size_t d, int bits, const std::string& estimator, std::uint64_t seed,
               bool with_norm) {
  QuantizerOptions options;
  options.dimension = d;
  options.bits = bits;
  options.seed = seed;
  options.with_norm = with_norm;
  parse_estimator(estimator, options.estimator, options.projection);
  return Quantizer(options);
}

std::size_t block_rows(const Quantizer& quantizer) {
  return std::max<std::size_t>(64, (std::size_t{1} << 22) / quantizer.dimension());
}

struct CodeBlock {
  Codes codes;
  std::size_t rows = 0;
  bool single = false;

  CodeBlock(const Quantizer& quantizer, nb::handle object) {
    nb::object array = nb::borrow(object);
    if (nb::hasattr(array, "cpu")) array = array.attr("cpu")();
    nb::ndarray<nb::ro, nb::device::cpu> any;  // whose type is looked at before anything converts
    if (!nb::try_cast(array, any) || any.dtype() != nb::dtype<std::uint8_t>() ||
        !nb::try_cast(array, codes)) {
      throw nb::type_error("codes must be an array of uint8");
    }
    single = codes.ndim() == 1;
    const std::size_t width = quantizer.code_size();
    if ((!single && codes.ndim() != 2) || codes.shape(single ? 0 : 1) != width) {
      throw std::invalid_argument("codes must have the shape (n, " + std::to_string(width) + ")");
    }
    rows = single ? 1 : codes.shape(0);
  }
};

nb::object quantize(const Quantizer& self, nb::handle x) {
  Rows rows(x, self.dimension(), "vectors");
  const std::size_t n = rows.count();
  const std::size_t width = self.code_size();
  std::unique_ptr<std::uint8_t[]> codes(new std::uint8_t[n * width]);
  {
    const nb::gil_scoped_release no_gil;
    use_threads();
    in_blocks(n, block_rows(self), [&](std::size_t first, std::size_t count) {
      try {
        self.quantize(rows.block(first, count), count, codes.get() + first * width);
      } catch (const std::invalid_argument&) {
        if (first > 0) rows.require_finite();
        throw;
      }
    });
  }
  return to_numpy(std::move(codes), n, width, rows.is_single());
}

nb::object dequantize(const Quantizer& self, nb::handle object) {
  const CodeBlock block(self, object);
  const std::size_t d = self.dimension();
  std::unique_ptr<float[]> x(new float[block.rows * d]);
  {
    const nb::gil_scoped_release no_gil;
    use_threads();
    in_blocks(block.rows, block_rows(self), [&](std::size_t first, std::size_t count) {
      self.dequantize(block.codes.data() + first * self.code_size(), count, x.get() + first * d);
    });
  }
  return to_numpy(std::move(x), block.rows, d, block.single);
}

nb::object inner_products(const Quantizer& self, nb::handle queries, nb::handle object) {
  Rows rows(queries, self.dimension(), "queries");
  const CodeBlock block(self, object);
  const std::size_t n = block.rows;
  std::unique_ptr<float[]> out(new float[rows.count() * n]);
  {
    const nb::gil_scoped_release no_gil;
    use_threads();
    in_blocks(rows.count(), 64, [&](std::size_t first, std::size_t count) {
      self.inner_products(rows.block(first, count), count, block.codes.data(), n,
                          out.get() + first * n);
    });
  }
  return to_numpy(std::move(out), rows.count(), n, rows.is_single() || block.single);
}

}  // namespace

void bind_quantizer(nb::module_& m) {
  nb::class_<Quantizer>(m, "Quantizer",
                        "Compresses vectors of dimension d to codes and estimates inner products\n"
                        "from them. Immutable, free of training, and safe to share by threads.")
      .def(
          "__init__",
          [](Quantizer* self, std::size_t d, int bits, const std::string& estimator,
             std::uint64_t seed,
             bool with_norm) { new (self) Quantizer(make(d, bits, estimator, seed, with_norm)); },
          nb::arg("d"), nb::arg("bits") = 3, nb::arg("estimator") = "tq",
          nb::arg("seed") = QuantizerOptions::kDefaultSeed, nb::arg("with_norm") = false,
          "bits: 1 to 4. estimator: \"tq\", \"t\", \"qjl\", \"qjlg\" or \"mse\". with_norm:\n"
          "also store |x|^2, 4 bytes.")
      .def("quantize", &quantize, nb::arg("x"),
           nb::sig("def quantize(self, x: object) -> numpy.ndarray"),
           "Codes uint8 (n, code_size) of x (n, d), or (code_size,) of x (d,).")
      .def("dequantize", &dequantize, nb::arg("codes"),
           nb::sig("def dequantize(self, codes: object) -> numpy.ndarray"),
           "Vectors float32 (n, d) from codes uint8 (n, code_size).")
      .def("inner_products", &inner_products, nb::arg("queries"), nb::arg("codes"),
           nb::sig("def inner_products(self, queries: object, codes: object) -> numpy.ndarray"),
           "Estimates float32 (nq, n) of the products of queries (nq, d) with encoded vectors.")
      .def("compression_ratio", &Quantizer::compression_ratio,
           "Bytes of float32 vectors over the bytes of their codes, factors included.")
      .def_prop_ro("code_size", &Quantizer::code_size, "Bytes of one encoded vector.")
      .def_prop_ro("d", &Quantizer::dimension)
      .def_prop_ro("bits", [](const Quantizer& self) { return self.options().bits; })
      .def_prop_ro("seed", [](const Quantizer& self) { return self.options().seed; })
      .def_prop_ro("with_norm", [](const Quantizer& self) { return self.options().with_norm; })
      .def_prop_ro("estimator",
                   [](const Quantizer& self) {
                     return estimator_name(self.options().estimator, self.options().projection);
                   })
      .def("__reduce__", [](nb::handle self) {
        return nb::make_tuple(
            self.type(), nb::make_tuple(self.attr("d"), self.attr("bits"), self.attr("estimator"),
                                        self.attr("seed"), self.attr("with_norm")));
      });
}

}  // namespace turboquant::python
