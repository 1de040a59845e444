#include "storage/field_index.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace turboquant::storage {
namespace {

// Literals as the index holds values: bools as bytes, since std::vector<bool> has no iterators
// worth the name.
template <class T>
T literal(const Scalar& scalar) {
  if constexpr (std::is_same_v<T, std::uint8_t>) {
    return std::get<bool>(scalar) ? 1 : 0;
  } else {
    return std::get<T>(scalar);
  }
}

template <class T, class Emit>
void each_value(const MetadataValue& value, const Emit& emit) {
  if constexpr (std::is_same_v<T, std::uint8_t>) {
    emit(static_cast<std::uint8_t>(std::get<bool>(value) ? 1 : 0));
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (const auto* list = std::get_if<std::vector<std::string>>(&value)) {
      for (const std::string& element : *list) emit(element);
    } else {
      emit(std::get<std::string>(value));
    }
  } else {
    emit(std::get<T>(value));
  }
}

std::size_t bytes_of(const std::string& text) {
  return sizeof(text) + (text.capacity() > 15 ? text.capacity() : 0);
}
template <class T>
std::size_t bytes_of(const T& value) {
  return sizeof(value);
}

// Sets the bits of rows in any order. Many are first marked in bytes, which do not wait for one
// another as the bits of one word do.
void set_rows(const std::uint16_t* rows, std::size_t n, RowBits& bits) {
  if (n < kBlockRows / 16) {
    for (std::size_t i = 0; i < n; ++i) bits.set(rows[i]);
    return;
  }
  std::array<std::uint8_t, kBlockRows> marks{};
  for (std::size_t i = 0; i < n; ++i) marks[rows[i]] = 1;
  for (std::size_t i = 0; i < kBlockRows; i += 8) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, marks.data() + i, 8);
    // Brings the lowest bit of byte j to bit j of the top byte.
    const std::uint64_t packed = eight * 0x0102040810204080u >> 56;
    bits.words[i / 64] |= packed << (i % 64);
  }
}

}  // namespace

std::uint32_t RowBits::count() const {
  std::uint32_t n = 0;
  for (const std::uint64_t word : words)
    n += static_cast<std::uint32_t>(__builtin_popcountll(word));
  return n;
}

bool RowBits::none() const {
  return std::all_of(words.begin(), words.end(), [](std::uint64_t word) { return word == 0; });
}

RowBits RowBits::first(std::uint32_t n) {
  RowBits bits;
  for (std::uint32_t i = 0; i < n / 64; ++i) bits.words[i] = ~std::uint64_t{0};
  if (n % 64 != 0) bits.words[n / 64] = (std::uint64_t{1} << (n % 64)) - 1;
  return bits;
}

RowBits& RowBits::operator&=(const RowBits& other) {
  for (std::size_t i = 0; i < words.size(); ++i) words[i] &= other.words[i];
  return *this;
}

RowBits& RowBits::operator|=(const RowBits& other) {
  for (std::size_t i = 0; i < words.size(); ++i) words[i] |= other.words[i];
  return *this;
}

RowBits& RowBits::operator-=(const RowBits& other) {
  for (std::size_t i = 0; i < words.size(); ++i) words[i] &= ~other.words[i];
  return *this;
}

template <class T>
BlockIndex::Postings<T> BlockIndex::build(const Postings<T>* before, std::uint32_t first_row,
                                          const std::vector<IndexedValues>& added,
                                          std::uint16_t field) {
  std::vector<std::pair<T, std::uint16_t>> entries;
  for (std::size_t i = 0; i < added.size(); ++i) {
    const auto row = static_cast<std::uint16_t>(first_row + i);
    for (const auto& [number, value] : added[i]) {
      if (number != field) continue;
      each_value<T>(value, [&](const T& v) { entries.emplace_back(v, row); });
    }
  }
  std::sort(entries.begin(), entries.end());
  entries.erase(std::unique(entries.begin(), entries.end()), entries.end());

  Postings<T> out;
  const std::size_t old_values = before != nullptr ? before->values.size() : 0;
  if (before != nullptr) {
    out.exists = before->exists;
    out.rows.reserve(before->rows.size() + entries.size());
  }
  std::size_t old = 0;
  std::size_t next = 0;
  while (old < old_values || next < entries.size()) {
    const bool from_old = old < old_values &&
                          (next >= entries.size() || !(entries[next].first < before->values[old]));
    const T& value = from_old ? before->values[old] : entries[next].first;
    out.values.push_back(value);
    out.begin.push_back(static_cast<std::uint32_t>(out.rows.size()));
    if (from_old) {
      out.rows.insert(out.rows.end(), before->rows.begin() + before->begin[old],
                      before->rows.begin() + before->begin[old + 1]);
      ++old;
    }
    for (; next < entries.size() && !(out.values.back() < entries[next].first); ++next) {
      out.rows.push_back(entries[next].second);
      out.exists.set(entries[next].second);
    }
  }
  out.begin.push_back(static_cast<std::uint32_t>(out.rows.size()));
  out.values.shrink_to_fit();
  out.begin.shrink_to_fit();
  out.rows.shrink_to_fit();
  return out;
}

BlockIndex::BlockIndex(const std::vector<FieldSchema>& fields, const BlockIndex* before,
                       const std::vector<IndexedValues>& added) {
  const std::uint32_t first_row = before != nullptr ? before->rows_ : 0;
  rows_ = first_row + static_cast<std::uint32_t>(added.size());
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const auto field = static_cast<std::uint16_t>(i);
    const auto build_as = [&](auto tag) -> AnyPostings {
      using T = decltype(tag);
      const auto* old = before != nullptr ? &std::get<Postings<T>>(before->fields_[i]) : nullptr;
      return build<T>(old, first_row, added, field);
    };
    switch (fields[i].type) {
      case FieldType::kBool:
        fields_.push_back(build_as(std::uint8_t{}));
        break;
      case FieldType::kInt64:
        fields_.push_back(build_as(std::int64_t{}));
        break;
      case FieldType::kDouble:
        fields_.push_back(build_as(double{}));
        break;
      case FieldType::kString:
      case FieldType::kStringList:
        fields_.push_back(build_as(std::string{}));
        break;
    }
    std::visit(
        [this](const auto& p) {
          bytes_ += sizeof p + 4 * p.begin.size() + 2 * p.rows.size();
          for (const auto& value : p.values) bytes_ += bytes_of(value);
        },
        fields_.back());
  }
}

template <class T>
void BlockIndex::select_in(const Postings<T>& postings, const FilterNode& node, RowBits& bits) {
  const auto take = [&](std::size_t at) {
    set_rows(postings.rows.data() + postings.begin[at], postings.begin[at + 1] - postings.begin[at],
             bits);
  };
  // The shorter list is walked, the longer one is searched.
  if (node.values.size() <= postings.values.size()) {
    for (const Scalar& scalar : node.values) {
      const T value = literal<T>(scalar);
      const auto at = std::lower_bound(postings.values.begin(), postings.values.end(), value);
      if (at != postings.values.end() && !(value < *at)) {
        take(static_cast<std::size_t>(at - postings.values.begin()));
      }
    }
    return;
  }
  for (std::size_t i = 0; i < postings.values.size(); ++i) {
    const auto below = [](const Scalar& scalar, const T& value) {
      return literal<T>(scalar) < value;
    };
    const auto at =
        std::lower_bound(node.values.begin(), node.values.end(), postings.values[i], below);
    if (at != node.values.end() && !(postings.values[i] < literal<T>(*at))) take(i);
  }
}

template <class T>
void BlockIndex::select_range(const Postings<T>& postings, const FilterNode& node, RowBits& bits) {
  auto low = postings.values.begin();
  auto high = postings.values.end();
  if (node.low) {
    const T bound = literal<T>(*node.low);
    low = node.with_low ? std::lower_bound(low, high, bound) : std::upper_bound(low, high, bound);
  }
  if (node.high) {
    const T bound = literal<T>(*node.high);
    high = node.with_high ? std::upper_bound(low, high, bound) : std::lower_bound(low, high, bound);
  }
  if (low >= high) return;
  const std::uint32_t first =
      postings.begin[static_cast<std::size_t>(low - postings.values.begin())];
  const std::uint32_t last =
      postings.begin[static_cast<std::size_t>(high - postings.values.begin())];
  set_rows(postings.rows.data() + first, last - first, bits);
}

RowBits BlockIndex::select(const FilterNode& node) const {
  RowBits bits;
  switch (node.op) {
    case Filter::Op::kAnd:
      bits = RowBits::first(rows_);
      for (const FilterNode& child : node.children) bits &= select(child);
      return bits;
    case Filter::Op::kOr:
      for (const FilterNode& child : node.children) bits |= select(child);
      return bits;
    case Filter::Op::kNot:
      bits = RowBits::first(rows_);
      bits -= select(node.children.front());
      return bits;
    case Filter::Op::kExists:
      return std::visit([](const auto& postings) { return postings.exists; }, fields_[node.field]);
    case Filter::Op::kEqual:
    case Filter::Op::kIn:
      std::visit([&](const auto& postings) { select_in(postings, node, bits); },
                 fields_[node.field]);
      return bits;
    case Filter::Op::kRange:
      std::visit([&](const auto& postings) { select_range(postings, node, bits); },
                 fields_[node.field]);
      return bits;
  }
  return bits;
}

}  // namespace turboquant::storage
