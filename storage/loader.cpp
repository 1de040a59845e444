#include <absl/strings/str_cat.h>

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "storage/errors.h"
#include "storage/sorted_files.h"
#include "storage/store_impl.h"
#include "turboquant/collection_loader.h"

namespace turboquant {
namespace storage {
namespace {

class Loader final : public CollectionLoader {
 public:
  Loader(StoreImpl& store, std::string name, std::shared_ptr<CollectionImpl> hidden)
      : store_(store), name_(std::move(name)), hidden_(std::move(hidden)) {}

  ~Loader() override {
    files_.reset();
    if (!finished_) (void)store_.drop_collection(hidden_->name());
  }

  absl::Status start() {
    auto files = store_.make_sorted_files();
    if (!files.ok()) return files.status();
    files_ = *std::move(files);
    return absl::OkStatus();
  }

  absl::Status add(const RecordBatch& batch) override {
    return guard([&]() -> absl::Status {
      TQ_RETURN_IF_ERROR(error_);
      PreparedRows rows;
      TQ_RETURN_IF_ERROR(hidden_->prepare(batch, rows));  // nothing happened yet
      return error_ = append(rows);
    });
  }

  absl::StatusOr<std::uint64_t> finish() override {
    return guard([&]() -> absl::StatusOr<std::uint64_t> {
      TQ_RETURN_IF_ERROR(error_);
      // Whatever happens from here on, there is no second try.
      error_ = make_error(absl::StatusCode::kFailedPrecondition, "CLOSED", "the load has ended");
      TQ_RETURN_IF_ERROR(write_tail());
      TQ_RETURN_IF_ERROR(write_ids());
      TQ_RETURN_IF_ERROR(store_.ingest(*files_));
      TQ_RETURN_IF_ERROR(store_.rename_over(hidden_->name(), name_, false));
      finished_ = true;
      return next_row_;
    });
  }

 private:
  std::uint32_t cid() const { return hidden_->record().cid; }

  absl::Status append(const PreparedRows& rows) {
    const std::size_t code_size = hidden_->quantizer().code_size();
    for (std::size_t i = 0; i < rows.ids.size(); ++i, ++next_row_) {
      const std::string key = row_key(cid(), next_row_);
      ids_.emplace_back(id_key(cid(), rows.ids[i]), next_row_);
      if (!rows.metadata[i].empty()) {
        TQ_RETURN_IF_ERROR(files_->put(kPayload, key, rows.metadata[i]));
      }
      if (!rows.indexed[i].empty()) {
        TQ_RETURN_IF_ERROR(files_->put(kPindex, key, encode_indexed(rows.indexed[i])));
      }
      if (!rows.originals.empty()) TQ_RETURN_IF_ERROR(files_->put(kOrig, key, rows.originals[i]));
      codes_.append(reinterpret_cast<const char*>(rows.codes.data()) + i * code_size, code_size);
      block_ids_.push_back(rows.ids[i]);
      if (block_ids_.size() == kBlockRows) TQ_RETURN_IF_ERROR(write_block());
    }
    return absl::OkStatus();
  }

  absl::Status write_block() {
    const auto number = static_cast<std::uint32_t>(next_row_ / kBlockRows);
    const absl::Status status =
        files_->put(kCodes, block_key(cid(), number, kBlockPart),
                    encode_block(codes_, block_ids_, hidden_->packed_layout()));
    codes_.clear();
    block_ids_.clear();
    return status;
  }

  // Rows of the last block, which is not full.
  absl::Status write_tail() {
    const std::size_t code_size = hidden_->quantizer().code_size();
    const std::uint64_t first = next_row_ - block_ids_.size();
    for (std::size_t i = 0; i < block_ids_.size(); ++i) {
      const std::string_view code(codes_.data() + i * code_size, code_size);
      TQ_RETURN_IF_ERROR(files_->put(kDelta, delta_key(cid(), kRowDelta, first + i),
                                     encode_row(block_ids_[i], code)));
    }
    return absl::OkStatus();
  }

  absl::Status write_ids() {
    std::sort(ids_.begin(), ids_.end());
    const std::string* before = nullptr;
    for (const auto& [key, row] : ids_) {
      if (before != nullptr && *before == key) {
        return invalid("DUPLICATE_ID", absl::StrCat("an id occurs twice; its second row is ", row));
      }
      before = &key;
      std::string bytes;
      put(bytes, row);
      TQ_RETURN_IF_ERROR(files_->put(kIds, key, std::move(bytes)));
    }
    return absl::OkStatus();
  }

  StoreImpl& store_;
  const std::string name_;
  const std::shared_ptr<CollectionImpl> hidden_;
  std::unique_ptr<SortedFiles> files_;
  std::vector<std::pair<std::string, std::uint64_t>> ids_;  // key, row
  std::string codes_;                                       // of the block that is being filled
  std::vector<RecordId> block_ids_;
  std::uint64_t next_row_ = 0;
  absl::Status error_;
  bool finished_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SortedFiles>> StoreImpl::make_sorted_files() const {
  const Use use(*core_);
  TQ_RETURN_IF_ERROR(use.status());
  return SortedFiles::make(use.database(), core_->folder + "/" + kLoadingFolder);
}

absl::Status StoreImpl::ingest(SortedFiles& files) const {
  const Use use(*core_);
  TQ_RETURN_IF_ERROR(use.status());
  TQ_RETURN_IF_ERROR(core_->writable());
  return files.ingest(use.database());
}

}  // namespace storage

absl::StatusOr<std::unique_ptr<CollectionLoader>> CollectionLoader::begin(
    Store& store, const std::string& name, const CollectionOptions& options) {
  using storage::StoreImpl;
  return storage::guard([&]() -> absl::StatusOr<std::unique_ptr<CollectionLoader>> {
    TQ_RETURN_IF_ERROR(storage::check_name(name));
    auto& impl = static_cast<StoreImpl&>(store);
    if (impl.find(name).ok()) {
      return storage::make_error(absl::StatusCode::kAlreadyExists, "COLLECTION_EXISTS",
                                 absl::StrCat("there is a collection or alias \"", name, "\""));
    }
    // No caller can name a collection so; a start removes what a crash leaves of it.
    auto hidden = impl.create_hidden(".loading." + name, options);
    if (!hidden.ok()) return hidden.status();
    auto loader = std::make_unique<storage::Loader>(impl, name, *std::move(hidden));
    TQ_RETURN_IF_ERROR(loader->start());
    return std::unique_ptr<CollectionLoader>(std::move(loader));
  });
}

}  // namespace turboquant
