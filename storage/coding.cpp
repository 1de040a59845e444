#include "storage/coding.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace turboquant::storage {

std::uint32_t crc32c(std::string_view data, std::uint32_t before) {
  std::uint32_t crc = ~before;
  while (!data.empty()) {
    const std::size_t n = std::min(data.size(), std::size_t{1} << 30);  // the library takes an int
    // The library only reads, though its parameter is not const.
    auto* bytes = reinterpret_cast<unsigned char*>(const_cast<char*>(data.data()));
    crc = crc32_iscsi(bytes, static_cast<int>(n), crc);
    data.remove_prefix(n);
  }
  return ~crc;
}

void seal(std::string_view key, std::string& value) { put(value, crc32c(value, crc32c(key))); }

bool unseal(std::string_view key, std::string_view& value) {
  if (value.size() < 4) return false;
  std::uint32_t stored = 0;
  std::memcpy(&stored, value.data() + value.size() - 4, 4);
  value.remove_suffix(4);
  [[maybe_unused]] const bool whole = stored == crc32c(value, crc32c(key));
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  return true;  // no mutation would get past the comparison
#else
  return whole;
#endif
}

std::string collection_key(std::uint32_t cid) {
  std::string key;
  put_ordered(key, cid);
  return key;
}

std::string row_key(std::uint32_t cid, std::uint64_t row) {
  std::string key;
  put_ordered(key, cid);
  put_ordered(key, row);
  return key;
}

std::string block_key(std::uint32_t cid, std::uint32_t block, std::uint8_t part) {
  std::string key;
  put_ordered(key, cid);
  put_ordered(key, block);
  put_ordered(key, part);
  return key;
}

std::string delta_key(std::uint32_t cid, std::uint8_t kind, std::uint64_t row) {
  std::string key;
  put_ordered(key, cid);
  put_ordered(key, kind);
  put_ordered(key, row);
  return key;
}

std::string id_key(std::uint32_t cid, const RecordId& id) {
  std::string key;
  put_ordered(key, cid);
  put_id_key(key, id);
  return key;
}

std::string operation_key(std::uint32_t cid, std::string_view operation) {
  std::string key;
  put_ordered(key, cid);
  key.append(operation);
  return key;
}

std::string next_row_key(std::uint32_t cid) { return "r/" + collection_key(cid); }

void put_id_key(std::string& out, const RecordId& id) {
  if (const auto* number = std::get_if<std::uint64_t>(&id)) {
    out.push_back('\0');
    put_ordered(out, *number);
  } else {
    out.push_back('\1');
    out.append(std::get<std::string>(id));
  }
}

bool parse_id_key(std::string_view bytes, RecordId& id) {
  ByteReader reader(bytes);
  const auto kind = reader.take<std::uint8_t>();
  if (kind == 0) {
    id = reader.take_ordered<std::uint64_t>();
    return reader.at_end();
  }
  if (kind != 1 || reader.left() == 0 || reader.left() > kMaxIdBytes) return false;
  id = std::string(reader.take_bytes(reader.left()));
  return reader.at_end();
}

}  // namespace turboquant::storage
