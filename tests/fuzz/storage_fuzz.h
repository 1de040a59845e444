// What the store reads from its files, and filters, on any bytes. The first byte picks what.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "storage/coding.h"
#include "storage/compiled_filter.h"
#include "storage/field_index.h"
#include "storage/log_check.h"
#include "storage/records.h"

namespace turboquant::test {

inline void require(bool holds) {
  if (!holds) std::abort();
}

inline const std::vector<FieldSchema>& fuzz_fields() {
  static const std::vector<FieldSchema> fields = {{"b", FieldType::kBool},
                                                  {"i", FieldType::kInt64},
                                                  {"d", FieldType::kDouble},
                                                  {"s", FieldType::kString},
                                                  {"l", FieldType::kStringList}};
  return fields;
}

inline MetadataValue fuzz_value(storage::ByteReader& reader, FieldType type) {
  switch (type) {
    case FieldType::kBool:
      return reader.take<std::uint8_t>() % 2 == 1;
    case FieldType::kInt64:
      return static_cast<std::int64_t>(reader.take<std::int8_t>());
    case FieldType::kDouble:
      return reader.take<std::int8_t>() / 4.0;
    case FieldType::kString:
      return std::string(reader.take_bytes(reader.take<std::uint8_t>() % 3));
    case FieldType::kStringList:
      break;
  }
  std::vector<std::string> list(reader.take<std::uint8_t>() % 3);
  for (std::string& text : list) text = reader.take_bytes(reader.take<std::uint8_t>() % 3);
  return list;
}

inline Filter fuzz_filter(storage::ByteReader& reader, int depth) {
  const auto op = static_cast<Filter::Op>(reader.take<std::uint8_t>() % 7);
  if (op <= Filter::Op::kNot) {
    std::vector<Filter> children;
    const int n = op == Filter::Op::kNot ? 1 : reader.take<std::uint8_t>() % 4;
    for (int i = 0; i < n && (depth < 20 || op == Filter::Op::kNot); ++i) {
      children.push_back(depth < 20 ? fuzz_filter(reader, depth + 1) : Filter::exists("b"));
    }
    Filter filter = Filter::all_of(std::move(children));
    filter.op = op;
    return filter;
  }
  const FieldSchema& field = fuzz_fields()[reader.take<std::uint8_t>() % 5];
  const FieldType type = field.type == FieldType::kStringList ? FieldType::kString : field.type;
  if (op == Filter::Op::kExists) return Filter::exists(field.name);
  if (op == Filter::Op::kEqual) return Filter::equal(field.name, fuzz_value(reader, type));
  if (op == Filter::Op::kIn) {
    std::vector<MetadataValue> values(reader.take<std::uint8_t>() % 8);
    for (MetadataValue& value : values) value = fuzz_value(reader, type);
    return Filter::one_of(field.name, std::move(values));
  }
  FilterRange range;
  const auto bounds = reader.take<std::uint8_t>();
  if ((bounds & 1) != 0) range.gt = fuzz_value(reader, type);
  if ((bounds & 2) != 0) range.gte = fuzz_value(reader, type);
  if ((bounds & 4) != 0) range.lt = fuzz_value(reader, type);
  if ((bounds & 8) != 0) range.lte = fuzz_value(reader, type);
  return Filter::range(field.name, std::move(range));
}

// The index of a block selects what looking at each row does, in one piece or made in two.
inline void fuzz_filters(storage::ByteReader& reader) {
  const Filter filter = fuzz_filter(reader, 0);
  (void)storage::filter_bytes(filter);
  const auto node = storage::compile_filter(filter, fuzz_fields());
  if (!node.ok()) {
    require(!error_reason(node.status()).empty() && !node.status().message().empty());
    return;
  }
  std::vector<storage::IndexedValues> rows(reader.take<std::uint8_t>() % 40);
  for (storage::IndexedValues& row : rows) {
    const auto present = reader.take<std::uint8_t>();
    for (std::uint16_t f = 0; f < 5; ++f) {
      if ((present >> f & 1) != 0) row.emplace_back(f, fuzz_value(reader, fuzz_fields()[f].type));
    }
  }
  const auto half = rows.begin() + static_cast<std::ptrdiff_t>(rows.size() / 2);
  const storage::BlockIndex whole(fuzz_fields(), nullptr, rows);
  const storage::BlockIndex first(fuzz_fields(), nullptr, {rows.begin(), half});
  const storage::BlockIndex both(fuzz_fields(), &first, {half, rows.end()});
  const storage::RowBits selected = whole.select(*node);
  require(selected.words == both.select(*node).words);
  for (std::uint32_t i = 0; i < storage::kBlockRows; ++i) {
    require(selected.test(i) == (i < rows.size() && storage::matches(*node, rows[i])));
  }
}

inline void fuzz_storage(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  storage::ByteReader reader(bytes);
  // What a decoder takes, the encoder gives back.
  switch (data[0] % 10) {
    case 0: {
      storage::CollectionRecord record;
      if (storage::decode_collection(bytes, record)) {
        require(storage::encode_collection(record) == bytes);
      }
      break;
    }
    case 1: {
      Metadata metadata;
      if (storage::decode_metadata(bytes, metadata)) {
        require(storage::encode_metadata(metadata) == bytes);
      }
      break;
    }
    case 2: {
      storage::IndexedValues values;
      if (storage::decode_indexed(bytes, fuzz_fields(), values)) {
        require(storage::encode_indexed(values) == bytes);
      }
      break;
    }
    case 3: {
      storage::RowRecord row;
      if (storage::decode_row(bytes, 12, row)) {
        require(storage::encode_row(row.id, row.code) == bytes);
      }
      break;
    }
    case 4: {
      storage::BlockRecord block;
      (void)storage::decode_block(bytes, reader.take<std::uint8_t>(), block);
      (void)storage::decode_block(bytes, 0, block);
      for (int bits = 1; bits <= 4; ++bits) {
        const packing::RowLayout layout{10, bits, (10u * static_cast<unsigned>(bits) + 7) / 8 + 4};
        (void)storage::decode_block(bytes, layout.code_size, block, &layout);
      }
      break;
    }
    case 5: {
      storage::OperationRecord operation;
      if (storage::decode_operation(bytes, operation)) {
        require(storage::encode_operation(operation) == bytes);
      }
      break;
    }
    case 6: {
      RecordId id;
      std::string key;
      if (storage::parse_id_key(bytes, id)) {
        storage::put_id_key(key, id);
        require(key == bytes);
      }
      break;
    }
    case 7: {
      std::vector<float> vector(bytes.size() / 2);
      for (const Originals kind : {Originals::kFp16, Originals::kFp32}) {
        const std::size_t d = bytes.size() / (kind == Originals::kFp16 ? 2 : 4);
        if (storage::decode_original(bytes, d, kind, vector.data())) {
          require(storage::encode_original(vector.data(), d, kind) == bytes);
        }
      }
      break;
    }
    case 8:
      (void)storage::has_damaged_header(bytes);
      break;
    default:
      fuzz_filters(reader);
  }
}

}  // namespace turboquant::test
