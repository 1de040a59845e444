// Opening a collection: codes from the database into memory, every CRC compared; and the check that
// everything in the database belongs together.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "index/checks.h"
#include "index/checksum.h"
#include "storage/collection.h"
#include "storage/errors.h"

namespace turboquant::storage {

absl::StatusOr<Quantizer> make_quantizer(const CollectionOptions& options) {
  try {
    IndexOptions parsed = parse_index_name(options.factory);
    if (parsed.normalize) {
      return invalid("BAD_FACTORY", absl::StrCat("factory \"", options.factory,
                                                 "\": ask for cosines by the metric instead"));
    }
    if (parsed.centre) {
      return invalid("BAD_FACTORY", absl::StrCat("factory \"", options.factory,
                                                 "\": collections have no centre to subtract"));
    }
    parsed.seed = options.seed.value_or(QuantizerOptions::kDefaultSeed);
    return make_codec(
        static_cast<std::int64_t>(options.dimension), parsed,
        options.metric == DistanceMetric::kL2 ? faiss::METRIC_L2 : faiss::METRIC_INNER_PRODUCT);
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return invalid("BAD_FACTORY", error.what());
  }
}

CollectionImpl::CollectionImpl(std::shared_ptr<Core> core, std::string name,
                               CollectionRecord record, Quantizer quantizer)
    : core_(std::move(core)),
      name_(std::move(name)),
      record_(std::move(record)),
      quantizer_(std::move(quantizer)),
      layout_{quantizer_.dimension(), quantizer_.options().bits, quantizer_.code_size()} {}

CollectionImpl::~CollectionImpl() {
  core_->memory.fetch_sub(static_cast<std::uint64_t>(totals_.memory_bytes));
}

absl::Status CollectionImpl::check_alive() const {
  const std::lock_guard<std::mutex> lock(state_);
  return retired_;
}

void CollectionImpl::retire(const absl::Status& why) {
  (void)retire_with(why, [] { return absl::OkStatus(); });
}

absl::Status CollectionImpl::retire_with(const absl::Status& why,
                                         const std::function<absl::Status()>& change) {
  const std::lock_guard<std::mutex> writer(writer_);
  TQ_RETURN_IF_ERROR(change());
  const std::lock_guard<std::mutex> lock(state_);
  retired_ = why;
  // Memory goes now, not when the last caller lets go of this object.
  core_->memory.fetch_sub(static_cast<std::uint64_t>(totals_.memory_bytes));
  totals_ = {};
  blocks_.clear();
  view_.reset();
  return absl::OkStatus();
}

// What is read before blocks are made.
struct CollectionImpl::LoadState {
  std::vector<std::shared_ptr<const Block>> blocks;
  std::map<std::uint32_t, RowBits> dead;
  std::uint64_t next_row = 0;
  std::vector<std::uint64_t> tombstones;
};

namespace {

// Indexed values of a collection, handed out block by block in order of rows.
class IndexedReader {
 public:
  IndexedReader(const Database& database, std::uint32_t cid, const std::vector<FieldSchema>& fields)
      : database_(database), cid_(cid), fields_(fields) {}

  // The values of rows [first, first + count).
  absl::StatusOr<std::vector<IndexedValues>> read(std::uint64_t first, std::uint32_t count) const {
    std::vector<IndexedValues> values(count);
    if (fields_.empty()) return values;
    const auto visit = [&](std::string_view key, std::string_view value) -> absl::StatusOr<bool> {
      ByteReader reader(key.substr(4));
      const auto row = reader.take_ordered<std::uint64_t>();
      if (!reader.at_end()) return damaged("a key in family pindex is damaged");
      if (row >= first + count) return false;
      if (!decode_indexed(value, fields_, values[row - first])) {
        return damaged("the indexed values of a record are damaged");
      }
      return true;
    };
    TQ_RETURN_IF_ERROR(database_.each(kPindex, collection_key(cid_), visit, row_key(cid_, first)));
    return values;
  }

 private:
  const Database& database_;
  std::uint32_t cid_;
  const std::vector<FieldSchema>& fields_;
};

}  // namespace

absl::Status CollectionImpl::load(const Database& database) {
  const std::size_t code_size = quantizer_.code_size();
  const std::string prefix = collection_key(cid());
  const IndexedReader indexed(database, cid(), fields());
  LoadState loaded;

  // Dead bits come before the blocks, which are made with them.
  const auto visit_dead = [&](std::string_view key,
                              std::string_view value) -> absl::StatusOr<bool> {
    ByteReader reader(key.substr(4));
    const auto number = reader.take_ordered<std::uint32_t>();
    const auto part = reader.take_ordered<std::uint8_t>();
    if (!reader.at_end() || part > kDeadPart) return damaged("a key in family codes is damaged");
    if (part != kDeadPart) return true;
    RowBits bits;
    if (value.size() != sizeof bits.words) return damaged("dead bits of a block are damaged");
    std::memcpy(bits.words.data(), value.data(), value.size());
    loaded.dead.emplace(number, bits);
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kCodes, prefix, visit_dead));

  const auto visit_block = [&](std::string_view key,
                               std::string_view value) -> absl::StatusOr<bool> {
    ByteReader reader(key.substr(4));
    const auto number = reader.take_ordered<std::uint32_t>();
    if (reader.take_ordered<std::uint8_t>() != kBlockPart) return true;
    BlockRecord record;
    if (!decode_block(value, code_size, record, packed_layout()))
      return damaged("a block of codes is damaged");
    const std::uint64_t first = std::uint64_t{number} * kBlockRows;
    const auto values = indexed.read(first, kBlockRows);
    if (!values.ok()) return values.status();
    const auto dead = loaded.dead.find(number);
    loaded.blocks.push_back(make_full_block(number, record, value.size(), code_size,
                                            dead != loaded.dead.end() ? dead->second : RowBits(),
                                            fields(), *values));
    loaded.next_row = first + kBlockRows;
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kCodes, prefix, visit_block));

  const auto stored_next = database.get(kMeta, next_row_key(cid()));
  if (!stored_next.ok()) return stored_next.status();
  if (stored_next->has_value()) {
    ByteReader reader(**stored_next);
    loaded.next_row = std::max(loaded.next_row, reader.take<std::uint64_t>());
    if (!reader.at_end() || loaded.next_row % kBlockRows != 0) {
      return damaged("a row number in family meta is damaged");
    }
  }

  // Rows that are in no full block yet, then tombstones.
  const std::uint64_t tail_first = loaded.next_row;
  const auto tail_values = indexed.read(tail_first, kBlockRows);
  if (!tail_values.ok()) return tail_values.status();
  Edit tail(loaded.blocks, loaded.next_row, code_size, fields());
  const auto visit_delta = [&](std::string_view key,
                               std::string_view value) -> absl::StatusOr<bool> {
    ByteReader reader(key.substr(4));
    const auto kind = reader.take_ordered<std::uint8_t>();
    const auto row = reader.take_ordered<std::uint64_t>();
    if (!reader.at_end() || kind > kTombstone) return damaged("a key in family delta is damaged");
    if (kind == kTombstone) {
      loaded.tombstones.push_back(row);
      return true;
    }
    RowRecord record;
    if (row != tail.next_row() || row >= tail_first + kBlockRows ||
        !decode_row(value, code_size, record)) {
      return damaged("rows outside blocks are missing or damaged");
    }
    tail.append(record.id, reinterpret_cast<const std::uint8_t*>(record.code.data()),
                (*tail_values)[row - tail_first]);
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kDelta, prefix, visit_delta));
  if (tail.next_row() == tail_first + kBlockRows) return damaged("a full block was not written");
  const auto tail_dead = loaded.dead.find(static_cast<std::uint32_t>(tail_first / kBlockRows));
  for (std::uint64_t row = tail_first; row < tail.next_row(); ++row) {
    if (tail_dead != loaded.dead.end() &&
        tail_dead->second.test(static_cast<std::uint32_t>(row % kBlockRows))) {
      tail.kill(row);
    }
  }
  for (const std::uint64_t row : loaded.tombstones) {
    if (tail.find(row) == nullptr) return damaged("a tombstone is of a row that does not exist");
    if (tail.live(row)) tail.kill(row);
  }
  const std::uint64_t next_row = tail.next_row();
  tail.apply(loaded.blocks);
  BlockTotals totals;
  for (const auto& block : loaded.blocks) totals.add(*block);

  const std::lock_guard<std::mutex> writer(writer_);
  const std::lock_guard<std::mutex> lock(state_);
  core_->memory.fetch_add(static_cast<std::uint64_t>(totals.memory_bytes - totals_.memory_bytes));
  totals_ = totals;
  blocks_ = std::move(loaded.blocks);
  next_row_ = next_row;
  ++version_;
  view_.reset();
  dead_rows_ = std::move(loaded.tombstones);
  retiring_rows_.clear();
  return absl::OkStatus();
}

absl::Status CollectionImpl::verify(const Database& database) const {
  // Nothing is written meanwhile: what is in the database is what memory shows.
  const std::lock_guard<std::mutex> writer(writer_);
  TQ_RETURN_IF_ERROR(check_alive());
  const std::shared_ptr<const View> state = view();
  const auto fail = [this](std::string_view what) {
    return damaged(
        absl::StrCat("collection \"", name_, "\": ", absl::string_view(what.data(), what.size())));
  };
  const std::string prefix = collection_key(cid());
  std::uint64_t ids = 0;
  const auto visit_id = [&](std::string_view key, std::string_view value) -> absl::StatusOr<bool> {
    RecordId id;
    ByteReader reader(value);
    const auto row = reader.take<std::uint64_t>();
    if (!parse_id_key(key.substr(4), id) || !reader.at_end() || !state->live(row)) {
      return fail("an id refers to a row that does not exist");
    }
    const Block& block = *state->find(row);
    if (block.memory->id(static_cast<std::uint32_t>(row % kBlockRows)) != id) {
      return fail("an id refers to the row of another");
    }
    ++ids;
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kIds, prefix, visit_id));
  if (ids != state->live_rows) return fail("rows without ids");

  const auto row_of = [](std::string_view key) {
    return ByteReader(key.substr(4)).take_ordered<std::uint64_t>();
  };
  // Indexed values must be those of the metadata.
  const auto visit_payload = [&](std::string_view key,
                                 std::string_view value) -> absl::StatusOr<bool> {
    Metadata metadata;
    const std::uint64_t row = row_of(key);
    if (!decode_metadata(value, metadata) || state->find(row) == nullptr) {
      return fail("metadata of no row");
    }
    IndexedValues values;
    for (std::size_t f = 0; f < fields().size(); ++f) {
      const auto at = metadata.find(fields()[f].name);
      if (at != metadata.end()) values.emplace_back(static_cast<std::uint16_t>(f), at->second);
    }
    if (values.empty()) return true;
    const auto stored = database.get(kPindex, std::string(key));
    if (!stored.ok()) return stored.status();
    if (!stored->has_value() || **stored != encode_indexed(values)) {
      return fail("indexed values differ from the metadata");
    }
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kPayload, prefix, visit_payload));
  if (record_.options.originals == Originals::kNone) return absl::OkStatus();

  std::uint64_t originals = 0;
  std::vector<float> vector(dimension());
  const auto visit_original = [&](std::string_view key,
                                  std::string_view value) -> absl::StatusOr<bool> {
    if (!decode_original(value, dimension(), record_.options.originals, vector.data()) ||
        state->find(row_of(key)) == nullptr) {
      return fail("an original vector is damaged or of no row");
    }
    if (state->live(row_of(key))) ++originals;
    return true;
  };
  TQ_RETURN_IF_ERROR(database.each(kOrig, prefix, visit_original));
  if (originals != state->live_rows) return fail("original vectors are missing");
  return absl::OkStatus();
}

}  // namespace turboquant::storage
