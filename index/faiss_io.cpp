#include "turboquant/faiss_io.h"

#include <faiss/clone_index.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include "index/carrier.h"
#include "index/checked_reader.h"
#include "index/checks.h"
#include "index/glue.h"
#include "index/index_tree.h"
#include "index/payload.h"

namespace turboquant {

namespace glue {

void write(const faiss::Index* index, const Write& faiss_write, bool pack) {
  if (index == nullptr || !contains_turboquant(*index)) {
    faiss_write(index);
    return;
  }
  register_payload();
  const StandIn stand_in(*index, pack);
  faiss_write(stand_in.root());
}

std::unique_ptr<faiss::Index> read(faiss::IOReader* reader, const Read& faiss_read) {
  register_payload();
  if (starts_flat_index(peek(reader, kLeafPrefix))) return read_flat_carrier(reader);
  std::unique_ptr<faiss::Index> tree = faiss_read();
  if (tree == nullptr) return nullptr;
  tree = restore(std::move(tree));
  require_residuals_in_place(*tree);
  return tree;
}

}  // namespace glue

std::unique_ptr<faiss::Index> index_factory(int d, const std::string& description,
                                            faiss::MetricType metric) {
  return glue::build(description, [&](const std::string& text) {
    return std::unique_ptr<faiss::Index>(faiss::index_factory(d, text.c_str(), metric));
  });
}

void write_index(const faiss::Index& index, const std::string& path,
                 const IndexWriteOptions& options) {
  glue::write(
      &index, [&](const faiss::Index* tree) { faiss::write_index(tree, path.c_str()); },
      options.pack);
}

void write_index(const faiss::Index& index, faiss::IOWriter* writer,
                 const IndexWriteOptions& options) {
  glue::write(
      &index, [&](const faiss::Index* tree) { faiss::write_index(tree, writer); }, options.pack);
}

std::unique_ptr<faiss::Index> read_index(const std::string& path, int io_flags) {
  faiss::FileIOReader file(path.c_str());
  return glue::read(&file, [&] {
    return std::unique_ptr<faiss::Index>(faiss::read_index(path.c_str(), io_flags));
  });
}

std::unique_ptr<faiss::Index> read_index(faiss::IOReader* reader, int io_flags) {
  return glue::read(
      reader, [&] { return std::unique_ptr<faiss::Index>(faiss::read_index(reader, io_flags)); });
}

std::unique_ptr<IndexTurboQuant> read_flat_index(const std::uint8_t* data, std::size_t size) {
  MemoryReader reader(data, size);
  auto index = read_flat_carrier(&reader);
  if (reader.remaining() > 0) {
    fail(std::to_string(reader.remaining()) + " bytes follow the index");
  }
  return index;
}

std::unique_ptr<faiss::Index> clone_index(const faiss::Index& index) {
  if (contains_turboquant(index)) return glue::clone(index);
  return std::unique_ptr<faiss::Index>(faiss::clone_index(&index));
}

}  // namespace turboquant
