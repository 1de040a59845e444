// cross_version write FOLDER: writes an index file for every factory string and metric, with the
// ids and scores that it finds. cross_version check FOLDER: reads them, perhaps with another FAISS
// version, and compares. docs/faiss_versions.md says how both are used.
#include <faiss/IndexPreTransform.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissAssert.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"

namespace {

using turboquant::test::Results;

constexpr int kD = 32;
constexpr std::int64_t kK = 10;

std::vector<float> queries() { return turboquant::test::clustered(50, kD, 2); }

std::string path_of(const std::string& folder, const std::string& text, bool l2) {
  return folder + "/" + turboquant::test::test_name(text) + (l2 ? "_l2" : "_ip");
}

std::uint32_t bits_of(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// FAISS versions normalize a query to different bits, so an L2norm transform is left out here: what
// is behind it gets the query itself.
Results search(const faiss::Index& index) {
  const faiss::Index* searched = &index;
  if (const auto* chain = dynamic_cast<const faiss::IndexPreTransform*>(searched)) {
    const auto* first = chain->chain[0];
    if (dynamic_cast<const faiss::NormalizationTransform*>(first) != nullptr) {
      searched = chain->index;
    }
  }
  return turboquant::test::search(*searched, queries(), kK);
}

void write_one(const std::string& path, const std::string& text, bool l2) {
  const auto index =
      turboquant::index_factory(kD, text, l2 ? faiss::METRIC_L2 : faiss::METRIC_INNER_PRODUCT);
  turboquant::test::fill(*index, turboquant::test::clustered(500, kD, 1));
  turboquant::write_index(*index, path + ".index");
  const Results found = search(*index);
  std::ofstream file(path + ".results", std::ios::binary);
  file.write(reinterpret_cast<const char*>(found.labels.data()),
             static_cast<std::streamsize>(found.labels.size() * sizeof(std::int64_t)));
  file.write(reinterpret_cast<const char*>(found.distances.data()),
             static_cast<std::streamsize>(found.distances.size() * sizeof(float)));
  if (!file) throw faiss::FaissException("cannot write " + path + ".results");
}

// FAISS's own products of floats have other last bits in each version and build.
bool same_score(float a, float b, bool of_floats) {
  if (of_floats) return std::fabs(a - b) <= 1e-5f * std::max(1.0f, std::fabs(a));
  return bits_of(a) == bits_of(b);  // so that a NaN equals itself and -0 is not 0
}

// Returns how many of the results differ in id or score.
std::size_t check_one(const std::string& path, const std::string& text) {
  const auto index = turboquant::read_index(path + ".index");
  const auto again = turboquant::clone_index(*index);
  const Results found = search(*again);
  Results expected = found;
  std::ifstream file(path + ".results", std::ios::binary);
  file.read(reinterpret_cast<char*>(expected.labels.data()),
            static_cast<std::streamsize>(expected.labels.size() * sizeof(std::int64_t)));
  file.read(reinterpret_cast<char*>(expected.distances.data()),
            static_cast<std::streamsize>(expected.distances.size() * sizeof(float)));
  if (!file) throw faiss::FaissException("cannot read " + path + ".results");
  const bool of_floats = text.find("Flat") != std::string::npos;
  std::size_t different = 0;
  for (std::size_t i = 0; i < found.labels.size(); ++i) {
    const bool same_id = found.labels[i] == expected.labels[i];
    if (!same_id || !same_score(found.distances[i], expected.distances[i], of_floats)) ++different;
  }
  std::printf("%-28s %4zu of %zu results differ\n", text.c_str(), different, found.labels.size());
  return different;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 3 ? argv[1] : "";
  if (mode != "write" && mode != "check") {
    std::fprintf(stderr, "usage: cross_version write|check FOLDER\n");
    return 2;
  }
  std::size_t different = 0;
  try {
    for (const std::string& text : turboquant::test::factory_strings()) {
      for (const bool l2 : {false, true}) {
        const std::string path = path_of(argv[2], text, l2);
        if (mode == "write") {
          write_one(path, text, l2);
        } else {
          different += check_one(path, text + (l2 ? " L2" : " IP"));
        }
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return different == 0 ? 0 : 3;
}
