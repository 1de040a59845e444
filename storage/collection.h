// A collection: one writer at a time, any number of readers on views of its blocks.
//
// Locks, in this order: the store's gate (Use), writer_, state_. Readers of memory take state_ for
// as long as it takes to copy a pointer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "storage/block.h"
#include "storage/compiled_filter.h"
#include "storage/core.h"
#include "storage/records.h"
#include "storage/view_search.h"
#include "turboquant/quantizer.h"
#include "turboquant/store.h"

namespace turboquant::storage {

/// The quantizer of a collection; INVALID_ARGUMENT when an option is out of range.
absl::StatusOr<Quantizer> make_quantizer(const CollectionOptions& options);

/// What the quantizer's scores are made of: cosines are inner products of unit vectors.
inline Metric scan_metric(DistanceMetric metric) {
  return metric == DistanceMetric::kL2 ? Metric::kL2 : Metric::kInnerProduct;
}

enum class WriteKind : std::uint8_t { kUpsert = 0, kInsert = 1, kRemove = 2, kRemoveIf = 3 };

/// Records made ready for writing, before any lock is taken.
struct PreparedRows {
  std::vector<RecordId> ids;
  std::vector<std::uint8_t> codes;     ///< [n][code_size]
  std::vector<std::string> metadata;   ///< encoded; "" when empty
  std::vector<IndexedValues> indexed;  ///< [n]
  std::vector<std::string> originals;  ///< encoded; no elements when they are not kept
};

class CollectionImpl final : public Collection {
 public:
  CollectionImpl(std::shared_ptr<Core> core, std::string name, CollectionRecord record,
                 Quantizer quantizer);
  ~CollectionImpl() override;

  const std::string& name() const override { return name_; }
  const CollectionOptions& options() const override { return record_.options; }
  CollectionInfo info() const override;
  absl::StatusOr<WriteResult> upsert(const RecordBatch& batch,
                                     const WriteOptions& options) override;
  absl::StatusOr<WriteResult> insert(const RecordBatch& batch,
                                     const WriteOptions& options) override;
  absl::StatusOr<WriteResult> remove(absl::Span<const RecordId> ids,
                                     const WriteOptions& options) override;
  absl::StatusOr<WriteResult> remove_if(const Filter& filter, const WriteOptions& options) override;
  absl::StatusOr<std::vector<Hits>> search(absl::Span<const float> queries,
                                           const SearchOptions& options) const override;
  absl::StatusOr<std::vector<Hits>> range_search(absl::Span<const float> queries,
                                                 const RangeOptions& options) const override;
  absl::StatusOr<std::vector<std::optional<Record>>> get(absl::Span<const RecordId> ids,
                                                         const Parts& parts) const override;
  absl::StatusOr<ScrollPage> scroll(const ScrollOptions& options) const override;
  absl::StatusOr<std::uint64_t> count(const std::optional<Filter>& filter) const override;
  absl::Status compact() override;

  // For the store and the functions beside it; not for callers.

  const CollectionRecord& record() const { return record_; }
  /// Of the rows of blocks on disk where they are packed; else null.
  const packing::RowLayout* packed_layout() const {
    return record_.options.pack_codes ? &layout_ : nullptr;
  }
  const Quantizer& quantizer() const { return quantizer_; }
  std::shared_ptr<const View> view() const;

  /// Reads everything back into memory. The caller owns the gate, or nobody else has this object.
  absl::Status load(const Database& database);

  /// Later calls fail with this status.
  void retire(const absl::Status& why);

  /// Runs `change`, which takes the collection out of the database, while nothing writes to it;
  /// when it succeeds, later calls fail with `why`.
  absl::Status retire_with(const absl::Status& why, const std::function<absl::Status()>& change);

  /// One round of background work (docs/storage_format.md). `idle` folds few tombstones too.
  absl::Status maintain(bool idle);

  /// Checks and encodes a batch.
  absl::Status prepare(const RecordBatch& batch, PreparedRows& rows) const;

  /// Writes prepared rows as an upsert. They must be valid.
  absl::StatusOr<WriteResult> write_rows(const PreparedRows& rows, WriteKind kind,
                                         const WriteOptions& options, std::uint64_t request_hash);

  /// Cross-checks ids, metadata, originals and rows (Store::verify).
  absl::Status verify(const Database& database) const;

 private:
  // One write on its way: changes of memory and of the database.
  struct Stage {
    Stage(const CollectionImpl& collection, Database& database);
    Edit edit;
    Batch batch;
    std::vector<std::uint64_t> killed;
    std::vector<std::uint64_t> loose;  // new rows of the last block, not in the batch yet
    std::uint64_t first_new_row;
  };
  struct LoadState;

  // collection_write.cpp
  absl::Status prepare_vectors(absl::Span<const float> vectors, PreparedRows& rows) const;
  absl::Status prepare_metadata(const Metadata& metadata, const RecordId& id,
                                PreparedRows& rows) const;
  absl::StatusOr<WriteResult> put(WriteKind kind, const RecordBatch& batch,
                                  const WriteOptions& options);
  template <class Change>
  absl::StatusOr<WriteResult> run_write(WriteKind kind, const WriteOptions& options,
                                        std::uint64_t request_hash, const Change& change);
  absl::StatusOr<std::optional<WriteResult>> find_operation(const Database& database,
                                                            WriteKind kind,
                                                            const WriteOptions& options,
                                                            std::uint64_t request_hash) const;
  void stage_row(Stage& stage, const RecordId& id, const std::uint8_t* code, IndexedValues indexed,
                 const std::string& metadata, std::optional<std::string> original) const;
  void stage_full_block(Stage& stage, std::uint64_t last_row) const;
  absl::Status stage_kill(Stage& stage, std::uint64_t row) const;
  void stage_loose(Stage& stage) const;
  absl::Status commit(Stage& stage, Database& database, bool grows);
  /// Makes the edit the collection's state. The caller holds writer_ and state_.
  void publish(Edit& edit, const BlockTotals& change);
  absl::StatusOr<std::vector<std::optional<std::uint64_t>>> rows_of(
      const Database& database, absl::Span<const RecordId> ids) const;

  // collection_read.cpp
  absl::Status check_alive() const;
  absl::StatusOr<std::vector<float>> prepare_queries(absl::Span<const float> queries) const;
  absl::StatusOr<std::optional<FilterNode>> compile(const std::optional<Filter>& filter) const;
  absl::StatusOr<std::vector<Hits>> make_hits(const Database* database, const View& view,
                                              std::vector<std::vector<Candidate>> found,
                                              const Parts& parts, const ReadControl& control) const;
  absl::Status rescore(const Database& database, const View& view, absl::Span<const float> queries,
                       std::size_t k, const ReadControl& control,
                       std::vector<std::vector<Candidate>>& found) const;
  absl::StatusOr<std::vector<std::vector<Candidate>>> scan_originals(
      const Database& database, const View& view, absl::Span<const float> queries,
      const FilterNode* filter, std::size_t k, const ReadControl& control) const;
  // A state of the collection in which the id's row is live; nothing when the id does not exist.
  struct Located {
    std::shared_ptr<const View> view;
    std::uint64_t row;
  };
  absl::StatusOr<std::optional<Located>> locate(const Database& database, const RecordId& id,
                                                std::shared_ptr<const View> first) const;
  absl::Status read_parts(const Database& database, const View& view,
                          const std::vector<std::uint64_t>& rows, const Parts& parts,
                          std::vector<Record*> records) const;

  // collection_maintain.cpp
  absl::Status fold_tombstones(Database& database, bool all);
  absl::Status empty_block(Database& database, std::uint32_t number);
  /// The first block from number `from` on that is worth emptying, of rows below `before`.
  std::optional<std::uint32_t> block_to_empty(bool all, std::uint32_t from,
                                              std::uint64_t before) const;
  std::uint64_t next_row() const;
  absl::Status forget_operations(Database& database);
  std::uint64_t oldest_view() const;

  std::uint32_t cid() const { return record_.cid; }
  std::size_t dimension() const { return record_.options.dimension; }
  const std::vector<FieldSchema>& fields() const { return record_.options.fields; }

  const std::shared_ptr<Core> core_;
  const std::string name_;
  const CollectionRecord record_;
  const Quantizer quantizer_;
  const packing::RowLayout layout_;

  mutable std::mutex writer_;
  std::vector<std::uint64_t> dead_rows_;      // tombstones since the last fold began
  std::vector<std::uint64_t> retiring_rows_;  // tombstones being folded, descending
  std::uint64_t retire_version_ = 0;          // views before this one may see retiring rows
  std::string forget_from_;                   // where the next look at old operations starts

  // Changed by the holder of writer_ and state_ both; read by the holder of either.
  mutable std::mutex state_;
  std::vector<std::shared_ptr<const Block>> blocks_;
  std::uint64_t next_row_ = 0;
  std::uint64_t version_ = 0;
  BlockTotals totals_;    // of blocks_
  absl::Status retired_;  // why calls fail

  // Under state_.
  mutable std::shared_ptr<const View> view_;
  mutable std::vector<std::pair<std::uint64_t, std::weak_ptr<const View>>> views_;
};

}  // namespace turboquant::storage
