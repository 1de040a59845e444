// Writes: validation and encoding before any lock, then one WriteBatch and one publication.
#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "index/checks.h"
#include "index/checksum.h"
#include "storage/collection.h"
#include "storage/errors.h"

namespace turboquant::storage {
namespace {

constexpr float kLargestHalf = 65504.0F;

std::string show(const RecordId& id) {
  if (const auto* number = std::get_if<std::uint64_t>(&id)) return absl::StrCat(*number);
  return absl::StrCat("\"", std::get<std::string>(id), "\"");
}

absl::Status check_id(const RecordId& id) {
  const auto* text = std::get_if<std::string>(&id);
  if (text == nullptr) return absl::OkStatus();
  if (text->empty()) return invalid("BAD_ID", "an id is an empty string");
  if (text->size() > kMaxIdBytes) {
    return invalid("BAD_ID", absl::StrCat("an id has ", text->size(), " bytes; at most ",
                                          kMaxIdBytes, " are allowed"));
  }
  return absl::OkStatus();
}

absl::Status check_ids(const std::vector<RecordId>& ids, bool unique) {
  if (ids.size() > kMaxBatchRows) {
    return invalid("BAD_OPTION", absl::StrCat("a write has ", ids.size(), " rows; at most ",
                                              kMaxBatchRows, " are allowed"));
  }
  for (const RecordId& id : ids) TQ_RETURN_IF_ERROR(check_id(id));
  if (!unique) return absl::OkStatus();
  std::vector<const RecordId*> sorted;
  sorted.reserve(ids.size());
  for (const RecordId& id : ids) sorted.push_back(&id);
  std::sort(sorted.begin(), sorted.end(),
            [](const RecordId* a, const RecordId* b) { return *a < *b; });
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    if (*sorted[i] == *sorted[i - 1]) {
      return invalid("DUPLICATE_ID",
                     absl::StrCat("id ", show(*sorted[i]), " occurs twice in one write"));
    }
  }
  return absl::OkStatus();
}

absl::Status check_value(const std::string& name, const MetadataValue& value, bool indexed) {
  const auto too_long = [&](const std::string& text) {
    return indexed && text.size() > kMaxIndexedBytes;
  };
  bool long_text = false;
  if (const auto* real = std::get_if<double>(&value)) {
    if (!std::isfinite(*real)) {
      return invalid("BAD_METADATA", absl::StrCat("field \"", name, "\" is NaN or infinite"));
    }
  } else if (const auto* text = std::get_if<std::string>(&value)) {
    long_text = too_long(*text);
  } else if (const auto* list = std::get_if<std::vector<std::string>>(&value)) {
    if (list->size() > kMaxListElements) {
      return invalid("BAD_METADATA", absl::StrCat("field \"", name, "\" has more than ",
                                                  kMaxListElements, " elements"));
    }
    long_text = std::any_of(list->begin(), list->end(), too_long);
  }
  if (long_text) {
    return invalid("BAD_METADATA",
                   absl::StrCat("field \"", name, "\" has a string of more than ", kMaxIndexedBytes,
                                " bytes, which cannot be filtered by"));
  }
  return absl::OkStatus();
}

std::uint64_t hash_bytes(const void* data, std::size_t size) {
  return checksum(static_cast<const std::uint8_t*>(data), size);
}

std::uint64_t hash_batch(WriteKind kind, const RecordBatch& batch) {
  std::string bytes;
  put(bytes, static_cast<std::uint8_t>(kind));
  put(bytes, hash_bytes(batch.vectors.data(), batch.vectors.size() * sizeof(float)));
  for (const RecordId& id : batch.ids) put_id(bytes, id);
  for (const Metadata& metadata : batch.metadata) bytes += encode_metadata(metadata);
  return hash_bytes(bytes.data(), bytes.size());
}

absl::Status check_operation_id(const WriteOptions& options) {
  if (options.operation_id.size() <= kMaxOperationIdBytes) return absl::OkStatus();
  return invalid("BAD_OPTION",
                 absl::StrCat("the operation id has more than ", kMaxOperationIdBytes, " bytes"));
}

}  // namespace

CollectionImpl::Stage::Stage(const CollectionImpl& collection, Database& database)
    : edit(collection.blocks_, collection.next_row_, collection.quantizer_.code_size(),
           collection.fields()),
      batch(database),
      first_new_row(collection.next_row_) {}

absl::Status CollectionImpl::prepare_vectors(absl::Span<const float> vectors,
                                             PreparedRows& rows) const {
  const std::size_t d = dimension();
  const std::size_t n = rows.ids.size();
  std::vector<float> unit;
  const float* x = vectors.data();
  rows.codes.resize(n * quantizer_.code_size());
  try {
    if (record_.options.metric == DistanceMetric::kCosine) {
      unit.resize(n * d);
      normalize_rows(x, static_cast<std::int64_t>(n), d, "vector", unit.data());
      for (std::size_t i = 0; i < n; ++i) {
        const float* row = unit.data() + i * d;
        if (std::all_of(row, row + d, [](float v) { return v == 0; })) {
          return invalid("BAD_VECTOR", absl::StrCat("vector ", i, " (id ", show(rows.ids[i]),
                                                    ") is zero, which has no cosine"));
        }
      }
      x = unit.data();
    }
    quantizer_.quantize(x, n, rows.codes.data());
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return invalid("BAD_VECTOR", error.what());
  }
  if (record_.options.originals == Originals::kNone) return absl::OkStatus();
  rows.originals.reserve(n);
  for (std::size_t i = 0; i < n; ++i) {
    const float* row = vectors.data() + i * d;
    if (record_.options.originals == Originals::kFp16 &&
        std::any_of(row, row + d, [](float v) { return std::fabs(v) > kLargestHalf; })) {
      return invalid("BAD_VECTOR", absl::StrCat("vector ", i, " (id ", show(rows.ids[i]),
                                                ") exceeds float16, which this collection keeps"));
    }
    rows.originals.push_back(encode_original(row, d, record_.options.originals));
  }
  return absl::OkStatus();
}

absl::Status CollectionImpl::prepare_metadata(const Metadata& metadata, const RecordId& id,
                                              PreparedRows& rows) const {
  IndexedValues indexed;
  for (const auto& [name, value] : metadata) {
    if (name.empty() || name.size() > kMaxFieldNameBytes) {
      return invalid("BAD_METADATA",
                     absl::StrCat("id ", show(id), ": a field name is empty or longer than ",
                                  kMaxFieldNameBytes, " bytes"));
    }
    const auto field = find_field(fields(), name);
    if (field && value.index() != static_cast<std::size_t>(fields()[*field].type)) {
      return invalid("BAD_METADATA", absl::StrCat("id ", show(id), ": field \"", name,
                                                  "\" has not the type it was declared with"));
    }
    TQ_RETURN_IF_ERROR(check_value(name, value, field.has_value()));
    if (field) indexed.emplace_back(*field, value);
  }
  std::sort(indexed.begin(), indexed.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string encoded = metadata.empty() ? std::string() : encode_metadata(metadata);
  if (metadata.size() > kMaxListElements || encoded.size() > kMaxMetadataBytes) {
    return invalid("BAD_METADATA",
                   absl::StrCat("id ", show(id), ": more than ", kMaxMetadataBytes, " bytes or ",
                                kMaxListElements, " fields of metadata"));
  }
  rows.metadata.push_back(std::move(encoded));
  rows.indexed.push_back(std::move(indexed));
  return absl::OkStatus();
}

absl::Status CollectionImpl::prepare(const RecordBatch& batch, PreparedRows& rows) const {
  const std::size_t n = batch.ids.size();
  TQ_RETURN_IF_ERROR(check_ids(batch.ids, true));
  if (batch.vectors.size() != n * dimension()) {
    return invalid("BAD_VECTOR", absl::StrCat(n, " ids need ", n, " vectors of ", dimension(),
                                              " numbers, not ", batch.vectors.size(), " numbers"));
  }
  if (!batch.metadata.empty() && batch.metadata.size() != n) {
    return invalid("BAD_METADATA",
                   absl::StrCat(n, " ids, but metadata for ", batch.metadata.size()));
  }
  rows.ids = batch.ids;
  rows.metadata.reserve(n);
  rows.indexed.reserve(n);
  static const Metadata kNothing;
  for (std::size_t i = 0; i < n; ++i) {
    const Metadata& metadata = batch.metadata.empty() ? kNothing : batch.metadata[i];
    TQ_RETURN_IF_ERROR(prepare_metadata(metadata, batch.ids[i], rows));
  }
  return prepare_vectors(batch.vectors, rows);
}

absl::StatusOr<std::optional<WriteResult>> CollectionImpl::find_operation(
    const Database& database, WriteKind kind, const WriteOptions& options,
    std::uint64_t request_hash) const {
  if (options.operation_id.empty()) return std::optional<WriteResult>();
  const auto stored = database.get(kOps, operation_key(cid(), options.operation_id));
  if (!stored.ok()) return stored.status();
  if (!stored->has_value()) return std::optional<WriteResult>();
  OperationRecord operation;
  if (!decode_operation(**stored, operation)) return damaged("an operation record is damaged");
  if (operation.expiry <= static_cast<std::uint64_t>(absl::ToUnixSeconds(absl::Now()))) {
    return std::optional<WriteResult>();
  }
  if (operation.kind != static_cast<std::uint8_t>(kind) || operation.request_hash != request_hash) {
    return invalid("OPERATION_MISMATCH", absl::StrCat("operation id \"", options.operation_id,
                                                      "\" was used for another request"));
  }
  operation.result.replayed = true;
  return std::optional<WriteResult>(operation.result);
}

absl::StatusOr<std::vector<std::optional<std::uint64_t>>> CollectionImpl::rows_of(
    const Database& database, absl::Span<const RecordId> ids) const {
  std::vector<std::string> keys;
  keys.reserve(ids.size());
  for (const RecordId& id : ids) keys.push_back(id_key(cid(), id));
  const auto values = database.get_many(kIds, keys);
  if (!values.ok()) return values.status();
  std::vector<std::optional<std::uint64_t>> rows(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (!(*values)[i].has_value()) continue;
    ByteReader reader(*(*values)[i]);
    rows[i] = reader.take<std::uint64_t>();
    if (!reader.at_end()) return damaged("an id record is damaged");
  }
  return rows;
}

void CollectionImpl::stage_row(Stage& stage, const RecordId& id, const std::uint8_t* code,
                               IndexedValues indexed, const std::string& metadata,
                               std::optional<std::string> original) const {
  const std::string indexed_bytes = indexed.empty() ? std::string() : encode_indexed(indexed);
  const std::uint64_t row = stage.edit.append(id, code, std::move(indexed));
  const std::string key = row_key(cid(), row);
  std::string row_bytes;
  turboquant::storage::put(row_bytes, row);
  stage.batch.put(kIds, id_key(cid(), id), std::move(row_bytes));
  if (!metadata.empty()) stage.batch.put(kPayload, key, metadata);
  if (!indexed_bytes.empty()) stage.batch.put(kPindex, key, indexed_bytes);
  if (original) stage.batch.put(kOrig, key, *std::move(original));
  stage.loose.push_back(row);
  if ((row + 1) % kBlockRows == 0) stage_full_block(stage, row);
}

void CollectionImpl::stage_full_block(Stage& stage, std::uint64_t last_row) const {
  const Block& block = *stage.edit.find(last_row);
  const BlockRows& memory = *block.memory;
  const std::string_view codes(reinterpret_cast<const char*>(memory.codes.data()),
                               kBlockRows * memory.code_size);
  std::vector<RecordId> ids(kBlockRows);
  for (std::uint32_t i = 0; i < kBlockRows; ++i) ids[i] = memory.id(i);
  std::string bytes = encode_block(codes, ids, packed_layout());
  stage.edit.set_disk_bytes(last_row, bytes.size());
  stage.batch.put(kCodes, block_key(cid(), block.number, kBlockPart), std::move(bytes));
  stage.loose.clear();
  if (block.first_row() < stage.first_new_row) {
    stage.batch.remove_range(kDelta, delta_key(cid(), kRowDelta, block.first_row()),
                             delta_key(cid(), kRowDelta, block.first_row() + kBlockRows));
  }
}

absl::Status CollectionImpl::stage_kill(Stage& stage, std::uint64_t row) const {
  if (!stage.edit.live(row)) return damaged("an id refers to a row that does not exist");
  stage.edit.kill(row);
  stage.killed.push_back(row);
  stage.batch.put(kDelta, delta_key(cid(), kTombstone, row), "");
  return absl::OkStatus();
}

void CollectionImpl::stage_loose(Stage& stage) const {
  for (const std::uint64_t row : stage.loose) {
    const BlockRows& memory = *stage.edit.find(row)->memory;
    const auto i = static_cast<std::uint32_t>(row % kBlockRows);
    const std::string_view code(reinterpret_cast<const char*>(memory.code(i)), memory.code_size);
    stage.batch.put(kDelta, delta_key(cid(), kRowDelta, row), encode_row(memory.id(i), code));
  }
  stage.loose.clear();
}

absl::Status CollectionImpl::commit(Stage& stage, Database& database, bool grows) {
  const std::uint64_t limit = core_->options.memory_limit_bytes;
  const BlockTotals change = stage.edit.change();
  const std::int64_t growth = change.memory_bytes;
  if (grows && limit != 0 && growth > 0 &&
      core_->memory.load() + static_cast<std::uint64_t>(growth) > limit) {
    return make_error(absl::StatusCode::kResourceExhausted, "MEMORY_LIMIT",
                      absl::StrCat("this write would take the store over its memory limit of ",
                                   limit, " bytes; delete records or raise the limit"));
  }
  stage_loose(stage);
  if (absl::Status status = database.write(stage.batch); !status.ok()) {
    return core_->stop_writes(status);
  }
  try {
    const std::lock_guard<std::mutex> lock(state_);
    dead_rows_.insert(dead_rows_.end(), stage.killed.begin(), stage.killed.end());
    publish(stage.edit, change);
  } catch (const std::exception&) {
    // Memory no longer shows what the database holds: read it back.
    return core_->stop_writes(
        make_error(absl::StatusCode::kInternal, "INTERNAL", "out of memory after a write"));
  }
  return absl::OkStatus();
}

void CollectionImpl::publish(Edit& edit, const BlockTotals& change) {
  edit.apply(blocks_);
  next_row_ = edit.next_row();
  totals_ += change;
  core_->memory.fetch_add(static_cast<std::uint64_t>(change.memory_bytes));
  ++version_;
  view_.reset();
}

template <class Change>
absl::StatusOr<WriteResult> CollectionImpl::run_write(WriteKind kind, const WriteOptions& options,
                                                      std::uint64_t request_hash,
                                                      const Change& change) {
  TQ_RETURN_IF_ERROR(check_operation_id(options));
  const Use use(*core_);
  TQ_RETURN_IF_ERROR(use.status());
  TQ_RETURN_IF_ERROR(core_->writable());
  Database& database = use.database();
  WriteResult result;
  {
    const std::lock_guard<std::mutex> lock(writer_);
    TQ_RETURN_IF_ERROR(check_alive());
    const auto before = find_operation(database, kind, options, request_hash);
    if (!before.ok()) return before.status();
    if (before->has_value()) {
      result = **before;
    } else {
      Stage stage(*this, database);
      TQ_RETURN_IF_ERROR(change(database, stage, result));
      if (!options.operation_id.empty()) {
        OperationRecord operation;
        operation.expiry = static_cast<std::uint64_t>(
            absl::ToUnixSeconds(absl::Now() + core_->options.operation_ttl));
        operation.kind = static_cast<std::uint8_t>(kind);
        operation.request_hash = request_hash;
        operation.result = result;
        stage.batch.put(kOps, operation_key(cid(), options.operation_id),
                        encode_operation(operation));
      }
      if (!stage.batch.empty() || !stage.loose.empty()) {
        TQ_RETURN_IF_ERROR(
            commit(stage, database, kind == WriteKind::kUpsert || kind == WriteKind::kInsert));
      }
    }
  }
  if (options.durability == Durability::kFsync) {
    if (absl::Status status = database.sync(); !status.ok()) return core_->stop_writes(status);
  }
  return result;
}

absl::StatusOr<WriteResult> CollectionImpl::write_rows(const PreparedRows& rows, WriteKind kind,
                                                       const WriteOptions& options,
                                                       std::uint64_t request_hash) {
  const auto change = [&](Database& database, Stage& stage, WriteResult& result) -> absl::Status {
    const auto existing = rows_of(database, rows.ids);
    if (!existing.ok()) return existing.status();
    const std::size_t code_size = quantizer_.code_size();
    for (std::size_t i = 0; i < rows.ids.size(); ++i) {
      if ((*existing)[i].has_value()) {
        if (kind == WriteKind::kInsert) {
          return make_error(absl::StatusCode::kAlreadyExists, "ID_EXISTS",
                            absl::StrCat("id ", show(rows.ids[i]), " exists"));
        }
        TQ_RETURN_IF_ERROR(stage_kill(stage, *(*existing)[i]));
        ++result.updated;
      } else {
        ++result.inserted;
      }
      stage_row(stage, rows.ids[i], rows.codes.data() + i * code_size, rows.indexed[i],
                rows.metadata[i],
                rows.originals.empty() ? std::nullopt : std::make_optional(rows.originals[i]));
    }
    return absl::OkStatus();
  };
  return run_write(kind, options, request_hash, change);
}

absl::StatusOr<WriteResult> CollectionImpl::put(WriteKind kind, const RecordBatch& batch,
                                                const WriteOptions& options) {
  return guard([&]() -> absl::StatusOr<WriteResult> {
    PreparedRows rows;
    TQ_RETURN_IF_ERROR(prepare(batch, rows));
    return write_rows(rows, kind, options,
                      options.operation_id.empty() ? 0 : hash_batch(kind, batch));
  });
}

absl::StatusOr<WriteResult> CollectionImpl::upsert(const RecordBatch& batch,
                                                   const WriteOptions& options) {
  return put(WriteKind::kUpsert, batch, options);
}

absl::StatusOr<WriteResult> CollectionImpl::insert(const RecordBatch& batch,
                                                   const WriteOptions& options) {
  return put(WriteKind::kInsert, batch, options);
}

absl::StatusOr<WriteResult> CollectionImpl::remove(absl::Span<const RecordId> ids,
                                                   const WriteOptions& options) {
  return guard([&]() -> absl::StatusOr<WriteResult> {
    std::vector<RecordId> different(ids.begin(), ids.end());
    TQ_RETURN_IF_ERROR(check_ids(different, false));
    std::sort(different.begin(), different.end());
    different.erase(std::unique(different.begin(), different.end()), different.end());
    std::uint64_t hash = 0;
    if (!options.operation_id.empty()) {
      std::string bytes;
      for (const RecordId& id : different) put_id(bytes, id);
      hash = hash_bytes(bytes.data(), bytes.size());
    }
    const auto change = [&](Database& database, Stage& stage, WriteResult& result) -> absl::Status {
      const auto rows = rows_of(database, different);
      if (!rows.ok()) return rows.status();
      for (std::size_t i = 0; i < different.size(); ++i) {
        if (!(*rows)[i].has_value()) continue;
        TQ_RETURN_IF_ERROR(stage_kill(stage, *(*rows)[i]));
        stage.batch.remove(kIds, id_key(cid(), different[i]));
        ++result.deleted;
      }
      return absl::OkStatus();
    };
    return run_write(WriteKind::kRemove, options, hash, change);
  });
}

absl::StatusOr<WriteResult> CollectionImpl::remove_if(const Filter& filter,
                                                      const WriteOptions& options) {
  return guard([&]() -> absl::StatusOr<WriteResult> {
    const auto node = compile_filter(filter, fields());
    if (!node.ok()) return node.status();
    const std::string bytes = filter_bytes(filter);
    const auto change = [&](Database&, Stage& stage, WriteResult& result) -> absl::Status {
      for (const auto& block : blocks_) {
        const RowBits bits = block->select(*node);
        for (std::uint32_t i = 0; i < block->rows; ++i) {
          if (!bits.test(i)) continue;
          TQ_RETURN_IF_ERROR(stage_kill(stage, block->first_row() + i));
          stage.batch.remove(kIds, id_key(cid(), block->memory->id(i)));
          ++result.deleted;
        }
      }
      return absl::OkStatus();
    };
    return run_write(WriteKind::kRemoveIf, options, hash_bytes(bytes.data(), bytes.size()), change);
  });
}

}  // namespace turboquant::storage
