#include "storage/block.h"

#include <algorithm>
#include <cstring>

namespace turboquant::storage {
namespace {

constexpr std::uint32_t kFirstCapacity = 64;

std::size_t extra_bytes(const RecordId& id) {
  const auto* text = std::get_if<std::string>(&id);
  return text != nullptr && text->size() > 15 ? text->size() + 1 : 0;
}

void set_id(BlockRows& memory, std::uint32_t i, const RecordId& id) {
  if (const auto* number = std::get_if<std::uint64_t>(&id)) {
    memory.numbers[i] = *number;
    if (memory.strings) memory.strings[i].clear();
  } else {
    memory.numbers[i] = 0;
    memory.strings[i] = std::get<std::string>(id);
  }
}

}  // namespace

BlockRows::BlockRows(std::size_t code_bytes, std::uint32_t rows, bool with_strings)
    : code_size(code_bytes),
      capacity(rows),
      codes(code_bytes * rows),
      numbers(std::make_unique<std::uint64_t[]>(rows)),
      strings(with_strings ? std::make_unique<std::string[]>(rows) : nullptr) {}

RecordId BlockRows::id(std::uint32_t i) const {
  if (strings && !strings[i].empty()) return strings[i];
  return numbers[i];
}

std::size_t Block::bytes() const {
  std::size_t bytes = sizeof(Block) + sizeof(RowBits) + extra_bytes;
  if (memory) {
    bytes += memory->capacity * (memory->code_size + sizeof(std::uint64_t) +
                                 (memory->strings ? sizeof(std::string) : 0));
  }
  if (index) bytes += sizeof(BlockIndex) + index->bytes();
  if (fresh) bytes += sizeof(FreshRows);
  return bytes;
}

RowBits Block::select(const FilterNode& filter) const {
  RowBits bits;
  if (index) bits = index->select(filter);
  const std::uint32_t first = indexed();
  for (std::uint32_t i = first; i < rows; ++i) {
    if (matches(filter, fresh->values[i - first])) bits.set(i);
  }
  bits &= *live;
  return bits;
}

void BlockTotals::add(const Block& block) {
  live_rows += block.live_rows;
  dead_rows += block.rows - block.live_rows;
  memory_bytes += static_cast<std::int64_t>(block.bytes());
  disk_bytes += static_cast<std::int64_t>(block.disk_bytes);
}

void BlockTotals::subtract(const Block& block) {
  live_rows -= block.live_rows;
  dead_rows -= block.rows - block.live_rows;
  memory_bytes -= static_cast<std::int64_t>(block.bytes());
  disk_bytes -= static_cast<std::int64_t>(block.disk_bytes);
}

BlockTotals& BlockTotals::operator+=(const BlockTotals& change) {
  live_rows += change.live_rows;
  dead_rows += change.dead_rows;
  memory_bytes += change.memory_bytes;
  disk_bytes += change.disk_bytes;
  return *this;
}

const Block* find_block(const std::vector<std::shared_ptr<const Block>>& blocks,
                        std::uint64_t number) {
  const auto at = std::lower_bound(
      blocks.begin(), blocks.end(), number,
      [](const std::shared_ptr<const Block>& block, std::uint64_t n) { return block->number < n; });
  return at != blocks.end() && (*at)->number == number ? at->get() : nullptr;
}

const Block* View::find(std::uint64_t row) const {
  const Block* block = find_block(blocks, row / kBlockRows);
  return block != nullptr && row % kBlockRows < block->rows ? block : nullptr;
}

bool View::live(std::uint64_t row) const {
  const Block* block = find(row);
  return block != nullptr && block->live->test(static_cast<std::uint32_t>(row % kBlockRows));
}

Edit::Edit(const std::vector<std::shared_ptr<const Block>>& blocks, std::uint64_t next_row,
           std::size_t code_size, const std::vector<FieldSchema>& fields)
    : base_(blocks), next_row_(next_row), code_size_(code_size), fields_(fields) {}

Edit::Open& Edit::open(std::uint32_t number) {
  const auto [at, is_new] = changed_.try_emplace(number);
  Open& open = at->second;
  if (!is_new) return open;
  if (const Block* block = find_block(base_, number)) {
    open.block = std::make_shared<Block>(*block);
    open.live = std::make_shared<RowBits>(*block->live);
  } else {
    open.block = std::make_shared<Block>();
    open.block->number = number;
    open.live = std::make_shared<RowBits>();
  }
  open.block->live = open.live;
  return open;
}

void Edit::make_room(Block& block, bool string_id) {
  const bool strings = string_id || (block.memory && block.memory->strings);
  std::uint32_t capacity = block.memory ? block.memory->capacity : kFirstCapacity;
  if (block.rows == capacity) capacity *= 2;
  if (block.memory && capacity == block.memory->capacity &&
      strings == static_cast<bool>(block.memory->strings)) {
    return;
  }
  auto memory = std::make_shared<BlockRows>(code_size_, capacity, strings);
  if (block.memory) {
    const BlockRows& old = *block.memory;
    std::memcpy(memory->codes.data(), old.codes.data(), block.rows * code_size_);
    std::copy_n(old.numbers.get(), block.rows, memory->numbers.get());
    if (old.strings) std::copy_n(old.strings.get(), block.rows, memory->strings.get());
  }
  block.memory = std::move(memory);
}

void Edit::index_fresh(Block& block) {
  const auto first = block.fresh->values.begin();
  const std::vector<IndexedValues> added(first, first + (block.rows - block.indexed()));
  block.index = std::make_shared<BlockIndex>(fields_, block.index.get(), added);
  block.fresh.reset();
}

std::uint64_t Edit::append(const RecordId& id, const std::uint8_t* code, IndexedValues values) {
  const std::uint64_t row = next_row_;
  Open& opened = open(static_cast<std::uint32_t>(row / kBlockRows));
  Block& block = *opened.block;
  make_room(block, std::holds_alternative<std::string>(id));
  const std::uint32_t at = block.rows;
  std::memcpy(block.memory->codes.data() + at * code_size_, code, code_size_);
  set_id(*block.memory, at, id);
  block.extra_bytes += extra_bytes(id);
  if (!block.fresh) block.fresh = std::make_shared<FreshRows>();
  block.fresh->values[at - block.indexed()] = std::move(values);
  opened.live->set(at);
  ++block.rows;
  ++block.live_rows;
  if (block.full() || block.rows - block.indexed() == FreshRows::kMost) index_fresh(block);
  ++next_row_;
  return row;
}

void Edit::set_disk_bytes(std::uint64_t row, std::size_t bytes) {
  open(static_cast<std::uint32_t>(row / kBlockRows)).block->disk_bytes = bytes;
}

void Edit::kill(std::uint64_t row) {
  Open& opened = open(static_cast<std::uint32_t>(row / kBlockRows));
  opened.live->reset(static_cast<std::uint32_t>(row % kBlockRows));
  --opened.block->live_rows;
}

const Block* Edit::find(std::uint64_t row) const {
  const auto number = row / kBlockRows;
  const auto at = changed_.find(static_cast<std::uint32_t>(number));
  const Block* block = at != changed_.end() ? at->second.block.get() : find_block(base_, number);
  return block != nullptr && row % kBlockRows < block->rows ? block : nullptr;
}

bool Edit::live(std::uint64_t row) const {
  const Block* block = find(row);
  return block != nullptr && block->live->test(static_cast<std::uint32_t>(row % kBlockRows));
}

BlockTotals Edit::change() const {
  BlockTotals change;
  for (const auto& [number, opened] : changed_) {
    if (const Block* before = find_block(base_, number)) change.subtract(*before);
    change.add(*opened.block);
  }
  for (const std::uint32_t number : removed_) {
    if (const Block* block = find(std::uint64_t{number} * kBlockRows)) change.subtract(*block);
  }
  return change;
}

void Edit::apply(std::vector<std::shared_ptr<const Block>>& blocks) {
  const auto below = [](const std::shared_ptr<const Block>& block, std::uint32_t n) {
    return block->number < n;
  };
  for (auto& [number, opened] : changed_) {
    const auto at = std::lower_bound(blocks.begin(), blocks.end(), number, below);
    if (at != blocks.end() && (*at)->number == number) {
      *at = std::move(opened.block);
    } else {
      blocks.insert(at, std::move(opened.block));
    }
  }
  for (const std::uint32_t number : removed_) {
    const auto at = std::lower_bound(blocks.begin(), blocks.end(), number, below);
    if (at != blocks.end() && (*at)->number == number) blocks.erase(at);
  }
}

std::shared_ptr<const Block> make_full_block(std::uint32_t number, const BlockRecord& record,
                                             std::size_t disk_bytes, std::size_t code_size,
                                             const RowBits& dead,
                                             const std::vector<FieldSchema>& fields,
                                             const std::vector<IndexedValues>& values) {
  auto block = std::make_shared<Block>();
  const bool strings = std::any_of(record.ids.begin(), record.ids.end(), [](const RecordId& id) {
    return std::holds_alternative<std::string>(id);
  });
  block->number = number;
  block->rows = kBlockRows;
  block->disk_bytes = disk_bytes;
  block->memory = std::make_shared<BlockRows>(code_size, kBlockRows, strings);
  std::memcpy(block->memory->codes.data(), record.codes.data(), record.codes.size());
  for (std::uint32_t i = 0; i < kBlockRows; ++i) {
    set_id(*block->memory, i, record.ids[i]);
    block->extra_bytes += extra_bytes(record.ids[i]);
  }
  auto live = std::make_shared<RowBits>(RowBits::first(kBlockRows));
  *live -= dead;
  block->live_rows = live->count();
  block->live = std::move(live);
  block->index = std::make_shared<BlockIndex>(fields, nullptr, values);
  return block;
}

}  // namespace turboquant::storage
