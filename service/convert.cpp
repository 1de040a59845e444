#include "service/convert.h"

#include <absl/base/config.h>
#include <absl/strings/str_cat.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "quantizer/half.h"
#include "service/errors.h"

#ifndef ABSL_IS_LITTLE_ENDIAN
#error "vectors are sent as they lie in memory"
#endif

namespace turboquant::service {
namespace {

absl::StatusOr<MetadataValue> value_from_proto(const v1::Value& value) {
  switch (value.value_case()) {
    case v1::Value::kBoolValue:
      return MetadataValue(value.bool_value());
    case v1::Value::kIntValue:
      return MetadataValue(std::int64_t{value.int_value()});
    case v1::Value::kDoubleValue:
      return MetadataValue(value.double_value());
    case v1::Value::kStringValue:
      return MetadataValue(value.string_value());
    case v1::Value::kListValue: {
      const auto& list = value.list_value().values();
      return MetadataValue(std::vector<std::string>(list.begin(), list.end()));
    }
    case v1::Value::VALUE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a value is not set");
}

void value_to_proto(const MetadataValue& value, v1::Value* out) {
  switch (value.index()) {
    case 0:
      return out->set_bool_value(std::get<bool>(value));
    case 1:
      return out->set_int_value(std::get<std::int64_t>(value));
    case 2:
      return out->set_double_value(std::get<double>(value));
    case 3:
      return out->set_string_value(std::get<std::string>(value));
    default:
      v1::StringList* list = out->mutable_list_value();
      for (const std::string& element : std::get<std::vector<std::string>>(value)) {
        list->add_values(element);
      }
  }
}

absl::Status bad_filter(std::string_view sentence) { return invalid("BAD_FILTER", sentence); }

absl::StatusOr<MetadataValue> literal(const std::string& field, const v1::Value& value) {
  auto converted = value_from_proto(value);
  if (converted.ok()) return converted;
  return bad_filter(absl::StrCat("field \"", field, "\" is compared with a value that is not set"));
}

absl::Status bound(const v1::FieldRange& range, bool present, const v1::Value& value,
                   std::optional<MetadataValue>& out) {
  if (!present) return absl::OkStatus();
  auto converted = literal(range.field(), value);
  if (!converted.ok()) return converted.status();
  out = *std::move(converted);
  return absl::OkStatus();
}

absl::StatusOr<Filter> range_from_proto(const v1::FieldRange& range) {
  FilterRange bounds;
  absl::Status status = bound(range, range.has_gt(), range.gt(), bounds.gt);
  if (status.ok()) status = bound(range, range.has_gte(), range.gte(), bounds.gte);
  if (status.ok()) status = bound(range, range.has_lt(), range.lt(), bounds.lt);
  if (status.ok()) status = bound(range, range.has_lte(), range.lte(), bounds.lte);
  if (!status.ok()) return status;
  return Filter::range(range.field(), std::move(bounds));
}

absl::StatusOr<Filter> filter_from_proto(const v1::Filter& filter, std::size_t depth);

absl::StatusOr<std::vector<Filter>> children(const v1::Filters& filters, std::size_t depth) {
  std::vector<Filter> list;
  list.reserve(static_cast<std::size_t>(filters.filters_size()));
  for (const v1::Filter& child : filters.filters()) {
    auto converted = filter_from_proto(child, depth + 1);
    if (!converted.ok()) return converted.status();
    list.push_back(*std::move(converted));
  }
  return list;
}

absl::StatusOr<Filter> filter_from_proto(const v1::Filter& filter, std::size_t depth) {
  if (depth > kMaxFilterDepth) {
    return bad_filter(absl::StrCat("the filter is more than ", kMaxFilterDepth, " levels deep"));
  }
  switch (filter.condition_case()) {
    case v1::Filter::kAllOf: {
      auto list = children(filter.all_of(), depth);
      if (!list.ok()) return list.status();
      return Filter::all_of(*std::move(list));
    }
    case v1::Filter::kAnyOf: {
      auto list = children(filter.any_of(), depth);
      if (!list.ok()) return list.status();
      return Filter::any_of(*std::move(list));
    }
    case v1::Filter::kNegate: {
      auto child = filter_from_proto(filter.negate(), depth + 1);
      if (!child.ok()) return child.status();
      return Filter::negate(*std::move(child));
    }
    case v1::Filter::kEqual: {
      auto value = literal(filter.equal().field(), filter.equal().value());
      if (!value.ok()) return value.status();
      return Filter::equal(filter.equal().field(), *std::move(value));
    }
    case v1::Filter::kOneOf: {
      std::vector<MetadataValue> values;
      for (const v1::Value& value : filter.one_of().values()) {
        auto converted = literal(filter.one_of().field(), value);
        if (!converted.ok()) return converted.status();
        values.push_back(*std::move(converted));
      }
      return Filter::one_of(filter.one_of().field(), std::move(values));
    }
    case v1::Filter::kRange:
      return range_from_proto(filter.range());
    case v1::Filter::kExists:
      return Filter::exists(filter.exists().field());
    case v1::Filter::CONDITION_NOT_SET:
      break;
  }
  return bad_filter("a condition of the filter is not set");
}

absl::Status bad_matrix(std::size_t numbers, std::size_t dimension) {
  return invalid("BAD_VECTOR",
                 numbers == 0
                     ? absl::StrCat("no vectors are given")
                     : absl::StrCat(numbers, " numbers are not rows of dimension ", dimension));
}

}  // namespace

absl::StatusOr<RecordId> from_proto(const v1::RecordId& id) {
  switch (id.id_case()) {
    case v1::RecordId::kNumber:
      return RecordId(std::uint64_t{id.number()});
    case v1::RecordId::kName:
      return RecordId(id.name());
    case v1::RecordId::ID_NOT_SET:
      break;
  }
  return invalid("BAD_ID", "an id is neither a number nor a name");
}

absl::StatusOr<std::vector<RecordId>> from_proto(const RecordIds& ids) {
  std::vector<RecordId> list;
  list.reserve(static_cast<std::size_t>(ids.size()));
  for (const v1::RecordId& id : ids) {
    auto converted = from_proto(id);
    if (!converted.ok()) {
      return invalid("BAD_ID",
                     absl::StrCat("row ", list.size(), ": ", converted.status().message()));
    }
    list.push_back(*std::move(converted));
  }
  return list;
}

absl::StatusOr<Metadata> from_proto(const v1::Metadata& metadata) {
  Metadata fields;
  for (const auto& [name, value] : metadata.fields()) {
    auto converted = value_from_proto(value);
    if (!converted.ok()) {
      return invalid("BAD_METADATA", absl::StrCat("field \"", name, "\" has no value"));
    }
    fields.emplace(name, *std::move(converted));
  }
  return fields;
}

absl::StatusOr<Filter> from_proto(const v1::Filter& filter) { return filter_from_proto(filter, 1); }

absl::StatusOr<CollectionOptions> from_proto(const v1::CollectionOptions& options) {
  CollectionOptions out;
  out.dimension = options.dimension();
  if (options.metric() < v1::METRIC_INNER_PRODUCT || options.metric() > v1::METRIC_L2) {
    return invalid("BAD_OPTION", "metric is not one of INNER_PRODUCT, COSINE, L2");
  }
  out.metric = static_cast<DistanceMetric>(options.metric() - v1::METRIC_INNER_PRODUCT);
  if (!options.factory().empty()) out.factory = options.factory();
  if (options.originals() < 0 || options.originals() > v1::ORIGINALS_F32) {
    return invalid("BAD_OPTION", "originals is not one of NONE, F16, F32");
  }
  if (options.originals() != v1::ORIGINALS_UNSPECIFIED) {
    out.originals = static_cast<Originals>(options.originals() - v1::ORIGINALS_NONE);
  }
  for (const v1::FieldSchema& field : options.fields()) {
    if (field.type() < v1::FIELD_TYPE_BOOL || field.type() > v1::FIELD_TYPE_STRING_LIST) {
      return invalid("BAD_OPTION", absl::StrCat("field \"", field.name(), "\" has no type"));
    }
    out.fields.push_back(
        {field.name(), static_cast<FieldType>(field.type() - v1::FIELD_TYPE_BOOL)});
  }
  if (options.has_seed()) out.seed = options.seed();
  out.shard = options.shard();
  out.pack_codes = options.pack_codes();
  return out;
}

absl::StatusOr<WriteOptions> from_proto(const v1::WriteOptions& options) {
  WriteOptions out;
  if (options.durability() < 0 || options.durability() > v1::DURABILITY_FSYNC) {
    return invalid("BAD_OPTION", "durability is not one of MEMORY, WAL, FSYNC");
  }
  if (options.durability() != v1::DURABILITY_UNSPECIFIED) {
    out.durability = static_cast<Durability>(options.durability() - v1::DURABILITY_MEMORY);
  }
  out.operation_id = options.operation_id();
  return out;
}

CollectionInfo from_proto(const v1::CollectionInfo& info) {
  CollectionInfo out;
  out.name = info.name();
  if (auto options = from_proto(info.options()); options.ok()) out.options = *std::move(options);
  out.records = info.records();
  out.dead_rows = info.dead_rows();
  out.code_bytes = info.code_bytes();
  out.memory_bytes = info.memory_bytes();
  out.block_bytes = info.block_bytes();
  out.version = info.version();
  return out;
}

SnapshotInfo from_proto(const v1::Snapshot& snapshot) {
  SnapshotInfo out;
  out.name = snapshot.name();
  out.kind = snapshot.kind() == v1::SNAPSHOT_KIND_CHECKPOINT ? SnapshotKind::kCheckpoint
                                                             : SnapshotKind::kBackup;
  out.created = absl::FromUnixSeconds(snapshot.created().seconds()) +
                absl::Nanoseconds(snapshot.created().nanos());
  out.bytes = snapshot.bytes();
  return out;
}

WriteResult from_proto(const v1::WriteResult& result) {
  return {result.inserted(), result.updated(), result.deleted(), result.replayed()};
}

Record from_proto(const v1::Record& record) {
  Record out;
  if (auto id = from_proto(record.id()); id.ok()) out.id = *std::move(id);
  if (auto metadata = from_proto(record.metadata()); metadata.ok()) {
    out.metadata = *std::move(metadata);
  }
  out.vector.assign(record.vector().begin(), record.vector().end());
  return out;
}

Hits from_proto(const v1::Hits& hits) {
  Hits out;
  out.reserve(static_cast<std::size_t>(hits.hits_size()));
  for (const v1::Hit& hit : hits.hits()) {
    Hit& copy = out.emplace_back();
    if (auto id = from_proto(hit.id()); id.ok()) copy.id = *std::move(id);
    copy.score = hit.score();
    if (auto metadata = from_proto(hit.metadata()); metadata.ok()) {
      copy.metadata = *std::move(metadata);
    }
    copy.vector.assign(hit.vector().begin(), hit.vector().end());
  }
  return out;
}

Parts from_proto(const v1::Parts& parts) { return {parts.metadata(), parts.vector()}; }

void to_proto(const RecordId& id, v1::RecordId* out) {
  if (const auto* number = std::get_if<std::uint64_t>(&id)) {
    out->set_number(*number);
  } else {
    out->set_name(std::get<std::string>(id));
  }
}

void to_proto(const Metadata& metadata, v1::Metadata* out) {
  for (const auto& [name, value] : metadata) value_to_proto(value, &(*out->mutable_fields())[name]);
}

void to_proto(const Filter& filter, v1::Filter* out) {
  switch (filter.op) {
    case Filter::Op::kAnd:
    case Filter::Op::kOr: {
      v1::Filters* list =
          filter.op == Filter::Op::kAnd ? out->mutable_all_of() : out->mutable_any_of();
      for (const Filter& child : filter.children) to_proto(child, list->add_filters());
      return;
    }
    case Filter::Op::kNot:
      if (!filter.children.empty()) to_proto(filter.children.front(), out->mutable_negate());
      return;
    case Filter::Op::kEqual:
      out->mutable_equal()->set_field(filter.field);
      if (!filter.values.empty()) {
        value_to_proto(filter.values.front(), out->mutable_equal()->mutable_value());
      }
      return;
    case Filter::Op::kIn:
      out->mutable_one_of()->set_field(filter.field);
      for (const MetadataValue& value : filter.values) {
        value_to_proto(value, out->mutable_one_of()->add_values());
      }
      return;
    case Filter::Op::kRange: {
      v1::FieldRange* range = out->mutable_range();
      range->set_field(filter.field);
      if (filter.bounds.gt) value_to_proto(*filter.bounds.gt, range->mutable_gt());
      if (filter.bounds.gte) value_to_proto(*filter.bounds.gte, range->mutable_gte());
      if (filter.bounds.lt) value_to_proto(*filter.bounds.lt, range->mutable_lt());
      if (filter.bounds.lte) value_to_proto(*filter.bounds.lte, range->mutable_lte());
      return;
    }
    case Filter::Op::kExists:
      out->mutable_exists()->set_field(filter.field);
  }
}

void to_proto(const CollectionOptions& options, v1::CollectionOptions* out) {
  out->set_dimension(saturated(options.dimension));
  out->set_metric(
      static_cast<v1::Metric>(static_cast<int>(options.metric) + v1::METRIC_INNER_PRODUCT));
  out->set_factory(options.factory);
  out->set_originals(
      static_cast<v1::Originals>(static_cast<int>(options.originals) + v1::ORIGINALS_NONE));
  for (const FieldSchema& field : options.fields) {
    v1::FieldSchema* copy = out->add_fields();
    copy->set_name(field.name);
    copy->set_type(static_cast<v1::FieldType>(static_cast<int>(field.type) + v1::FIELD_TYPE_BOOL));
  }
  if (options.seed) out->set_seed(*options.seed);
  out->set_shard(options.shard);
  out->set_pack_codes(options.pack_codes);
}

void to_proto(const CollectionInfo& info, v1::CollectionInfo* out) {
  out->set_name(info.name);
  to_proto(info.options, out->mutable_options());
  out->set_records(info.records);
  out->set_dead_rows(info.dead_rows);
  out->set_code_bytes(info.code_bytes);
  out->set_memory_bytes(info.memory_bytes);
  out->set_block_bytes(info.block_bytes);
  out->set_version(info.version);
}

void to_proto(const SnapshotInfo& snapshot, v1::Snapshot* out) {
  out->set_name(snapshot.name);
  out->set_kind(snapshot.kind == SnapshotKind::kCheckpoint ? v1::SNAPSHOT_KIND_CHECKPOINT
                                                           : v1::SNAPSHOT_KIND_BACKUP);
  const std::int64_t seconds = absl::ToUnixSeconds(snapshot.created);
  out->mutable_created()->set_seconds(seconds);
  out->mutable_created()->set_nanos(static_cast<std::int32_t>(
      absl::ToInt64Nanoseconds(snapshot.created - absl::FromUnixSeconds(seconds))));
  out->set_bytes(snapshot.bytes);
}

void to_proto(const WriteOptions& options, v1::WriteOptions* out) {
  out->set_durability(
      static_cast<v1::Durability>(static_cast<int>(options.durability) + v1::DURABILITY_MEMORY));
  out->set_operation_id(options.operation_id);
}

void to_proto(const WriteResult& result, v1::WriteResult* out) {
  out->set_inserted(result.inserted);
  out->set_updated(result.updated);
  out->set_deleted(result.deleted);
  out->set_replayed(result.replayed);
}

void to_proto(const Parts& parts, v1::Parts* out) {
  out->set_metadata(parts.metadata);
  out->set_vector(parts.vector);
}

void to_proto(const Record& record, const Parts& parts, v1::Record* out) {
  to_proto(record.id, out->mutable_id());
  if (parts.metadata) to_proto(record.metadata, out->mutable_metadata());
  if (parts.vector) out->mutable_vector()->Add(record.vector.begin(), record.vector.end());
}

void to_proto(const Hits& hits, const Parts& parts, v1::Hits* out) {
  out->mutable_hits()->Reserve(static_cast<int>(hits.size()));
  for (const Hit& hit : hits) {
    v1::Hit* copy = out->add_hits();
    to_proto(hit.id, copy->mutable_id());
    copy->set_score(hit.score);
    if (parts.metadata) to_proto(hit.metadata, copy->mutable_metadata());
    if (parts.vector) copy->mutable_vector()->Add(hit.vector.begin(), hit.vector.end());
  }
}

absl::StatusOr<absl::Span<const float>> from_proto(const v1::Vectors& vectors,
                                                   std::size_t dimension,
                                                   std::vector<float>& scratch) {
  const std::string& data = vectors.data();
  if (data.empty()) {
    const auto count = static_cast<std::size_t>(vectors.values_size());
    if (count == 0 || count % dimension != 0) return bad_matrix(count, dimension);
    return absl::MakeConstSpan(vectors.values().data(), count);
  }
  if (vectors.values_size() != 0) {
    return invalid("BAD_VECTOR", "vectors have both values and data");
  }
  const bool half = vectors.encoding() == v1::VECTOR_ENCODING_F16LE;
  if (!half && vectors.encoding() != v1::VECTOR_ENCODING_F32LE &&
      vectors.encoding() != v1::VECTOR_ENCODING_UNSPECIFIED) {
    return invalid("BAD_VECTOR", "the encoding of the vectors is unknown");
  }
  const std::size_t width = half ? 2 : 4;
  if (data.size() % width != 0 || data.size() / width % dimension != 0) {
    return invalid("BAD_VECTOR", absl::StrCat(data.size(), " bytes are not rows of dimension ",
                                              dimension, " with ", width, " bytes a number"));
  }
  scratch.resize(data.size() / width);
  if (half) {
    for (std::size_t i = 0; i < scratch.size(); ++i) {
      std::uint16_t bits;
      std::memcpy(&bits, data.data() + 2 * i, 2);
      scratch[i] = half_to_float(bits);
    }
  } else {
    std::memcpy(scratch.data(), data.data(), data.size());
  }
  return absl::MakeConstSpan(scratch);
}

void to_proto(absl::Span<const float> values, v1::Vectors* out) {
  out->set_encoding(v1::VECTOR_ENCODING_F32LE);
  out->mutable_data()->assign(reinterpret_cast<const char*>(values.data()), values.size() * 4);
}

}  // namespace turboquant::service
