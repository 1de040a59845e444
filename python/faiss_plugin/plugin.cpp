// The library that turboquant.faiss.install() loads beside an imported FAISS: our index classes,
// compiled against the headers of that FAISS version and linked to nothing of it. FAISS's symbols
// resolve to the FAISS in the process, and its callers' calls of a handful of functions come here.
#include <faiss/Index.h>
#include <faiss/clone_index.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <string>

#include "index/glue.h"
#include "index/index_tree.h"
#include "python/faiss_plugin/got_patch.h"
#include "turboquant/faiss_compat.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant::python {
namespace {

std::unique_ptr<faiss::Index> owned(faiss::Index* index) {
  return std::unique_ptr<faiss::Index>(index);
}

// In this library, which is never patched, faiss::f is FAISS's own f.

faiss::Index* factory(int d, const char* description,
                      faiss::MetricType metric TURBOQUANT_FAISS_FACTORY_PARAM) {
  return glue::build(description,
                     [&](const std::string& text) {
                       return owned(faiss::index_factory(d, text.c_str(),
                                                         metric TURBOQUANT_FAISS_FACTORY_ARG));
                     })
      .release();
}

template <class Target>
void write(const faiss::Index* index, Target target TURBOQUANT_FAISS_WRITE_FLAGS_PARAM) {
  glue::write(index, [&](const faiss::Index* tree) {
    faiss::write_index(tree, target TURBOQUANT_FAISS_WRITE_FLAGS_ARG);
  });
}

template <class Source, class Real>
std::unique_ptr<faiss::Index> read_from(Source source, const Real& real) {
  faiss::FileIOReader file(source);
  return glue::read(&file, real);
}

template <class Real>
std::unique_ptr<faiss::Index> read_from(faiss::IOReader* reader, const Real& real) {
  return glue::read(reader, real);
}

template <class Source>
faiss::Index* read(Source source, int io_flags) {
  return read_from(source, [&] { return owned(faiss::read_index(source, io_flags)); }).release();
}

#ifdef TURBOQUANT_FAISS_HAS_READ_INDEX_UP
template <class Source>
std::unique_ptr<faiss::Index> read_up(Source source, int io_flags) {
  return read_from(source, [&] { return faiss::read_index_up(source, io_flags); });
}
#endif

faiss::Index* clone(const faiss::Index* index) {
  const bool ours = index != nullptr && contains_turboquant(*index);
  return ours ? glue::clone(*index).release() : faiss::clone_index(index);
}

template <class Function>
void* address(Function* function) {
  return reinterpret_cast<void*>(function);
}

const char* install() {
  static std::array redirections = {
      Redirection{TQ_SYMBOL_INDEX_FACTORY, address(factory)},
      Redirection{TQ_SYMBOL_WRITE_PATH, address(write<const char*>)},
      Redirection{TQ_SYMBOL_WRITE_FILE, address(write<std::FILE*>)},
      Redirection{TQ_SYMBOL_WRITE_WRITER, address(write<faiss::IOWriter*>)},
      Redirection{TQ_SYMBOL_READ_PATH, address(read<const char*>)},
      Redirection{TQ_SYMBOL_READ_FILE, address(read<std::FILE*>)},
      Redirection{TQ_SYMBOL_READ_READER, address(read<faiss::IOReader*>)},
      Redirection{TQ_SYMBOL_CLONE_INDEX, address(clone)},
#ifdef TURBOQUANT_FAISS_HAS_READ_INDEX_UP
      Redirection{TQ_SYMBOL_READ_UP_PATH, address(read_up<const char*>)},
      Redirection{TQ_SYMBOL_READ_UP_FILE, address(read_up<std::FILE*>)},
      Redirection{TQ_SYMBOL_READ_UP_READER, address(read_up<faiss::IOReader*>)},
#endif
  };
  const char* error = redirect_calls("faiss", redirections.data(), redirections.size());
  if (error != nullptr) return error;
  for (const Redirection& r : redirections) {
    if (r.slots == 0) {
      static std::string message;
      message = std::string("no loaded FAISS library calls ") + r.symbol;
      return message.c_str();
    }
  }
  return nullptr;
}

const faiss::Index* find(const faiss::Index* index) {
  if (index == nullptr || dynamic_cast<const IndexTurboQuant*>(index) != nullptr ||
      dynamic_cast<const IndexIVFTurboQuant*>(index) != nullptr) {
    return index;
  }
  for (faiss::Index** child : children(const_cast<faiss::Index*>(index))) {
    if (*child == nullptr) continue;
    if (const faiss::Index* found = find(*child)) return found;
  }
  return nullptr;
}

}  // namespace

/// What turboquant/faiss.py reads through ctypes; the same fields in the same order there.
struct Fields {
  std::int32_t dimension;
  std::int32_t bits;
  std::int32_t estimator;
  std::int32_t projection;
  std::int32_t metric;
  std::int32_t normalize;
  std::int32_t is_ivf;
  std::int32_t by_residual;
  std::uint64_t seed;
  std::int64_t ntotal;
  std::int64_t code_size;
  const std::uint8_t* codes;  // of a flat index: [ntotal][code_size]; else null
};

}  // namespace turboquant::python

extern "C" {

/// The version whose headers this was compiled with, 10703 for 1.7.3.
int tq_faiss_version() { return TURBOQUANT_FAISS_VERSION; }

/// Null, or why it failed. Calls after the first do nothing and return its result.
const char* tq_faiss_install() {
  static const char* result = turboquant::python::install();
  return result;
}

/// Fills the fields from the first TurboQuant index in the tree; 0 when there is none.
int tq_faiss_fields(const faiss::Index* index, turboquant::python::Fields* out) {
  using namespace turboquant;
  const faiss::Index* found = python::find(index);
  if (found == nullptr) return 0;
  const auto* flat = dynamic_cast<const IndexTurboQuant*>(found);
  const auto* ivf = dynamic_cast<const IndexIVFTurboQuant*>(found);
  const IndexOptions& options = flat != nullptr ? flat->options() : ivf->options();
  out->dimension = found->d;
  out->bits = options.bits;
  out->estimator = static_cast<std::int32_t>(options.estimator);
  out->projection = static_cast<std::int32_t>(options.projection);
  out->metric = static_cast<std::int32_t>(found->metric_type);
  out->normalize = options.normalize ? 1 : 0;
  out->is_ivf = ivf != nullptr ? 1 : 0;
  out->by_residual = ivf != nullptr && ivf->by_residual ? 1 : 0;
  out->seed = options.seed;
  out->ntotal = found->ntotal;
  out->code_size = static_cast<std::int64_t>(flat != nullptr ? flat->code_size : ivf->code_size);
  out->codes = flat != nullptr ? flat->codes.data() : nullptr;
  return 1;
}

}  // extern "C"
