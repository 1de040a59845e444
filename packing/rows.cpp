#include "packing/rows.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "kernels/code_layout.h"
#include "packing/checksum.h"
#include "packing/streams.h"
#include "packing/three_bits.h"
#include "quantizer/parallel.h"

namespace turboquant::packing {
namespace {

constexpr std::size_t kGroupBytes = std::size_t{1} << 20;

constexpr std::size_t kChecksumBytes = sizeof(std::uint64_t);

// A row as it is packed: codes (of 3 bits: distances, then signs) and floats. Each column of it is
// a stream; a byte that holds fewer coordinates than the others, or part of a float, is one by
// itself.
class Columns {
 public:
  struct Column {
    std::size_t first;
    std::size_t bytes;
  };

  explicit Columns(const RowLayout& layout) : layout_(layout) {
    const std::size_t d = layout.dimension;
    if (layout.bits == 3) {
      const std::size_t tail = d % kernels::kBlock;
      add(distance_bytes(d), d / kernels::kBlock * kernels::plane_bytes(2) + tail / 4);
      add(sign_bytes(d), d / kernels::kBlock * kernels::plane_bytes(1) + tail / 8);
    } else {
      add(packed(), d * static_cast<std::size_t>(layout.bits) / 8);
    }
    add(layout.code_size - packed(), 0);
  }

  std::size_t row_bytes() const { return row_bytes_; }
  const std::vector<Column>& all() const { return columns_; }

  void split(const std::uint8_t* row, std::uint8_t* to) const {
    const std::size_t d = layout_.dimension;
    if (layout_.bits == 3) {
      split_three_bits(row, d, to, to + distance_bytes(d));
    } else {
      std::memcpy(to, row, packed());
    }
    std::memcpy(to + row_bytes_ - factors(), row + packed(), factors());
  }

  void join(const std::uint8_t* from, std::uint8_t* row) const {
    const std::size_t d = layout_.dimension;
    if (layout_.bits == 3) {
      join_three_bits(from, from + distance_bytes(d), d, row);
    } else {
      std::memcpy(row, from, packed());
    }
    std::memcpy(row + packed(), from + row_bytes_ - factors(), factors());
  }

 private:
  std::size_t packed() const { return kernels::packed_bytes(layout_.dimension, layout_.bits); }
  std::size_t factors() const { return layout_.code_size - packed(); }

  // A part of the row, whose first bytes are alike.
  void add(std::size_t bytes, std::size_t alike) {
    if (alike > 0) columns_.push_back({row_bytes_, alike});
    for (std::size_t i = alike; i < bytes; ++i) columns_.push_back({row_bytes_ + i, 1});
    row_bytes_ += bytes;
  }

  RowLayout layout_;
  std::vector<Column> columns_;
  std::size_t row_bytes_ = 0;
};

void gather(const std::uint8_t* split, std::size_t row_bytes, const Columns::Column& column,
            std::size_t n, std::uint8_t* to) {
  split += column.first;
  if (column.bytes == 1) {
    for (std::size_t i = 0; i < n; ++i) to[i] = split[i * row_bytes];
    return;
  }
  for (std::size_t i = 0; i < n; ++i) {
    std::memcpy(to + i * column.bytes, split + i * row_bytes, column.bytes);
  }
}

void scatter(const std::uint8_t* from, std::size_t row_bytes, const Columns::Column& column,
             std::size_t n, std::uint8_t* split) {
  split += column.first;
  if (column.bytes == 1) {
    for (std::size_t i = 0; i < n; ++i) split[i * row_bytes] = from[i];
    return;
  }
  for (std::size_t i = 0; i < n; ++i) {
    std::memcpy(split + i * row_bytes, from + i * column.bytes, column.bytes);
  }
}

std::size_t group_count(const RowLayout& layout, std::size_t n) {
  const std::size_t rows = group_rows(layout);
  return (n + rows - 1) / rows;
}

// work(g, scratch) for all groups below `groups`, on threads.
template <class Work>
void for_groups(std::size_t groups, const Work& work) {
  const auto threads = static_cast<std::size_t>(std::max(1, omp_get_max_threads()));
  std::atomic<std::size_t> next{0};
  run_parts(std::min(threads, groups), [&](std::size_t) {
    GroupScratch scratch;
    for (std::size_t g = next++; g < groups; g = next++) work(g, scratch);
  });
}

}  // namespace

std::size_t group_rows(const RowLayout& layout) {
  return std::max<std::size_t>(1, kGroupBytes / layout.code_size);
}

std::size_t least_group_bytes(const RowLayout& layout, std::size_t n) {
  const Columns columns(layout);
  return kChecksumBytes + 4 * columns.all().size() + n * columns.row_bytes() / kMostExpansion;
}

std::size_t most_group_bytes(const RowLayout& layout, std::size_t n) {
  const Columns columns(layout);
  return kChecksumBytes + 4 * columns.all().size() + n * columns.row_bytes();
}

std::vector<std::uint8_t> pack_group(const RowLayout& layout, const std::uint8_t* rows,
                                     std::size_t n, GroupScratch& scratch) {
  const Columns columns(layout);
  const std::size_t width = columns.row_bytes();
  std::vector<std::uint8_t>& split = scratch.rows;
  std::vector<std::uint8_t>& stream = scratch.stream;
  split.resize(n * width);
  for (std::size_t i = 0; i < n; ++i) {
    columns.split(rows + i * layout.code_size, split.data() + i * width);
  }
  std::vector<std::uint8_t> out(kChecksumBytes);
  const std::uint64_t sum = checksum(rows, n * layout.code_size);
  std::memcpy(out.data(), &sum, sizeof sum);
  for (const Columns::Column& column : columns.all()) {
    stream.resize(n * column.bytes);
    gather(split.data(), width, column, n, stream.data());
    append_stream(stream.data(), stream.size(), out);
  }
  return out;
}

bool unpack_group(const RowLayout& layout, const std::uint8_t* bytes, std::size_t size,
                  std::size_t n, std::uint8_t* rows, GroupScratch& scratch) {
  const Columns columns(layout);
  const std::size_t width = columns.row_bytes();
  std::uint64_t sum = 0;
  if (size < least_group_bytes(layout, n)) return false;
  std::memcpy(&sum, bytes, sizeof sum);
  bytes += sizeof sum;
  size -= sizeof sum;
  std::vector<std::uint8_t>& split = scratch.rows;
  std::vector<std::uint8_t>& stream = scratch.stream;
  split.resize(n * width);
  for (const Columns::Column& column : columns.all()) {
    stream.resize(n * column.bytes);
    if (!take_stream(&bytes, &size, stream.data(), stream.size())) return false;
    scatter(stream.data(), width, column, n, split.data());
  }
  if (size != 0) return false;
  for (std::size_t i = 0; i < n; ++i) {
    columns.join(split.data() + i * width, rows + i * layout.code_size);
  }
  return !kCompareChecksums || sum == checksum(rows, n * layout.code_size);
}

std::vector<std::uint8_t> pack_rows(const RowLayout& layout, const std::uint8_t* rows,
                                    std::size_t n) {
  const std::size_t step = group_rows(layout);
  std::vector<std::vector<std::uint8_t>> packed(group_count(layout, n));
  for_groups(packed.size(), [&](std::size_t g, GroupScratch& scratch) {
    const std::size_t first = g * step;
    packed[g] =
        pack_group(layout, rows + first * layout.code_size, std::min(step, n - first), scratch);
  });
  std::vector<std::uint8_t> out;
  for (const std::vector<std::uint8_t>& group : packed) {
    const auto size = static_cast<std::uint32_t>(group.size());
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&size);
    out.insert(out.end(), bytes, bytes + sizeof size);
    out.insert(out.end(), group.begin(), group.end());
  }
  return out;
}

bool unpack_rows(const RowLayout& layout, const std::uint8_t* bytes, std::size_t size,
                 std::size_t n, std::uint8_t* rows) {
  struct Group {
    const std::uint8_t* bytes;
    std::size_t size;
  };
  std::vector<Group> groups;
  const std::size_t step = group_rows(layout);
  for (std::size_t first = 0; first < n; first += step) {
    std::uint32_t group = 0;
    if (size < sizeof group) return false;
    std::memcpy(&group, bytes, sizeof group);
    bytes += sizeof group;
    size -= sizeof group;
    if (group > size || group < least_group_bytes(layout, std::min(step, n - first))) return false;
    groups.push_back({bytes, group});
    bytes += group;
    size -= group;
  }
  if (size != 0) return false;
  std::atomic<bool> good{true};
  for_groups(groups.size(), [&](std::size_t g, GroupScratch& scratch) {
    const std::size_t first = g * step;
    if (!unpack_group(layout, groups[g].bytes, groups[g].size, std::min(step, n - first),
                      rows + first * layout.code_size, scratch)) {
      good = false;
    }
  });
  return good;
}

}  // namespace turboquant::packing
