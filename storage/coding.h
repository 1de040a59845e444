// Bytes of keys and values (docs/storage_format.md): writing, checked reading, CRCs.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "turboquant/record.h"

namespace turboquant::storage {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are little-endian");

/// CRC32C of `data`, going on from the CRC of what came before it.
std::uint32_t crc32c(std::string_view data, std::uint32_t before = 0);

/// Appends a number, little-endian.
template <class T>
void put(std::string& out, T value) {
  static_assert(std::is_arithmetic_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/// Appends a number, big-endian, so that keys sort by it.
template <class T>
void put_ordered(std::string& out, T value) {
  static_assert(std::is_unsigned_v<T>);
  for (std::size_t i = sizeof value; i-- > 0;) {
    out.push_back(static_cast<char>(static_cast<std::uint8_t>(value >> (8 * i))));
  }
}

/// Appends a length of type Length and the bytes.
template <class Length>
void put_string(std::string& out, std::string_view text) {
  put(out, static_cast<Length>(text.size()));
  out.append(text);
}

/// Reads bytes that may be anything. After a failure every read gives zeros and ok() is false.
class ByteReader {
 public:
  explicit ByteReader(std::string_view data) : data_(data) {}
  explicit ByteReader(std::string&&) = delete;  // the bytes must outlive the reader

  bool ok() const { return ok_; }
  bool at_end() const { return ok_ && data_.empty(); }
  std::size_t left() const { return data_.size(); }

  template <class T>
  T take() {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    T value{};
    const std::string_view bytes = take_bytes(sizeof value);
    if (ok_) std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }

  template <class T>
  T take_ordered() {
    T value{};
    const std::string_view bytes = take_bytes(sizeof value);
    for (const char byte : bytes) {
      value = static_cast<T>(static_cast<T>(value << 8) | static_cast<std::uint8_t>(byte));
    }
    return value;
  }

  std::string_view take_bytes(std::size_t n) {
    if (!ok_ || n > data_.size()) {
      ok_ = false;
      return {};
    }
    const std::string_view bytes = data_.substr(0, n);
    data_.remove_prefix(n);
    return bytes;
  }

  template <class Length>
  std::string_view take_string() {
    return take_bytes(take<Length>());
  }

  void fail() { ok_ = false; }

 private:
  std::string_view data_;
  bool ok_ = true;
};

/// Appends the CRC of key and value to the value.
void seal(std::string_view key, std::string& value);

/// Checks the CRC at the end of a value and cuts it off; false when it is wrong.
bool unseal(std::string_view key, std::string_view& value);

// Keys.
std::string collection_key(std::uint32_t cid);
std::string row_key(std::uint32_t cid, std::uint64_t row);
std::string block_key(std::uint32_t cid, std::uint32_t block, std::uint8_t part);
std::string delta_key(std::uint32_t cid, std::uint8_t kind, std::uint64_t row);
std::string id_key(std::uint32_t cid, const RecordId& id);
std::string operation_key(std::uint32_t cid, std::string_view operation);

/// In family meta.
std::string next_row_key(std::uint32_t cid);

inline constexpr std::uint8_t kBlockPart = 0;
inline constexpr std::uint8_t kDeadPart = 1;
inline constexpr std::uint8_t kRowDelta = 0;
inline constexpr std::uint8_t kTombstone = 1;

/// An id as keys hold it, without the collection. parse_id_key is the inverse; false on nonsense.
void put_id_key(std::string& out, const RecordId& id);
bool parse_id_key(std::string_view bytes, RecordId& id);

}  // namespace turboquant::storage
