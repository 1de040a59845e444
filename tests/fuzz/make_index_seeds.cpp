// make_index_seeds FOLDER: writes the seeds of tests/fuzz/corpus/index_file.
#include <cstdio>
#include <fstream>
#include <string>

#include "tests/fuzz/index_seeds.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_index_seeds FOLDER\n");
    return 2;
  }
  auto seeds = turboquant::test::make_index_seeds();
  seeds.merge(turboquant::test::make_packed_seeds());
  for (const auto& [name, bytes] : seeds) {
    std::ofstream file(std::string(argv[1]) + "/" + name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    if (!file) {
      std::fprintf(stderr, "cannot write %s/%s\n", argv[1], name.c_str());
      return 1;
    }
  }
  return 0;
}
