// Values of the database (docs/storage_format.md) as structures. Decoders take any bytes, return
// false on what no encoder writes, and allocate no more than the bytes justify.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "packing/rows.h"
#include "storage/coding.h"
#include "turboquant/store.h"

namespace turboquant::storage {

inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::uint32_t kPackedVersion = 2;  ///< of collections whose blocks are packed
inline constexpr std::uint32_t kBlockRows = 4096;

struct CollectionRecord {
  std::uint32_t version = kFormatVersion;  ///< as it was read; what is written follows the options
  std::uint32_t cid = 0;
  CollectionOptions options;  ///< seed is set
  std::uint64_t fingerprint = 0;
};

std::string encode_collection(const CollectionRecord& record);

/// `version` is set even when the rest cannot be understood because it is another one.
bool decode_collection(std::string_view bytes, CollectionRecord& record);

/// An id within a value.
void put_id(std::string& out, const RecordId& id);
bool take_id(ByteReader& reader, RecordId& id);

std::string encode_metadata(const Metadata& metadata);
bool decode_metadata(std::string_view bytes, Metadata& metadata);

/// Values of a record's indexed fields: position among the collection's fields, value; ascending.
using IndexedValues = std::vector<std::pair<std::uint16_t, MetadataValue>>;

std::string encode_indexed(const IndexedValues& values);
bool decode_indexed(std::string_view bytes, const std::vector<FieldSchema>& fields,
                    IndexedValues& values);

/// A row outside a block. `code` views the bytes.
struct RowRecord {
  RecordId id;
  std::string_view code;
};

std::string encode_row(const RecordId& id, std::string_view code);
bool decode_row(std::string_view bytes, std::size_t code_size, RowRecord& row);

/// A full block. `codes` views the bytes, [kBlockRows][code_size], or what was unpacked.
struct BlockRecord {
  std::string_view codes;
  std::vector<RecordId> ids;
  std::vector<std::uint8_t> unpacked;
};

/// codes: [kBlockRows][code size]; as many ids. layout: of the rows where they are packed, else
/// null.
std::string encode_block(std::string_view codes, const std::vector<RecordId>& ids,
                         const packing::RowLayout* layout = nullptr);
bool decode_block(std::string_view bytes, std::size_t code_size, BlockRecord& block,
                  const packing::RowLayout* layout = nullptr);

struct OperationRecord {
  std::uint64_t expiry = 0;  ///< seconds since 1970
  std::uint8_t kind = 0;
  std::uint64_t request_hash = 0;
  WriteResult result;
};

std::string encode_operation(const OperationRecord& record);
bool decode_operation(std::string_view bytes, OperationRecord& record);

/// Original vectors: [dimension] float16 or float32.
std::string encode_original(const float* vector, std::size_t dimension, Originals kind);
bool decode_original(std::string_view bytes, std::size_t dimension, Originals kind, float* vector);

}  // namespace turboquant::storage
