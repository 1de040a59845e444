// Rows of codes in memory, in blocks that readers share with one writer. What a published Block
// shows never changes: the writer fills memory behind its rows and publishes a new Block.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "quantizer/aligned.h"
#include "storage/field_index.h"
#include "storage/records.h"

namespace turboquant::storage {

/// Memory of a block's codes and ids, [capacity] each.
struct BlockRows {
  BlockRows(std::size_t code_bytes, std::uint32_t rows, bool with_strings);

  RecordId id(std::uint32_t i) const;
  const std::uint8_t* code(std::uint32_t i) const { return codes.data() + i * code_size; }

  std::size_t code_size;
  std::uint32_t capacity;
  AlignedVector<std::uint8_t> codes;
  std::unique_ptr<std::uint64_t[]> numbers;
  std::unique_ptr<std::string[]> strings;  ///< null while all ids are numbers; "" for a number
};

/// Indexed values of the rows that the block's index does not cover yet.
struct FreshRows {
  static constexpr std::uint32_t kMost = 256;
  std::array<IndexedValues, kMost> values;
};

struct Block {
  std::uint32_t number = 0;
  std::uint32_t rows = 0;  ///< of them the first are in the index, the others in `fresh`
  std::uint32_t live_rows = 0;
  std::size_t extra_bytes = 0;  ///< string ids, values of fresh rows: an estimate
  std::size_t disk_bytes = 0;   ///< of the block's value in the database; 0 until it is full
  std::shared_ptr<BlockRows> memory;
  std::shared_ptr<const RowBits> live;
  std::shared_ptr<const BlockIndex> index;  ///< null when no row is indexed yet
  std::shared_ptr<FreshRows> fresh;         ///< null when no row is fresh

  std::uint64_t first_row() const { return std::uint64_t{number} * kBlockRows; }
  std::uint32_t indexed() const { return index ? index->rows() : 0; }
  bool full() const { return rows == kBlockRows; }
  std::size_t bytes() const;

  /// Live rows that satisfy the filter.
  RowBits select(const FilterNode& filter) const;
};

/// What blocks hold together, or by how much that changes.
struct BlockTotals {
  std::int64_t live_rows = 0;
  std::int64_t dead_rows = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t disk_bytes = 0;

  void add(const Block& block);
  void subtract(const Block& block);
  BlockTotals& operator+=(const BlockTotals& change);
};

/// One state of a collection.
struct View {
  std::vector<std::shared_ptr<const Block>> blocks;  ///< ascending by number
  std::uint64_t version = 0;
  std::uint64_t live_rows = 0;

  /// Nothing when the row is not in a block.
  const Block* find(std::uint64_t row) const;
  bool live(std::uint64_t row) const;
};

/// Changes that the writer prepares on blocks nobody else sees, until they are published together.
/// Costs no more than what it changes, however many blocks there are.
class Edit {
 public:
  /// `blocks` must outlive this and not change meanwhile.
  Edit(const std::vector<std::shared_ptr<const Block>>& blocks, std::uint64_t next_row,
       std::size_t code_size, const std::vector<FieldSchema>& fields);

  /// The new row's number.
  std::uint64_t append(const RecordId& id, const std::uint8_t* code, IndexedValues values);

  /// The row must exist and be live.
  void kill(std::uint64_t row);

  /// The row's block as changed so far; null when there is none with that row.
  const Block* find(std::uint64_t row) const;
  bool live(std::uint64_t row) const;

  /// Takes a block out of the collection.
  void remove_block(std::uint32_t number) { removed_.push_back(number); }

  /// Notes the size of the value that the block of that row, which is full now, has on disk.
  void set_disk_bytes(std::uint64_t row, std::size_t bytes);

  std::uint64_t next_row() const { return next_row_; }
  /// By how much apply() will change the blocks' totals.
  BlockTotals change() const;

  /// Makes the changes in `blocks`, the vector given to the constructor.
  void apply(std::vector<std::shared_ptr<const Block>>& blocks);

 private:
  struct Open {
    std::shared_ptr<Block> block;
    std::shared_ptr<RowBits> live;  // block->live, which this edit alone still changes
  };
  Open& open(std::uint32_t number);
  void make_room(Block& block, bool string_id);
  void index_fresh(Block& block);

  const std::vector<std::shared_ptr<const Block>>& base_;
  std::map<std::uint32_t, Open> changed_;
  std::vector<std::uint32_t> removed_;
  std::uint64_t next_row_;
  std::size_t code_size_;
  const std::vector<FieldSchema>& fields_;
};

/// A full block as it was read from a value of disk_bytes; `dead` has the bits of rows that are not
/// live.
std::shared_ptr<const Block> make_full_block(std::uint32_t number, const BlockRecord& record,
                                             std::size_t disk_bytes, std::size_t code_size,
                                             const RowBits& dead,
                                             const std::vector<FieldSchema>& fields,
                                             const std::vector<IndexedValues>& values);

/// The block of that number; null when there is none.
const Block* find_block(const std::vector<std::shared_ptr<const Block>>& blocks,
                        std::uint64_t number);

}  // namespace turboquant::storage
