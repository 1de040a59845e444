// A filter checked against the fields of a collection and made ready for evaluation.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "storage/records.h"
#include "turboquant/filter.h"

namespace turboquant::storage {

/// A literal of the field's type (strings for lists), or a bound of a range.
using Scalar = std::variant<bool, std::int64_t, double, std::string>;

struct FilterNode {
  Filter::Op op = Filter::Op::kAnd;
  std::vector<FilterNode> children;
  std::uint16_t field = 0;          ///< position among the collection's fields
  std::vector<Scalar> values;       ///< kEqual, kIn: ascending, different
  std::optional<Scalar> low, high;  ///< kRange
  bool with_low = false;            ///< the bound itself belongs to the range
  bool with_high = false;
};

/// INVALID_ARGUMENT (BAD_FILTER) or FAILED_PRECONDITION (FIELD_NOT_INDEXED) with a sentence.
absl::StatusOr<FilterNode> compile_filter(const Filter& filter,
                                          const std::vector<FieldSchema>& fields);

/// Whether a record with these indexed values satisfies the filter.
bool matches(const FilterNode& node, const IndexedValues& values);

/// The filter as bytes, equal for equal filters.
std::string filter_bytes(const Filter& filter);

/// The position of a field, or nothing.
std::optional<std::uint16_t> find_field(const std::vector<FieldSchema>& fields,
                                        const std::string& name);

}  // namespace turboquant::storage
