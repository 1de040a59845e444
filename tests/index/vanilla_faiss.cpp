// vanilla_faiss FILE...: a program without TurboQuant. FAISS must refuse our files, not misread
// them.
#include <faiss/Index.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/index_io.h>

#include <cstdio>
#include <memory>
#include <string>

int main(int argc, char** argv) {
  int refused = 0;
  for (int i = 1; i < argc; ++i) {
    try {
      const std::unique_ptr<faiss::Index> index(faiss::read_index(argv[i]));
      std::printf("%s was read\n", argv[i]);
    } catch (const faiss::FaissException& error) {
      const bool named = std::string(error.what()).find("ilTQ") != std::string::npos;
      std::printf("%s: %s\n", argv[i], error.what());
      refused += named ? 1 : 0;
    }
  }
  return argc > 1 && refused == argc - 1 ? 0 : 1;
}
