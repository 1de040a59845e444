#include "index/packed_rows.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "index/checks.h"
#include "packing/streams.h"

namespace turboquant {

void write_bytes(faiss::IOWriter* writer, const void* data, std::size_t size) {
  if (size > 0 && (*writer)(data, 1, size) != size) {
    fail("cannot write " + std::to_string(size) + " bytes to " +
         (writer->name.empty() ? std::string("the index file") : writer->name));
  }
}

packing::RowLayout row_layout(const Quantizer& codec) {
  return {codec.dimension(), codec.options().bits, codec.code_size()};
}

std::size_t packed_batch_rows(const packing::RowLayout& layout) {
  constexpr std::size_t kGroupsPerThread = 4;
  const auto threads = static_cast<std::size_t>(std::max(1, omp_get_max_threads()));
  return kGroupsPerThread * threads * packing::group_rows(layout);
}

void write_packed_rows(faiss::IOWriter* writer, const packing::RowLayout& layout,
                       const std::uint8_t* rows, std::size_t n) {
  const std::vector<std::uint8_t> packed = packing::pack_rows(layout, rows, n);
  write_bytes(writer, packed.data(), packed.size());
}

void read_packed_rows(CheckedReader& reader, const packing::RowLayout& layout, std::uint8_t* rows,
                      std::size_t n, std::vector<std::uint8_t>& scratch) {
  const std::size_t step = packing::group_rows(layout);
  std::size_t used = 0;
  for (std::size_t first = 0; first < n; first += step) {
    const std::size_t group = std::min(step, n - first);
    const auto size = reader.value<std::uint32_t>("packed codes");
    if (size < packing::least_group_bytes(layout, group) ||
        size > packing::most_group_bytes(layout, group)) {
      reader.fail_here("a group of packed codes has a size that is out of range");
    }
    if (scratch.size() < used + sizeof size + size) scratch.resize(used + sizeof size + size);
    std::memcpy(scratch.data() + used, &size, sizeof size);
    used += sizeof size;
    reader.read(scratch.data() + used, size, "packed codes");
    used += size;
  }
  if (!packing::unpack_rows(layout, scratch.data(), used, n, rows)) {
    if (!packing::can_code()) {
      reader.fail_here("its codes are packed, and this program was built without zstd");
    }
    reader.fail_here("the packed codes are damaged: their checksum is wrong");
  }
}

bool require_packed_rows(CheckedReader& reader, const packing::RowLayout& layout, std::uint64_t n) {
  const std::optional<std::uint64_t> left = remaining_bytes(reader.stream());
  if (!left.has_value()) return false;
  // A row may share its bytes with up to 15 others.
  if (n > (*left / layout.code_size + 1) * packing::kMostExpansion) {
    reader.fail_here("the data ends inside the packed codes");
  }
  return true;
}

}  // namespace turboquant
