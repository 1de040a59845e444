#include "index/packed_lists.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "index/checksum.h"
#include "index/packed_rows.h"

namespace turboquant {
namespace {

using faiss::InvertedLists;

constexpr char kKey[] = "ilPK";

template <class T>
std::uint64_t checksum_of(const std::vector<T>& values) {
  return checksum(reinterpret_cast<const std::uint8_t*>(values.data()), values.size() * sizeof(T));
}

template <class T>
std::vector<T> read_checked(CheckedReader& reader, std::uint64_t count, const char* what) {
  std::vector<T> values;
  reader.read_vector(values, count, what);
  if (reader.value<std::uint64_t>(what) != checksum_of(values) && kCompareChecksums) {
    reader.fail_here(std::string("the ") + what + " are damaged: their checksum is wrong");
  }
  return values;
}

// Of all lists, as one sequence of rows.
void write_codes(faiss::IOWriter* writer, const packing::RowLayout& layout,
                 const InvertedLists& lists, const std::vector<std::uint64_t>& sizes) {
  const std::size_t batch = packed_batch_rows(layout) * layout.code_size;
  std::vector<std::uint8_t> rows;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    InvertedLists::ScopedCodes codes(&lists, i);
    const std::size_t bytes = static_cast<std::size_t>(sizes[i]) * layout.code_size;
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t n = std::min(batch - rows.size(), bytes - done);
      rows.insert(rows.end(), codes.get() + done, codes.get() + done + n);
      done += n;
      if (rows.size() < batch) continue;
      write_packed_rows(writer, layout, rows.data(), rows.size() / layout.code_size);
      rows.clear();
    }
  }
  if (!rows.empty()) {
    write_packed_rows(writer, layout, rows.data(), rows.size() / layout.code_size);
  }
}

void write_ids(faiss::IOWriter* writer, const InvertedLists& lists,
               const std::vector<std::uint64_t>& sizes) {
  std::vector<std::int64_t> ids;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    InvertedLists::ScopedIds list(&lists, i);
    ids.insert(ids.end(), list.get(), list.get() + sizes[i]);
  }
  const std::uint64_t sum = checksum_of(ids);
  write_bytes(writer, ids.data(), ids.size() * sizeof ids[0]);
  write_bytes(writer, &sum, sizeof sum);
}

// Hands out the rows of the file in pieces of any size.
class RowSource {
 public:
  RowSource(CheckedReader& reader, const packing::RowLayout& layout, std::uint64_t count)
      : reader_(reader), layout_(layout), batch_(packed_batch_rows(layout)), left_(count) {}

  template <class Codes>
  void append_to(Codes& codes, std::uint64_t rows) {
    while (rows > 0) {
      if (used_ == rows_.size()) next_batch();
      const auto n = static_cast<std::size_t>(
          std::min<std::uint64_t>(rows, (rows_.size() - used_) / layout_.code_size));
      const std::size_t at = codes.size();
      codes.resize(at + n * layout_.code_size);
      std::memcpy(codes.data() + at, rows_.data() + used_, n * layout_.code_size);
      used_ += n * layout_.code_size;
      rows -= n;
    }
  }

 private:
  void next_batch() {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(batch_, left_));
    rows_.resize(n * layout_.code_size);
    read_packed_rows(reader_, layout_, rows_.data(), n, scratch_);
    left_ -= n;
    used_ = 0;
  }

  CheckedReader& reader_;
  const packing::RowLayout& layout_;
  std::size_t batch_;
  std::uint64_t left_;
  std::vector<std::uint8_t> rows_;
  std::vector<std::uint8_t> scratch_;
  std::size_t used_ = 0;
};

}  // namespace

void write_packed_lists(faiss::IOWriter* writer, const packing::RowLayout& layout,
                        const faiss::InvertedLists& lists) {
  std::vector<std::uint64_t> sizes(lists.nlist);
  for (std::size_t i = 0; i < lists.nlist; ++i) sizes[i] = lists.list_size(i);
  write_bytes(writer, kKey, 4);
  write_bytes(writer, sizes.data(), sizes.size() * sizeof sizes[0]);
  const std::uint64_t sum = checksum_of(sizes);
  write_bytes(writer, &sum, sizeof sum);
  write_codes(writer, layout, lists, sizes);
  write_ids(writer, lists, sizes);
}

std::unique_ptr<faiss::ArrayInvertedLists> read_packed_lists(CheckedReader& reader,
                                                             const packing::RowLayout& layout,
                                                             std::size_t lists,
                                                             std::uint64_t count) {
  char key[4];
  reader.read(key, sizeof key, "inverted lists");
  if (std::memcmp(key, kKey, sizeof key) != 0) {
    reader.fail_here("the packed inverted lists are of unknown type");
  }
  const auto sizes = read_checked<std::uint64_t>(reader, lists, "sizes of the inverted lists");
  require_list_sizes(reader, sizes, count);
  require_packed_rows(reader, layout, count);
  auto result = std::make_unique<faiss::ArrayInvertedLists>(lists, layout.code_size);
  RowSource source(reader, layout, count);
  for (std::size_t i = 0; i < lists; ++i) source.append_to(result->codes[i], sizes[i]);
  const auto ids = read_checked<std::int64_t>(reader, count, "ids of the inverted lists");
  const std::int64_t* next = ids.data();
  for (std::size_t i = 0; i < lists; ++i) {
    const auto n = static_cast<std::size_t>(sizes[i]);
    result->ids[i].resize(n);
    if (n > 0) std::memcpy(result->ids[i].data(), next, n * sizeof(std::int64_t));
    next += n;
  }
  return result;
}

void require_list_sizes(const CheckedReader& reader, const std::vector<std::uint64_t>& sizes,
                        std::uint64_t count) {
  std::uint64_t left = count;
  for (const std::uint64_t size : sizes) {
    if (size > left) reader.fail_here("the inverted lists hold more vectors than the index");
    left -= size;
  }
  if (left != 0) reader.fail_here("the inverted lists hold fewer vectors than the index");
}

}  // namespace turboquant
