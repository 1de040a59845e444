#include "storage/table_check.h"

#include <absl/strings/str_cat.h>

#include <cstdint>
#include <filesystem>
#include <fstream>

#include "storage/coding.h"
#include "storage/errors.h"

namespace turboquant::storage {
namespace {

// RocksDB's format of tables: the properties, a block, are followed by 5 bytes (compression and
// checksum), the block that names them, and the footer: a byte (the kind of checksum), that block's
// place as varints in 40 bytes, the version and a magic number. A block ends with the number of its
// restarts in 4 bytes.
constexpr std::uint64_t kFooter = 53;
constexpr std::uint64_t kMagic = 0x88e241b785f4cff7;
constexpr std::uint64_t kBlockTrailer = 5;

// 0 for what is no varint.
std::uint64_t take_varint(ByteReader& reader) {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 63; shift += 7) {
    const auto byte = reader.take<std::uint8_t>();
    value |= static_cast<std::uint64_t>(byte & 127) << shift;
    if (byte < 128) return value;
  }
  return 0;
}

bool has_damaged_properties(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const auto size = static_cast<std::uint64_t>(file.tellg());
  std::string footer(kFooter, '\0');
  file.seekg(-static_cast<std::streamoff>(kFooter), std::ios::end);
  if (!file.read(footer.data(), static_cast<std::streamsize>(kFooter))) return false;
  ByteReader magic(std::string_view(footer).substr(kFooter - 8));
  if (magic.take<std::uint64_t>() != kMagic) return false;
  ByteReader place(std::string_view(footer).substr(1));
  const std::uint64_t behind = take_varint(place);
  if (behind <= kBlockTrailer || behind > size) return false;
  file.seekg(static_cast<std::streamoff>(behind - kBlockTrailer - 1));
  const int last = file.get();
  return file.good() && last >= 128;
}

}  // namespace

absl::Status check_tables(const std::string& database_folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(database_folder, error)) {
    if (entry.path().extension() != ".sst" || !has_damaged_properties(entry.path())) continue;
    return damaged(absl::StrCat(entry.path().string(), " is damaged"));
  }
  return absl::OkStatus();
}

}  // namespace turboquant::storage
