// A condition on metadata, as a typed tree. Built by the functions below:
//
//   FilterRange since_1990;
//   since_1990.gte = std::int64_t{1990};
//   Filter f = Filter::all_of({Filter::equal("lang", std::string("en")),
//                              Filter::range("year", since_1990)});
//
// Only fields that the collection declares (CollectionOptions::fields) can be asked about. A record
// that lacks a field satisfies no equal, one_of or range on it; negate(equal(...)) therefore
// includes it. A list field satisfies a condition when one of its elements does. Literals have the
// field's type (a string for a list field); an integer is also taken for a double field.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "turboquant/record.h"

namespace turboquant {

/// Bounds of a range; an absent one does not bind. At least one is set, at most one of gt and gte,
/// at most one of lt and lte. Strings are compared by bytes, false is below true.
struct FilterRange {
  std::optional<MetadataValue> gt;   ///< greater than
  std::optional<MetadataValue> gte;  ///< greater than or equal
  std::optional<MetadataValue> lt;   ///< less than
  std::optional<MetadataValue> lte;  ///< less than or equal
};

struct Filter {
  enum class Op : std::uint8_t { kAnd, kOr, kNot, kEqual, kIn, kRange, kExists };

  Op op = Op::kAnd;
  std::vector<Filter> children;       ///< kAnd, kOr: any number; kNot: one
  std::string field;                  ///< kEqual, kIn, kRange, kExists
  std::vector<MetadataValue> values;  ///< kEqual: one; kIn: any number
  FilterRange bounds;                 ///< kRange

  /// True for every record when empty.
  static Filter all_of(std::vector<Filter> children);
  /// False for every record when empty.
  static Filter any_of(std::vector<Filter> children);
  static Filter negate(Filter child);
  static Filter equal(std::string field, MetadataValue value);
  static Filter one_of(std::string field, std::vector<MetadataValue> values);
  static Filter range(std::string field, FilterRange bounds);
  static Filter exists(std::string field);
};

/// Limits of one filter; beyond them it is refused (BAD_FILTER).
inline constexpr std::size_t kMaxFilterDepth = 16;
inline constexpr std::size_t kMaxFilterNodes = 1024;
inline constexpr std::size_t kMaxFilterValues = 65536;  ///< literals, over all nodes

}  // namespace turboquant
