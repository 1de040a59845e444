#include "tools/commands/info.h"

#include <nlohmann/json.hpp>

#include "tools/commands/index_file.h"
#include "tools/commands/index_tree.h"
#include "tools/commands/memory.h"
#include "tools/io/byte_source.h"
#include "tools/io/errors.h"
#include "tools/io/vector_file.h"

namespace turboquant::tools {
namespace {

bool names_vectors(const std::string& path) {
  try {
    io::guess_format(path);
    return true;
  } catch (const io::UsageError&) {
    return false;
  }
}

nlohmann::ordered_json describe_vectors(const std::string& path) {
  const auto reader = io::open_vectors(path);
  return {{"file", path},
          {"kind", "vectors"},
          {"format", io::format_name(reader->format())},
          {"dtype", io::element_name(reader->element())},
          {"rows", reader->rows()},
          {"dimension", reader->dimension()}};
}

std::string metric_text(faiss::Index& index) {
  try {
    return metric_name(metric_of(index));
  } catch (const io::UsageError&) {
    return "FAISS metric " + std::to_string(index.metric_type);
  }
}

nlohmann::ordered_json describe_index(const std::string& path) {
  const auto index = load_index(path);
  nlohmann::ordered_json json = {{"file", path},
                                 {"kind", "index"},
                                 {"description", describe(*index)},
                                 {"metric", metric_text(*index)},
                                 {"vectors", index->ntotal},
                                 {"dimension", index->d},
                                 {"trained", index->is_trained},
                                 {"bytes_per_vector", nullptr}};
  if (const auto bytes = vector_bytes(*index)) {
    const double floats = 4.0 * index->d;
    json["bytes_per_vector"] = *bytes;
    json["compression_ratio"] = floats / static_cast<double>(*bytes);
  }
  return json;
}

}  // namespace

void print_info(const std::string& path, bool json, std::ostream& out) {
  auto facts = names_vectors(path) ? describe_vectors(path) : describe_index(path);
  facts["file_bytes"] = io::open_file(path)->size();
  if (json) {
    out << facts.dump(2) << "\n";
    return;
  }
  for (const auto& [key, value] : facts.items()) {
    std::string label = key + std::string(18 - std::min<std::size_t>(key.size(), 17), ' ');
    out << label << (value.is_string() ? value.get<std::string>() : value.dump()) << "\n";
  }
}

}  // namespace turboquant::tools
