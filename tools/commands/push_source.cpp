#include "tools/commands/push_source.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tools/io/errors.h"
#include "tools/io/ids_file.h"

namespace turboquant::tools {

using nlohmann::json;

// Lines of a file, one after the other; zlib takes plain files as they are.
class JsonLines {
 public:
  explicit JsonLines(const std::string& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    if (file_ == nullptr) throw io::IoError(path + ": cannot open");
    gzbuffer(file_, 1U << 18);
  }
  ~JsonLines() { gzclose(file_); }
  JsonLines(const JsonLines&) = delete;
  JsonLines& operator=(const JsonLines&) = delete;

  /// Line `row`, at or after the last one that was read.
  std::string line(std::uint64_t row) {
    std::string text;
    while (next_ <= row) {
      if (!read_line(text)) {
        throw io::DataError(path_ + ": ends after " + std::to_string(next_) +
                            " lines, before that of row " + std::to_string(row));
      }
      ++next_;
    }
    return text;
  }

 private:
  bool read_line(std::string& text) {
    text.clear();
    for (int c = 0; (c = gzgetc(file_)) != -1;) {  // a line may hold any byte, zero too
      if (c == '\n') return true;
      text.push_back(static_cast<char>(c));
    }
    int error = 0;
    const char* const what = gzerror(file_, &error);
    if (error != Z_OK && error != Z_STREAM_END) {
      throw io::DataError(path_ + ": after line " + std::to_string(next_) + ": " + what);
    }
    return !text.empty();
  }

  const std::string path_;
  const gzFile file_;
  std::uint64_t next_ = 0;
};

namespace {

// Why a row is left out.
struct Unfit {
  std::string reason;
};

MetadataValue value_from_json(const std::string& name, const json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) {
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX) {
      throw Unfit{"field \"" + name + "\" does not fit in 64 bits with a sign"};
    }
    return value.get<std::int64_t>();
  }
  if (value.is_number()) return value.get<double>();
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array() &&
      std::all_of(value.begin(), value.end(), [](const json& one) { return one.is_string(); })) {
    return value.get<std::vector<std::string>>();
  }
  throw Unfit{"field \"" + name + "\" is not a truth value, number, string or list of strings"};
}

Metadata metadata_from_json(const std::string& line) {
  const json object = json::parse(line, nullptr, false);
  if (!object.is_object()) throw Unfit{"its metadata is no JSON object"};
  Metadata metadata;
  for (const auto& [name, value] : object.items()) {
    if (!value.is_null()) metadata.emplace(name, value_from_json(name, value));
  }
  return metadata;
}

// Integers also fill fields of doubles, which JSON does not tell apart.
void fit_to_schema(const CollectionOptions& collection, Metadata& metadata) {
  for (const FieldSchema& field : collection.fields) {
    const auto found = metadata.find(field.name);
    if (found == metadata.end()) continue;
    MetadataValue& value = found->second;
    if (field.type == FieldType::kDouble && std::holds_alternative<std::int64_t>(value)) {
      value = static_cast<double>(std::get<std::int64_t>(value));
    }
    if (value.index() != static_cast<std::size_t>(field.type)) {
      throw Unfit{"field \"" + field.name + "\" has another type than the collection declares"};
    }
  }
}

void check_vector(const float* x, std::size_t dimension, DistanceMetric metric) {
  bool zero = true;
  for (std::size_t i = 0; i < dimension; ++i) {
    if (!std::isfinite(x[i])) throw Unfit{"its vector holds NaN or infinity"};
    zero = zero && x[i] == 0;
  }
  if (zero && metric == DistanceMetric::kCosine) throw Unfit{"its vector is all zero"};
}

}  // namespace

PushSource::PushSource(const PushInput& input)
    : input_(input),
      vectors_(io::open_vectors(input.vectors, input.format,
                                input.dataset.empty() ? io::kTrainDataset : input.dataset)) {
  const auto same_rows = [this](const std::string& path, std::uint64_t rows) {
    if (rows == vectors_->rows()) return;
    throw io::DataError(path + ": has " + std::to_string(rows) + " rows, " + input_.vectors +
                        " has " + std::to_string(vectors_->rows()));
  };
  if (!input.ids.empty()) {
    ids_ = io::read_ids(input.ids);
    same_rows(input.ids, ids_.size());
  }
  if (!input.names.empty()) {
    names_ = std::make_unique<io::TextLines>(input.names);
    same_rows(input.names, names_->size());
  }
  if (!input.text.empty()) {
    text_ = std::make_unique<io::TextLines>(input.text);
    same_rows(input.text, text_->size());
  }
  if (!input.metadata.empty()) metadata_ = std::make_unique<JsonLines>(input.metadata);
  if (!input.id_field.empty() && !metadata_) {
    throw io::UsageError("--id-field needs --metadata");
  }
}

PushSource::~PushSource() = default;

PushBatch PushSource::read(std::uint64_t first, std::size_t n,
                           const CollectionOptions& collection) {
  PushBatch batch;
  std::vector<float> x(n * dimension());
  vectors_->read(first, n, x.data());
  batch.vectors.reserve(x.size());
  for (std::size_t i = 0; i < n; ++i) {
    try {
      read_row(first + i, x.data() + i * dimension(), collection, batch);
    } catch (const Unfit& unfit) {
      batch.bad.push_back({first + i, unfit.reason});
    }
  }
  return batch;
}

void PushSource::read_row(std::uint64_t row, const float* x, const CollectionOptions& collection,
                          PushBatch& batch) {
  Metadata metadata;
  if (metadata_) metadata = metadata_from_json(metadata_->line(row));
  check_vector(x, dimension(), collection.metric);
  RecordId id = id_of(row, metadata);
  if (text_) metadata[input_.text_field] = text_->line(static_cast<std::size_t>(row));
  fit_to_schema(collection, metadata);
  batch.ids.push_back(std::move(id));
  batch.vectors.insert(batch.vectors.end(), x, x + dimension());
  if (metadata_ || text_) batch.metadata.push_back(std::move(metadata));
}

RecordId PushSource::id_of(std::uint64_t row, Metadata& metadata) const {
  const auto named = [](std::string name) -> RecordId {
    if (name.empty() || name.size() > kMaxIdBytes) {
      throw Unfit{"its id is empty or longer than " + std::to_string(kMaxIdBytes) + " bytes"};
    }
    return name;
  };
  if (!input_.id_field.empty()) {
    const auto found = metadata.find(input_.id_field);
    if (found == metadata.end()) throw Unfit{"it has no field \"" + input_.id_field + "\""};
    const MetadataValue value = std::move(found->second);
    metadata.erase(found);
    if (const auto* number = std::get_if<std::int64_t>(&value)) {
      if (*number < 0) throw Unfit{"its id is negative"};
      return static_cast<std::uint64_t>(*number);
    }
    if (const auto* name = std::get_if<std::string>(&value)) return named(*name);
    throw Unfit{"its id is neither a whole number nor a string"};
  }
  if (names_) return named(names_->line(static_cast<std::size_t>(row)));
  if (ids_.empty()) return row;
  const std::int64_t id = ids_[static_cast<std::size_t>(row)];
  if (id < 0) throw Unfit{"its id is negative"};
  return static_cast<std::uint64_t>(id);
}

}  // namespace turboquant::tools
