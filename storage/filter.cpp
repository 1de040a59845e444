#include "turboquant/filter.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>

#include "storage/compiled_filter.h"
#include "storage/errors.h"

namespace turboquant {

Filter Filter::all_of(std::vector<Filter> children) {
  Filter filter;
  filter.op = Op::kAnd;
  filter.children = std::move(children);
  return filter;
}

Filter Filter::any_of(std::vector<Filter> children) {
  Filter filter;
  filter.op = Op::kOr;
  filter.children = std::move(children);
  return filter;
}

Filter Filter::negate(Filter child) {
  Filter filter;
  filter.op = Op::kNot;
  filter.children.push_back(std::move(child));
  return filter;
}

Filter Filter::equal(std::string field, MetadataValue value) {
  Filter filter;
  filter.op = Op::kEqual;
  filter.field = std::move(field);
  filter.values.push_back(std::move(value));
  return filter;
}

Filter Filter::one_of(std::string field, std::vector<MetadataValue> values) {
  Filter filter;
  filter.op = Op::kIn;
  filter.field = std::move(field);
  filter.values = std::move(values);
  return filter;
}

Filter Filter::range(std::string field, FilterRange bounds) {
  Filter filter;
  filter.op = Op::kRange;
  filter.field = std::move(field);
  filter.bounds = std::move(bounds);
  return filter;
}

Filter Filter::exists(std::string field) {
  Filter filter;
  filter.op = Op::kExists;
  filter.field = std::move(field);
  return filter;
}

namespace storage {
namespace {

const char* type_name(FieldType type) {
  switch (type) {
    case FieldType::kBool:
      return "a bool";
    case FieldType::kInt64:
      return "an integer";
    case FieldType::kDouble:
      return "a double";
    case FieldType::kString:
      return "a string";
    case FieldType::kStringList:
      return "a list of strings";
  }
  return "unknown";
}

absl::Status bad(const std::string& sentence) { return invalid("BAD_FILTER", sentence); }

class Compiler {
 public:
  explicit Compiler(const std::vector<FieldSchema>& fields) : fields_(fields) {}

  absl::Status compile(const Filter& filter, std::size_t depth, FilterNode& node) {
    if (depth > kMaxFilterDepth) {
      return bad(absl::StrCat("the filter is deeper than ", kMaxFilterDepth, " levels"));
    }
    if (++nodes_ > kMaxFilterNodes) {
      return bad(absl::StrCat("the filter has more than ", kMaxFilterNodes, " conditions"));
    }
    node.op = filter.op;
    switch (filter.op) {
      case Filter::Op::kAnd:
      case Filter::Op::kOr:
      case Filter::Op::kNot:
        return compile_children(filter, depth, node);
      case Filter::Op::kEqual:
      case Filter::Op::kIn:
      case Filter::Op::kRange:
      case Filter::Op::kExists:
        return compile_condition(filter, node);
    }
    return bad("unknown condition");
  }

 private:
  absl::Status compile_children(const Filter& filter, std::size_t depth, FilterNode& node) {
    if (filter.op == Filter::Op::kNot && filter.children.size() != 1) {
      return bad("a negation takes one condition");
    }
    for (const Filter& child : filter.children) {
      TQ_RETURN_IF_ERROR(compile(child, depth + 1, node.children.emplace_back()));
    }
    return absl::OkStatus();
  }

  absl::Status compile_condition(const Filter& filter, FilterNode& node) {
    const auto field = find_field(fields_, filter.field);
    if (!field.has_value()) {
      return make_error(
          absl::StatusCode::kFailedPrecondition, "FIELD_NOT_INDEXED",
          absl::StrCat("field \"", filter.field,
                       "\" cannot be filtered by: declare it when the collection is created"));
    }
    node.field = *field;
    if (filter.op == Filter::Op::kExists) return absl::OkStatus();
    if (filter.op == Filter::Op::kRange) return compile_range(filter, node);
    if (filter.op == Filter::Op::kEqual && filter.values.size() != 1) {
      return bad("an equality takes one value");
    }
    for (const MetadataValue& value : filter.values) {
      TQ_RETURN_IF_ERROR(literal(filter, value, node.values.emplace_back()));
    }
    std::sort(node.values.begin(), node.values.end());
    node.values.erase(std::unique(node.values.begin(), node.values.end()), node.values.end());
    return absl::OkStatus();
  }

  absl::Status compile_range(const Filter& filter, FilterNode& node) {
    const FilterRange& b = filter.bounds;
    if ((b.gt && b.gte) || (b.lt && b.lte)) {
      return bad(absl::StrCat("the range of field \"", filter.field,
                              "\" has two bounds on the same side"));
    }
    if (!b.gt && !b.gte && !b.lt && !b.lte) {
      return bad(absl::StrCat("the range of field \"", filter.field, "\" has no bound"));
    }
    if (b.gt || b.gte) {
      node.with_low = b.gte.has_value();
      TQ_RETURN_IF_ERROR(literal(filter, b.gte ? *b.gte : *b.gt, node.low.emplace()));
    }
    if (b.lt || b.lte) {
      node.with_high = b.lte.has_value();
      TQ_RETURN_IF_ERROR(literal(filter, b.lte ? *b.lte : *b.lt, node.high.emplace()));
    }
    return absl::OkStatus();
  }

  absl::Status literal(const Filter& filter, const MetadataValue& value, Scalar& scalar) {
    if (++values_ > kMaxFilterValues) {
      return bad(absl::StrCat("the filter has more than ", kMaxFilterValues, " values"));
    }
    const FieldSchema& field = fields_[*find_field(fields_, filter.field)];
    const FieldType wanted = field.type == FieldType::kStringList ? FieldType::kString : field.type;
    const auto given = static_cast<FieldType>(value.index());
    if (wanted == FieldType::kDouble && given == FieldType::kInt64) {
      scalar = static_cast<double>(std::get<std::int64_t>(value));
      return absl::OkStatus();
    }
    if (given != wanted) {
      return bad(absl::StrCat("field \"", field.name, "\" is compared with ", type_name(wanted),
                              ", not ", type_name(given)));
    }
    if (given == FieldType::kDouble && !std::isfinite(std::get<double>(value))) {
      return bad(absl::StrCat("field \"", field.name, "\" is compared with NaN or infinity"));
    }
    if (given == FieldType::kString && std::get<std::string>(value).size() > kMaxIndexedBytes) {
      return bad(absl::StrCat("field \"", field.name, "\" is compared with a string of more than ",
                              kMaxIndexedBytes, " bytes"));
    }
    std::visit(
        [&](const auto& v) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(v)>, std::vector<std::string>>) {
            scalar = v;
          }
        },
        value);
    return absl::OkStatus();
  }

  const std::vector<FieldSchema>& fields_;
  std::size_t nodes_ = 0;
  std::size_t values_ = 0;
};

bool in_range(const FilterNode& node, const Scalar& value) {
  if (node.low && (node.with_low ? value < *node.low : !(*node.low < value))) return false;
  return !node.high || (node.with_high ? !(*node.high < value) : value < *node.high);
}

bool satisfies(const FilterNode& node, const Scalar& value) {
  if (node.op == Filter::Op::kRange) return in_range(node, value);
  return std::binary_search(node.values.begin(), node.values.end(), value);
}

bool condition_holds(const FilterNode& node, const IndexedValues& values) {
  for (const auto& [field, value] : values) {
    if (field != node.field) continue;
    if (node.op == Filter::Op::kExists) return true;
    if (const auto* list = std::get_if<std::vector<std::string>>(&value)) {
      return std::any_of(list->begin(), list->end(), [&](const std::string& element) {
        return satisfies(node, Scalar(element));
      });
    }
    Scalar scalar;
    std::visit(
        [&](const auto& v) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(v)>, std::vector<std::string>>) {
            scalar = v;
          }
        },
        value);
    return satisfies(node, scalar);
  }
  return false;
}

void put_filter(std::string& out, const Filter& filter) {
  const auto put_values = [&out](const std::vector<MetadataValue>& values) {
    IndexedValues numbered;
    for (const MetadataValue& value : values) numbered.emplace_back(std::uint16_t{0}, value);
    put(out, static_cast<std::uint64_t>(values.size()));
    out += encode_indexed(numbered);
  };
  put(out, static_cast<std::uint8_t>(filter.op));
  put_string<std::uint32_t>(out, filter.field);
  put_values(filter.values);
  for (const auto* bound :
       {&filter.bounds.gt, &filter.bounds.gte, &filter.bounds.lt, &filter.bounds.lte}) {
    put_values(bound->has_value() ? std::vector<MetadataValue>{**bound}
                                  : std::vector<MetadataValue>{});
  }
  put(out, static_cast<std::uint64_t>(filter.children.size()));
  for (const Filter& child : filter.children) put_filter(out, child);
}

}  // namespace

std::optional<std::uint16_t> find_field(const std::vector<FieldSchema>& fields,
                                        const std::string& name) {
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (fields[i].name == name) return static_cast<std::uint16_t>(i);
  }
  return std::nullopt;
}

absl::StatusOr<FilterNode> compile_filter(const Filter& filter,
                                          const std::vector<FieldSchema>& fields) {
  FilterNode root;
  TQ_RETURN_IF_ERROR(Compiler(fields).compile(filter, 1, root));
  return root;
}

bool matches(const FilterNode& node, const IndexedValues& values) {
  const auto holds = [&](const FilterNode& child) { return matches(child, values); };
  switch (node.op) {
    case Filter::Op::kAnd:
      return std::all_of(node.children.begin(), node.children.end(), holds);
    case Filter::Op::kOr:
      return std::any_of(node.children.begin(), node.children.end(), holds);
    case Filter::Op::kNot:
      return !holds(node.children.front());
    default:
      return condition_holds(node, values);
  }
}

std::string filter_bytes(const Filter& filter) {
  std::string out;
  put_filter(out, filter);
  return out;
}

}  // namespace storage
}  // namespace turboquant
