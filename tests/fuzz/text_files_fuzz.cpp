// Text that the programs read: files of ids, lines of text, JSON lines beside vectors, filters as
// JSON, token files. The first byte picks what.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "service/auth.h"
#include "tools/commands/push_source.h"
#include "tools/commands/remote.h"
#include "tools/io/errors.h"
#include "tools/io/ids_file.h"
#include "tools/io/text_lines.h"

namespace turboquant::tools {
namespace {

class Files {
 public:
  Files() {
    std::string pattern = "/dev/shm/tq-fuzz-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    folder_ = pattern;
    // Two rows of two numbers.
    const unsigned char rows[] = {2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 128, 63,
                                  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 63};
    vectors_ = write("x.fbin", rows, sizeof rows);
  }
  ~Files() { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::uint8_t* data, std::size_t size) {
    const std::string path = folder_ + "/" + name;
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    if (file == nullptr || std::fwrite(data, 1, size, file) != size) std::abort();
    std::fclose(file);
    return path;
  }

  void read(int what, const std::uint8_t* data, std::size_t size) {
    switch (what) {
      case 0:
        (void)io::read_ids(write("ids.txt", data, size));
        break;
      case 1:
        (void)io::read_ids(write("ids.npy", data, size));
        break;
      case 2:
        (void)io::read_ids(write("ids.ibin", data, size));
        break;
      case 3: {
        const io::TextLines lines(write("lines.txt", data, size));
        for (std::size_t i = 0; i < lines.size(); ++i) (void)lines.line(i);
        break;
      }
      case 4:
        push_rows(data, size);
        break;
      case 5:
        (void)parse_filter(std::string(reinterpret_cast<const char*>(data), size));
        break;
      default:
        (void)service::Authenticator::create(write("tokens", data, size));
    }
  }

 private:
  void push_rows(const std::uint8_t* data, std::size_t size) {
    PushInput input;
    input.vectors = vectors_;
    input.metadata = write("rows.jsonl", data, size);
    if (size % 2 == 0) input.id_field = "id";
    PushSource source(input);
    CollectionOptions collection;
    collection.dimension = 2;
    collection.fields = {{"n", FieldType::kInt64}, {"d", FieldType::kDouble}};
    const PushBatch batch = source.read(0, 2, collection);
    if (batch.ids.size() + batch.bad.size() != 2 || batch.metadata.size() != batch.ids.size()) {
      std::abort();
    }
  }

  std::string folder_;
  std::string vectors_;
};

}  // namespace
}  // namespace turboquant::tools

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static turboquant::tools::Files files;
  if (size == 0) return 0;
  try {
    files.read(data[0] % 7, data + 1, size - 1);
  } catch (const turboquant::io::DataError&) {
  } catch (const turboquant::io::UsageError&) {
  }  // what files may be refused with; anything else ends the run
  return 0;
}
