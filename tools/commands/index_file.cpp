#include "tools/commands/index_file.h"

#include <faiss/impl/FaissException.h>
#include <faiss/impl/io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include "tools/io/atomic_file.h"
#include "tools/io/byte_source.h"
#include "tools/io/errors.h"
#include "tools/io/interrupt.h"

namespace turboquant::tools {
namespace {

class AtomicWriter final : public faiss::IOWriter {
 public:
  explicit AtomicWriter(io::AtomicFile& file) : file_(file) { name = file.path(); }
  std::size_t operator()(const void* bytes, std::size_t size, std::size_t items) override {
    io::check_interrupt();
    file_.write(bytes, size * items);
    return items;
  }

 private:
  io::AtomicFile& file_;
};

}  // namespace

std::unique_ptr<faiss::Index> load_index(const std::string& path) {
  io::open_file(path);  // our message and exit code when it is missing
  try {
    return std::unique_ptr<faiss::Index>(faiss::read_index(path.c_str()));
  } catch (const std::exception& error) {  // a damaged file can also ask for absurd memory
    throw io::DataError(path + ": not an index that can be read: " + error.what());
  }
}

void save_index(const faiss::Index& index, const std::string& path,
                const IndexWriteOptions& options) {
  io::AtomicFile file(path);
  AtomicWriter writer(file);
  turboquant::write_index(index, &writer, options);
  file.commit();
}

std::unique_ptr<faiss::Index> make_index(int dimension, const std::string& factory,
                                         faiss::MetricType metric) {
  try {
    return std::unique_ptr<faiss::Index>(faiss::index_factory(dimension, factory.c_str(), metric));
  } catch (const faiss::FaissException& error) {
    throw io::UsageError("factory string '" + factory + "': " + error.what());
  }
}

}  // namespace turboquant::tools
