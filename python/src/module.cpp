// The extension module turboquant._core.
#include <faiss/impl/FaissException.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <exception>
#include <string>

#ifdef TQ_HAVE_CUDA
#include "python/src/bind_gpu_index.h"
#endif
#include "python/src/bind_quantizer.h"
#include "python/src/index.h"
#include "python/src/selector.h"
#include "python/src/threads.h"
#include "turboquant/quantizer.h"

namespace nb = nanobind;

namespace turboquant::python {
namespace {

// FAISS puts "Error in <function> at <file>:<line>: " in front of its sentences.
std::string sentence(const std::string& message) {
  if (message.compare(0, 9, "Error in ") != 0) return message;
  const auto at = message.find(" at ");
  const auto end = at == std::string::npos ? at : message.find(": ", at);
  return end == std::string::npos ? message : message.substr(end + 2);
}

void translate(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const faiss::FaissException& e) {
    // FAISS gave up because a signal handler raised: that exception stands.
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_ValueError, sentence(e.msg).c_str());
  }
}

}  // namespace
}  // namespace turboquant::python

NB_MODULE(_core, m) {
  using namespace turboquant::python;
  m.doc() = "Bindings of the TurboQuant engine; the package turboquant is what users import.";
  nb::register_exception_translator(translate);
  install_faiss_interrupts();
  m.attr("DEFAULT_SEED") = turboquant::QuantizerOptions::kDefaultSeed;
  m.def("set_num_threads", &set_num_threads, nb::arg("n"),
        "Threads that a call of this module uses, 1 to 4096. The default is OpenMP's:\n"
        "OMP_NUM_THREADS or the number of processors.");
  m.def("get_num_threads", &get_num_threads);
  bind_quantizer(m);
  bind_selector(m);
  bind_index(m);
#ifdef TQ_HAVE_CUDA
  bind_gpu_index(m);
#endif
}
