#include "turboquant/faiss_store.h"

#include <absl/strings/str_cat.h>
#include <faiss/IndexIDMap.h>

#include <algorithm>

#include "index/checksum.h"
#include "storage/errors.h"
#include "storage/store_impl.h"
#include "turboquant/index_turboquant.h"

namespace turboquant {
namespace {

using storage::guard;
using storage::invalid;

constexpr std::size_t kRowsOfWrite = 16384;

absl::StatusOr<CollectionOptions> options_of(const IndexTurboQuant& index) {
  CollectionOptions options;
  IndexOptions codes = index.options();
  if (index.metric_type == faiss::METRIC_L2) {
    if (codes.normalize) {
      return invalid("BAD_OPTION",
                     "an index of L2 distances between normalized vectors cannot be stored");
    }
    options.metric = DistanceMetric::kL2;
  } else if (codes.normalize) {
    options.metric = DistanceMetric::kCosine;
  }
  codes.normalize = false;
  options.dimension = index.codec().dimension();
  options.factory = index_name(codes);
  options.seed = codes.seed;
  return options;
}

absl::Status write_codes(const IndexTurboQuant& index, const std::vector<RecordId>& ids,
                         storage::CollectionImpl& collection) {
  const std::size_t size = index.code_size;
  WriteOptions options;
  options.durability = Durability::kMemory;  // renaming syncs all
  for (std::size_t first = 0; first < ids.size(); first += kRowsOfWrite) {
    const std::size_t n = std::min(kRowsOfWrite, ids.size() - first);
    storage::PreparedRows rows;
    rows.ids.assign(ids.begin() + static_cast<std::ptrdiff_t>(first),
                    ids.begin() + static_cast<std::ptrdiff_t>(first + n));
    rows.codes.assign(index.codes.data() + first * size, index.codes.data() + (first + n) * size);
    rows.metadata.resize(n);
    rows.indexed.resize(n);
    const auto written = collection.write_rows(rows, storage::WriteKind::kInsert, options, 0);
    if (!written.ok()) return written.status();
  }
  return absl::OkStatus();
}

}  // namespace

namespace storage {

absl::Status StoreImpl::rename_over(const std::string& from, const std::string& to, bool replace) {
  const std::lock_guard<std::mutex> admin(admin_);
  const Use use(*core_);
  TQ_RETURN_IF_ERROR(use.status());
  Database& database = use.database();
  std::shared_ptr<CollectionImpl> moved;
  std::shared_ptr<CollectionImpl> replaced;
  {
    const std::lock_guard<std::mutex> lock(map_);
    moved = contents_.collections.at(from);
    const auto at = contents_.collections.find(to);
    if (at != contents_.collections.end()) replaced = at->second;
    if (contents_.aliases.count(to) != 0 || (replaced && !replace)) {
      return make_error(absl::StatusCode::kAlreadyExists, "COLLECTION_EXISTS",
                        absl::StrCat("there is a collection or alias \"", to, "\""));
    }
  }
  const absl::Status gone = make_error(absl::StatusCode::kNotFound, "COLLECTION_NOT_FOUND",
                                       absl::StrCat("collection \"", to, "\" was replaced"));
  auto quantizer = make_quantizer(moved->record().options);
  if (!quantizer.ok()) return quantizer.status();
  auto renamed =
      std::make_shared<CollectionImpl>(core_, to, moved->record(), *std::move(quantizer));
  moved->retire(gone);
  TQ_RETURN_IF_ERROR(renamed->load(database));
  Batch batch(database);
  if (replaced) stage_drop(batch, *replaced);
  batch.remove(kMeta, "c/" + from);
  batch.put(kMeta, "c/" + to, encode_collection(moved->record()));
  const auto change = [&] { return commit(database, batch); };
  TQ_RETURN_IF_ERROR(replaced ? replaced->retire_with(gone, change) : change());
  const std::lock_guard<std::mutex> lock(map_);
  contents_.collections.erase(from);
  contents_.collections[to] = std::move(renamed);
  return absl::OkStatus();
}

}  // namespace storage

absl::Status save_to_store(const faiss::Index& index, Store& store, const std::string& name) {
  return guard([&]() -> absl::Status {
    TQ_RETURN_IF_ERROR(storage::check_name(name));
    const auto* map = dynamic_cast<const faiss::IndexIDMap*>(&index);
    const auto* flat = dynamic_cast<const IndexTurboQuant*>(map != nullptr ? map->index : &index);
    if (flat == nullptr) {
      return invalid("BAD_OPTION",
                     "only a flat TurboQuant index, alone or in an id map, can be stored");
    }
    auto options = options_of(*flat);
    if (!options.ok()) return options.status();
    std::vector<RecordId> ids(static_cast<std::size_t>(flat->ntotal));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = map != nullptr ? static_cast<std::uint64_t>(map->id_map[i]) : std::uint64_t{i};
    }
    std::vector<RecordId> sorted = ids;
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
      return invalid("DUPLICATE_ID", "an id of the index occurs twice");
    }
    // No caller can name a collection so; a start removes what a crash leaves of it.
    auto& impl = static_cast<storage::StoreImpl&>(store);
    const std::string fresh = ".saving." + name;
    auto made = impl.create_hidden(fresh, *options);
    if (!made.ok()) return made.status();
    absl::Status status = write_codes(*flat, ids, **made);
    if (status.ok()) status = impl.rename_over(fresh, name, true);
    if (!status.ok()) (void)impl.drop_collection(fresh);
    return status;
  });
}

absl::StatusOr<std::unique_ptr<faiss::Index>> load_from_store(const Store& store,
                                                              const std::string& name) {
  return guard([&]() -> absl::StatusOr<std::unique_ptr<faiss::Index>> {
    const auto found = static_cast<const storage::StoreImpl&>(store).find(name);
    if (!found.ok()) return found.status();
    const CollectionOptions& stored = (*found)->record().options;
    IndexOptions options = parse_index_name(stored.factory);
    options.normalize = stored.metric == DistanceMetric::kCosine;
    options.seed = stored.seed.value();
    auto index = std::make_unique<IndexTurboQuant>(
        static_cast<int>(stored.dimension), options,
        stored.metric == DistanceMetric::kL2 ? faiss::METRIC_L2 : faiss::METRIC_INNER_PRODUCT);
    const auto view = (*found)->view();
    std::vector<std::int64_t> ids;
    bool row_numbers = true;
    index->codes.reserve(view->live_rows * index->code_size);
    for (const auto& block : view->blocks) {
      for (std::uint32_t i = 0; i < block->rows; ++i) {
        if (!block->live->test(i)) continue;
        const RecordId id = block->memory->id(i);
        const auto* number = std::get_if<std::uint64_t>(&id);
        if (number == nullptr) {
          return invalid("BAD_ID", absl::StrCat("collection \"", name,
                                                "\" has ids that are strings, which FAISS lacks"));
        }
        row_numbers = row_numbers && *number == ids.size();
        ids.push_back(static_cast<std::int64_t>(*number));
        const std::uint8_t* code = block->memory->code(i);
        index->codes.insert(index->codes.end(), code, code + index->code_size);
      }
    }
    index->ntotal = static_cast<std::int64_t>(ids.size());
    if (row_numbers) return std::unique_ptr<faiss::Index>(std::move(index));
    // An id map can only be made over an empty index.
    const std::int64_t n = std::exchange(index->ntotal, 0);
    auto map = std::make_unique<faiss::IndexIDMap2>(index.get());
    index->ntotal = n;
    map->own_fields = true;
    (void)index.release();
    map->id_map = std::move(ids);
    map->ntotal = n;
    map->construct_rev_map();
    return std::unique_ptr<faiss::Index>(std::move(map));
  });
}

}  // namespace turboquant
