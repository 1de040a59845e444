#include "storage/log_check.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "storage/coding.h"
#include "storage/errors.h"

namespace turboquant::storage {
namespace {

// RocksDB's log format: blocks of 32 KiB; records of a masked CRC32C of type and payload, a length,
// a type and the payload; fewer than 7 bytes at the end of a block are not used.
constexpr std::size_t kLogBlock = 32768;
constexpr std::size_t kHeader = 7;

std::uint32_t masked(std::uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

// Whether some prefix of `payload`, with one of the types that a MANIFEST has, is what the CRC was
// made of.
bool any_record_fits(std::string_view payload, std::uint32_t stored) {
  for (const char type : {'\1', '\2', '\3', '\4'}) {
    std::uint32_t crc = crc32c({&type, 1});
    for (std::size_t i = 0;; ++i) {
      if (masked(crc) == stored) return true;
      if (i == payload.size()) break;
      crc = crc32c(payload.substr(i, 1), crc);
    }
  }
  return false;
}

}  // namespace

bool has_damaged_header(std::string_view log) {
  for (std::size_t start = 0; start < log.size(); start += kLogBlock) {
    std::string_view block = log.substr(start, kLogBlock);
    while (block.size() >= kHeader) {
      ByteReader reader(block);
      const auto crc = reader.take<std::uint32_t>();
      const auto length = reader.take<std::uint16_t>();
      const auto type = reader.take<std::uint8_t>();
      if (kHeader + length > block.size() || type > 4) {
        return any_record_fits(block.substr(kHeader), crc);
      }
      block.remove_prefix(kHeader + length);
    }
  }
  return false;
}

absl::Status check_manifest(const std::string& database_folder) {
  std::string name;
  std::getline(std::ifstream(database_folder + "/CURRENT"), name);
  std::ifstream file(database_folder + "/" + name, std::ios::binary);
  if (name.empty() || !file) return damaged(absl::StrCat(database_folder, "/CURRENT is damaged"));
  const std::string log((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!has_damaged_header(log)) return absl::OkStatus();
  return damaged(absl::StrCat(database_folder, "/", name, " is damaged"));
}

}  // namespace turboquant::storage
