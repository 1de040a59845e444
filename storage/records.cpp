#include "storage/records.h"

#include <cmath>
#include <limits>

#include "packing/streams.h"
#include "quantizer/half.h"

namespace turboquant::storage {
namespace {

void put_value(std::string& out, const MetadataValue& value) {
  put(out, static_cast<std::uint8_t>(value.index()));
  if (const auto* flag = std::get_if<bool>(&value)) {
    put(out, static_cast<std::uint8_t>(*flag ? 1 : 0));
  } else if (const auto* integer = std::get_if<std::int64_t>(&value)) {
    put(out, *integer);
  } else if (const auto* real = std::get_if<double>(&value)) {
    put(out, *real);
  } else if (const auto* text = std::get_if<std::string>(&value)) {
    put_string<std::uint32_t>(out, *text);
  } else {
    const auto& list = std::get<std::vector<std::string>>(value);
    put(out, static_cast<std::uint16_t>(list.size()));
    for (const std::string& element : list) put_string<std::uint32_t>(out, element);
  }
}

bool take_value(ByteReader& reader, MetadataValue& value) {
  switch (static_cast<FieldType>(reader.take<std::uint8_t>())) {
    case FieldType::kBool: {
      const auto flag = reader.take<std::uint8_t>();
      if (flag > 1) return false;
      value = flag == 1;
      return reader.ok();
    }
    case FieldType::kInt64:
      value = reader.take<std::int64_t>();
      return reader.ok();
    case FieldType::kDouble: {
      const auto real = reader.take<double>();
      value = real;
      return reader.ok() && std::isfinite(real);
    }
    case FieldType::kString:
      value = std::string(reader.take_string<std::uint32_t>());
      return reader.ok();
    case FieldType::kStringList: {
      const auto count = reader.take<std::uint16_t>();
      if (count > kMaxListElements || count * std::size_t{4} > reader.left()) return false;
      std::vector<std::string> list(count);
      for (std::string& element : list) element = reader.take_string<std::uint32_t>();
      value = std::move(list);
      return reader.ok();
    }
  }
  return false;
}

}  // namespace

std::string encode_collection(const CollectionRecord& record) {
  std::string out;
  put(out, record.options.pack_codes ? kPackedVersion : record.version);
  put(out, record.cid);
  put(out, static_cast<std::uint32_t>(record.options.dimension));
  put(out, static_cast<std::uint8_t>(record.options.metric));
  put(out, static_cast<std::uint8_t>(record.options.originals));
  put(out, record.options.seed.value());
  put(out, record.fingerprint);
  put(out, record.options.shard);
  put_string<std::uint16_t>(out, record.options.factory);
  put(out, static_cast<std::uint16_t>(record.options.fields.size()));
  for (const FieldSchema& field : record.options.fields) {
    put_string<std::uint16_t>(out, field.name);
    put(out, static_cast<std::uint8_t>(field.type));
  }
  return out;
}

bool decode_collection(std::string_view bytes, CollectionRecord& record) {
  ByteReader reader(bytes);
  record.version = reader.take<std::uint32_t>();
  const bool packed = record.version == kPackedVersion;
  if (!reader.ok() || (record.version != kFormatVersion && !packed)) return false;
  record.cid = reader.take<std::uint32_t>();
  CollectionOptions& options = record.options;
  options.pack_codes = packed;
  options.dimension = reader.take<std::uint32_t>();
  const auto metric = reader.take<std::uint8_t>();
  const auto originals = reader.take<std::uint8_t>();
  options.seed = reader.take<std::uint64_t>();
  record.fingerprint = reader.take<std::uint64_t>();
  options.shard = reader.take<std::uint32_t>();
  options.factory = reader.take_string<std::uint16_t>();
  const auto fields = reader.take<std::uint16_t>();
  if (!reader.ok() || metric > 2 || originals > 2 || fields > kMaxFields) return false;
  options.metric = static_cast<DistanceMetric>(metric);
  options.originals = static_cast<Originals>(originals);
  options.fields.clear();
  for (std::uint16_t i = 0; i < fields; ++i) {
    FieldSchema field;
    field.name = reader.take_string<std::uint16_t>();
    const auto type = reader.take<std::uint8_t>();
    if (!reader.ok() || type > 4) return false;
    field.type = static_cast<FieldType>(type);
    options.fields.push_back(std::move(field));
  }
  return reader.at_end();
}

void put_id(std::string& out, const RecordId& id) {
  if (const auto* number = std::get_if<std::uint64_t>(&id)) {
    put(out, std::uint8_t{0});
    put(out, *number);
  } else {
    put(out, std::uint8_t{1});
    put_string<std::uint16_t>(out, std::get<std::string>(id));
  }
}

bool take_id(ByteReader& reader, RecordId& id) {
  const auto kind = reader.take<std::uint8_t>();
  if (kind == 0) {
    id = reader.take<std::uint64_t>();
    return reader.ok();
  }
  if (kind != 1) return false;
  const std::string_view text = reader.take_string<std::uint16_t>();
  if (!reader.ok() || text.empty() || text.size() > kMaxIdBytes) return false;
  id = std::string(text);
  return true;
}

std::string encode_metadata(const Metadata& metadata) {
  std::string out;
  put(out, static_cast<std::uint16_t>(metadata.size()));
  for (const auto& [name, value] : metadata) {
    put_string<std::uint16_t>(out, name);
    put_value(out, value);
  }
  return out;
}

bool decode_metadata(std::string_view bytes, Metadata& metadata) {
  metadata.clear();
  ByteReader reader(bytes);
  const auto count = reader.take<std::uint16_t>();
  for (std::uint16_t i = 0; i < count && reader.ok(); ++i) {
    std::string name(reader.take_string<std::uint16_t>());
    const bool ascending = metadata.empty() || metadata.rbegin()->first < name;
    MetadataValue value;
    if (name.empty() || !ascending || !take_value(reader, value)) return false;
    metadata.emplace_hint(metadata.end(), std::move(name), std::move(value));
  }
  return reader.at_end();
}

std::string encode_indexed(const IndexedValues& values) {
  std::string out;
  put(out, static_cast<std::uint16_t>(values.size()));
  for (const auto& [field, value] : values) {
    put(out, field);
    put_value(out, value);
  }
  return out;
}

bool decode_indexed(std::string_view bytes, const std::vector<FieldSchema>& fields,
                    IndexedValues& values) {
  values.clear();
  ByteReader reader(bytes);
  const auto count = reader.take<std::uint16_t>();
  for (std::uint16_t i = 0; i < count && reader.ok(); ++i) {
    const auto field = reader.take<std::uint16_t>();
    MetadataValue value;
    if (field >= fields.size() || !take_value(reader, value)) return false;
    if (value.index() != static_cast<std::size_t>(fields[field].type)) return false;
    if (!values.empty() && values.back().first >= field) return false;
    values.emplace_back(field, std::move(value));
  }
  return reader.at_end();
}

std::string encode_row(const RecordId& id, std::string_view code) {
  std::string out;
  out.reserve(code.size() + 16);
  put_id(out, id);
  out.append(code);
  return out;
}

bool decode_row(std::string_view bytes, std::size_t code_size, RowRecord& row) {
  ByteReader reader(bytes);
  if (!take_id(reader, row.id)) return false;
  row.code = reader.take_bytes(code_size);
  return reader.at_end();
}

std::string encode_block(std::string_view codes, const std::vector<RecordId>& ids,
                         const packing::RowLayout* layout) {
  std::string out;
  out.reserve(codes.size() + kBlockRows * 9 + 16);
  put(out, kBlockRows);
  put(out, static_cast<std::uint32_t>(codes.size() / kBlockRows));
  if (layout == nullptr) {
    out.append(codes);
  } else {
    const auto packed = packing::pack_rows(
        *layout, reinterpret_cast<const std::uint8_t*>(codes.data()), kBlockRows);
    put(out, static_cast<std::uint32_t>(packed.size()));
    out.append(reinterpret_cast<const char*>(packed.data()), packed.size());
  }
  for (const RecordId& id : ids) put_id(out, id);
  return out;
}

bool decode_block(std::string_view bytes, std::size_t code_size, BlockRecord& block,
                  const packing::RowLayout* layout) {
  ByteReader reader(bytes);
  const auto rows = reader.take<std::uint32_t>();
  const auto size = reader.take<std::uint32_t>();
  if (!reader.ok() || rows != kBlockRows || size != code_size) return false;
  if (layout == nullptr) {
    block.codes = reader.take_bytes(kBlockRows * code_size);
  } else {
    const std::string_view packed = reader.take_bytes(reader.take<std::uint32_t>());
    if (!reader.ok() || packed.size() < kBlockRows * code_size / packing::kMostExpansion) {
      return false;
    }
    block.unpacked.resize(kBlockRows * code_size);
    if (!packing::unpack_rows(*layout, reinterpret_cast<const std::uint8_t*>(packed.data()),
                              packed.size(), kBlockRows, block.unpacked.data())) {
      return false;
    }
    block.codes = {reinterpret_cast<const char*>(block.unpacked.data()), block.unpacked.size()};
  }
  if (!reader.ok()) return false;
  block.ids.resize(kBlockRows);
  for (RecordId& id : block.ids) {
    if (!take_id(reader, id)) return false;
  }
  return reader.at_end();
}

std::string encode_operation(const OperationRecord& record) {
  std::string out;
  put(out, record.expiry);
  put(out, record.kind);
  put(out, record.request_hash);
  put(out, record.result.inserted);
  put(out, record.result.updated);
  put(out, record.result.deleted);
  return out;
}

bool decode_operation(std::string_view bytes, OperationRecord& record) {
  ByteReader reader(bytes);
  record.expiry = reader.take<std::uint64_t>();
  record.kind = reader.take<std::uint8_t>();
  record.request_hash = reader.take<std::uint64_t>();
  record.result.inserted = reader.take<std::uint64_t>();
  record.result.updated = reader.take<std::uint64_t>();
  record.result.deleted = reader.take<std::uint64_t>();
  return reader.at_end() && record.kind <= 3;
}

std::string encode_original(const float* vector, std::size_t dimension, Originals kind) {
  if (kind == Originals::kFp32) {
    return {reinterpret_cast<const char*>(vector), dimension * sizeof(float)};
  }
  std::string out(dimension * 2, '\0');
  for (std::size_t i = 0; i < dimension; ++i) {
    const std::uint16_t half = float_to_half(vector[i]);
    std::memcpy(out.data() + 2 * i, &half, 2);
  }
  return out;
}

bool decode_original(std::string_view bytes, std::size_t dimension, Originals kind, float* vector) {
  if (kind == Originals::kFp32) {
    if (bytes.size() != dimension * sizeof(float)) return false;
    if (!bytes.empty()) std::memcpy(vector, bytes.data(), bytes.size());
  } else {
    if (bytes.size() != dimension * 2) return false;
    for (std::size_t i = 0; i < dimension; ++i) {
      std::uint16_t half = 0;
      std::memcpy(&half, bytes.data() + 2 * i, 2);
      vector[i] = half_to_float(half);
    }
  }
  for (std::size_t i = 0; i < dimension; ++i) {
    if (!std::isfinite(vector[i])) return false;
  }
  return true;
}

}  // namespace turboquant::storage
