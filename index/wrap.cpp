// Where FAISS's functions arrive in a program that links the target turboquant::index. The linker's
// --wrap=<symbol> sends calls of <symbol> to __wrap_<symbol>, and __real_<symbol> is FAISS's own.
// The mangled names depend on the FAISS version; cmake/TurboQuantFaiss.cmake has the only list.
#include <faiss/Index.h>
#include <faiss/clone_index.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include <cstdio>
#include <memory>

#include "index/glue.h"
#include "turboquant/faiss_compat.h"
#include "turboquant/faiss_io.h"

namespace turboquant {
namespace {

std::unique_ptr<faiss::Index> owned(faiss::Index* index) {
  return std::unique_ptr<faiss::Index>(index);
}

}  // namespace

#define TQ_REAL(symbol) asm("__real_" symbol)
#define TQ_WRAP(symbol) asm("__wrap_" symbol)

// ---- index_factory ----

faiss::Index* real_index_factory(int d, const char* description,
                                 faiss::MetricType metric TURBOQUANT_FAISS_FACTORY_PARAM)
    TQ_REAL(TQ_SYMBOL_INDEX_FACTORY);
faiss::Index* wrap_index_factory(int d, const char* description,
                                 faiss::MetricType metric TURBOQUANT_FAISS_FACTORY_PARAM)
    TQ_WRAP(TQ_SYMBOL_INDEX_FACTORY);

faiss::Index* wrap_index_factory(int d, const char* description,
                                 faiss::MetricType metric TURBOQUANT_FAISS_FACTORY_PARAM) {
  const auto faiss_factory = [&](const std::string& text) {
    return owned(real_index_factory(d, text.c_str(), metric TURBOQUANT_FAISS_FACTORY_ARG));
  };
  return glue::build(description, faiss_factory).release();
}

// ---- write_index ----

#define TQ_WRAP_WRITE(suffix, Target)                                          \
  void real_write_##suffix(const faiss::Index* index,                          \
                           Target target TURBOQUANT_FAISS_WRITE_FLAGS_PARAM)   \
      TQ_REAL(TQ_SYMBOL_WRITE_##suffix);                                       \
  void wrap_write_##suffix(const faiss::Index* index,                          \
                           Target target TURBOQUANT_FAISS_WRITE_FLAGS_PARAM)   \
      TQ_WRAP(TQ_SYMBOL_WRITE_##suffix);                                       \
  void wrap_write_##suffix(const faiss::Index* index,                          \
                           Target target TURBOQUANT_FAISS_WRITE_FLAGS_PARAM) { \
    glue::write(index, [&](const faiss::Index* tree) {                         \
      real_write_##suffix(tree, target TURBOQUANT_FAISS_WRITE_FLAGS_ARG);      \
    });                                                                        \
  }

TQ_WRAP_WRITE(PATH, const char*)
TQ_WRAP_WRITE(FILE, std::FILE*)
TQ_WRAP_WRITE(WRITER, faiss::IOWriter*)

// ---- read_index ----

// FAISS's readers by path and by FILE end in the one by IOReader, but not through a name that the
// linker sees.
template <class Real>
std::unique_ptr<faiss::Index> read_from(const char* path, const Real& real) {
  faiss::FileIOReader file(path);
  return glue::read(&file, real);
}
template <class Real>
std::unique_ptr<faiss::Index> read_from(std::FILE* opened, const Real& real) {
  faiss::FileIOReader file(opened);
  return glue::read(&file, real);
}
template <class Real>
std::unique_ptr<faiss::Index> read_from(faiss::IOReader* reader, const Real& real) {
  return glue::read(reader, real);
}

#define TQ_WRAP_READ(suffix, Source)                                                              \
  faiss::Index* real_read_##suffix(Source source, int io_flags) TQ_REAL(TQ_SYMBOL_READ_##suffix); \
  faiss::Index* wrap_read_##suffix(Source source, int io_flags) TQ_WRAP(TQ_SYMBOL_READ_##suffix); \
  faiss::Index* wrap_read_##suffix(Source source, int io_flags) {                                 \
    return read_from(source, [&] { return owned(real_read_##suffix(source, io_flags)); })         \
        .release();                                                                               \
  }

TQ_WRAP_READ(PATH, const char*)
TQ_WRAP_READ(FILE, std::FILE*)
TQ_WRAP_READ(READER, faiss::IOReader*)

#ifdef TURBOQUANT_FAISS_HAS_READ_INDEX_UP
#define TQ_WRAP_READ_UP(suffix, Source)                                                \
  std::unique_ptr<faiss::Index> real_read_up_##suffix(Source source, int io_flags)     \
      TQ_REAL(TQ_SYMBOL_READ_UP_##suffix);                                             \
  std::unique_ptr<faiss::Index> wrap_read_up_##suffix(Source source, int io_flags)     \
      TQ_WRAP(TQ_SYMBOL_READ_UP_##suffix);                                             \
  std::unique_ptr<faiss::Index> wrap_read_up_##suffix(Source source, int io_flags) {   \
    return read_from(source, [&] { return real_read_up_##suffix(source, io_flags); }); \
  }

TQ_WRAP_READ_UP(PATH, const char*)
TQ_WRAP_READ_UP(FILE, std::FILE*)
TQ_WRAP_READ_UP(READER, faiss::IOReader*)
#endif

// ---- clone_index ----

faiss::Index* real_clone_index(const faiss::Index* index) TQ_REAL(TQ_SYMBOL_CLONE_INDEX);
faiss::Index* wrap_clone_index(const faiss::Index* index) TQ_WRAP(TQ_SYMBOL_CLONE_INDEX);

faiss::Index* wrap_clone_index(const faiss::Index* index) {
  const bool ours = index != nullptr && contains_turboquant(*index);
  return ours ? glue::clone(*index).release() : real_clone_index(index);
}

}  // namespace turboquant
