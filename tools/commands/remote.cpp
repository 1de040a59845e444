#include "tools/commands/remote.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tools/io/atomic_file.h"
#include "tools/io/errors.h"
#include "tools/io/interrupt.h"
#include "tools/io/text_lines.h"
#include "tools/io/vector_file.h"
#include "tools/io/vector_writer.h"

namespace turboquant::tools {
namespace {

using nlohmann::json;

constexpr std::size_t kQueryBatch = 64;
constexpr std::size_t kPage = 1000;

const char* metric_name(DistanceMetric metric) {
  constexpr std::array<const char*, 3> kNames = {"ip", "cosine", "l2"};
  return kNames[static_cast<std::size_t>(metric)];
}

const char* originals_name(Originals originals) {
  constexpr std::array<const char*, 3> kNames = {"none", "fp16", "fp32"};
  return kNames[static_cast<std::size_t>(originals)];
}

json id_json(const RecordId& id) {
  if (const auto* number = std::get_if<std::uint64_t>(&id)) return *number;
  return std::get<std::string>(id);
}

json metadata_json(const Metadata& metadata) {
  json object = json::object();
  for (const auto& [name, value] : metadata) {
    std::visit([&object, key = name](const auto& v) { object[key] = v; }, value);
  }
  return object;
}

// Bytes that are no UTF-8 are replaced.
std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

[[noreturn]] void bad_filter(const std::string& what) { throw io::UsageError("--filter: " + what); }

MetadataValue literal(const json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number()) return value.get<double>();
  if (value.is_string()) return value.get<std::string>();
  bad_filter("a value is not a truth value, a number or a string: " + value.dump());
}

// {"field": argument}
std::pair<std::string, json> only_member(const json& object) {
  if (!object.is_object() || object.size() != 1) {
    bad_filter("an object with one member is expected: " + object.dump());
  }
  return {object.begin().key(), object.begin().value()};
}

Filter filter_from_json(const json& object);

std::vector<Filter> filters_from_json(const json& list) {
  if (!list.is_array()) bad_filter("a list is expected: " + list.dump());
  std::vector<Filter> filters;
  for (const json& one : list) filters.push_back(filter_from_json(one));
  return filters;
}

Filter range_from_json(const std::string& field, const json& bounds) {
  FilterRange range;
  if (!bounds.is_object()) bad_filter("bounds are expected: " + bounds.dump());
  for (const auto& [name, value] : bounds.items()) {
    if (name == "gt") {
      range.gt = literal(value);
    } else if (name == "gte") {
      range.gte = literal(value);
    } else if (name == "lt") {
      range.lt = literal(value);
    } else if (name == "lte") {
      range.lte = literal(value);
    } else {
      bad_filter("a bound is gt, gte, lt or lte, not " + name);
    }
  }
  return Filter::range(field, range);
}

Filter filter_from_json(const json& object) {
  const auto [op, argument] = only_member(object);
  if (op == "all_of") return Filter::all_of(filters_from_json(argument));
  if (op == "any_of") return Filter::any_of(filters_from_json(argument));
  if (op == "not") return Filter::negate(filter_from_json(argument));
  if (op == "exists") {
    if (!argument.is_string()) bad_filter("exists takes the name of a field");
    return Filter::exists(argument.get<std::string>());
  }
  if (op != "equal" && op != "one_of" && op != "range") bad_filter("unknown condition " + op);
  const auto [field, value] = only_member(argument);
  if (op == "equal") return Filter::equal(field, literal(value));
  if (op == "range") return range_from_json(field, value);
  if (!value.is_array()) bad_filter("one_of takes a list");
  std::vector<MetadataValue> values;
  for (const json& one : value) values.push_back(literal(one));
  return Filter::one_of(field, std::move(values));
}

void print_hits(const Hits& hits, const QueryOptions& options, std::ostream& out) {
  for (std::size_t rank = 0; rank < hits.size(); ++rank) {
    const Hit& hit = hits[rank];
    std::array<char, 64> line{};
    std::snprintf(line.data(), line.size(), "  %3zu  %9.4f  ", rank + 1, double{hit.score});
    out << line.data() << id_text(hit.id);
    const auto text = hit.metadata.find(options.text_field);
    if (text != hit.metadata.end() && std::holds_alternative<std::string>(text->second)) {
      out << "  " << std::get<std::string>(text->second);
    } else if (options.text_field.empty() && !hit.metadata.empty()) {
      out << "  " << metadata_text(hit.metadata);
    }
    out << "\n";
  }
  out << "\n";
}

void print_hits_json(std::uint64_t query, const Hits& hits, std::ostream& out) {
  json line = {{"query", query}, {"hits", json::array()}};
  for (const Hit& hit : hits) {
    line["hits"].push_back(
        {{"id", id_json(hit.id)}, {"score", hit.score}, {"metadata", metadata_json(hit.metadata)}});
  }
  out << dump(line) << "\n";
}

}  // namespace

std::unique_ptr<Client> connect(const ServerAddress& server) {
  ClientOptions options;
  options.address = server.address;
  if (!server.token_file.empty()) {
    std::ifstream file(server.token_file);
    if (!std::getline(file, options.token)) {
      throw io::IoError(server.token_file + ": cannot read a token");
    }
  } else if (const char* token = std::getenv("TURBOQUANT_TOKEN")) {
    options.token = token;
  }
  options.tls = server.tls || !server.ca_file.empty();
  options.ca_file = server.ca_file;
  options.certificate_file = server.certificate_file;
  options.key_file = server.key_file;
  options.server_name = server.server_name;
  return std::make_unique<Client>(options);
}

void throw_status(const absl::Status& status) {
  const std::string reason = error_reason(status);
  const std::string message = "server: " + std::string(status.message()) +
                              (reason.empty() ? std::string() : " (" + reason + ")");
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      throw io::UsageError(message);
    case absl::StatusCode::kDataLoss:
      throw io::DataError(message);
    default:
      throw io::IoError(message);
  }
}

CollectionOptions collection_options(const NewCollection& typed) {
  CollectionOptions options;
  options.dimension = typed.dimension;
  options.factory = typed.factory;
  options.metric = typed.metric == "l2"       ? DistanceMetric::kL2
                   : typed.metric == "cosine" ? DistanceMetric::kCosine
                                              : DistanceMetric::kInnerProduct;
  options.originals = typed.originals == "fp16"   ? Originals::kFp16
                      : typed.originals == "fp32" ? Originals::kFp32
                                                  : Originals::kNone;
  options.pack_codes = typed.pack;
  const std::array<std::string, 5> types = {"bool", "int", "double", "string", "list"};
  for (const std::string& field : typed.fields) {
    const std::size_t colon = field.rfind(':');
    const std::string type = colon == std::string::npos ? "" : field.substr(colon + 1);
    const auto found = std::find(types.begin(), types.end(), type);
    if (found == types.end()) {
      throw io::UsageError("--field " + field +
                           ": give name:type, with a type of bool, int, double, string, list");
    }
    options.fields.push_back(
        {field.substr(0, colon), static_cast<FieldType>(found - types.begin())});
  }
  return options;
}

Filter parse_filter(const std::string& text) {
  const json object = json::parse(text, nullptr, false);
  if (object.is_discarded()) bad_filter("this is no JSON: " + text);
  return filter_from_json(object);
}

std::string id_text(const RecordId& id) {
  if (const auto* number = std::get_if<std::uint64_t>(&id)) return std::to_string(*number);
  return std::get<std::string>(id);
}

std::string metadata_text(const Metadata& metadata) { return dump(metadata_json(metadata)); }

void print_collections(Client& client, bool as_json, std::ostream& out) {
  for (const CollectionInfo& info : value_or_throw(client.collections())) {
    if (as_json) {
      json fields = json::object();
      for (const FieldSchema& field : info.options.fields) {
        fields[field.name] = static_cast<int>(field.type);
      }
      out << dump({{"name", info.name},
                   {"records", info.records},
                   {"dimension", info.options.dimension},
                   {"metric", metric_name(info.options.metric)},
                   {"factory", info.options.factory},
                   {"originals", originals_name(info.options.originals)},
                   {"packed", info.options.pack_codes},
                   {"code_bytes", info.code_bytes},
                   {"block_bytes", info.block_bytes},
                   {"memory_bytes", info.memory_bytes},
                   {"dead_rows", info.dead_rows},
                   {"fields", fields}})
          << "\n";
    } else {
      out << info.name << ": " << info.records << " records of dimension " << info.options.dimension
          << ", " << info.options.factory << ", " << metric_name(info.options.metric)
          << ", originals " << originals_name(info.options.originals)
          << (info.options.pack_codes ? ", packed on disk, " : ", ") << info.memory_bytes
          << " bytes in memory\n";
    }
  }
  for (const Alias& alias : value_or_throw(client.aliases())) {
    if (!as_json) out << alias.alias << " -> " << alias.collection << "\n";
  }
}

void print_snapshots(Client& client, bool as_json, std::ostream& out) {
  for (const SnapshotInfo& snapshot : value_or_throw(client.snapshots())) {
    const std::string created =
        absl::FormatTime(absl::RFC3339_sec, snapshot.created, absl::UTCTimeZone());
    if (as_json) {
      out << dump({{"name", snapshot.name}, {"created", created}, {"bytes", snapshot.bytes}})
          << "\n";
    } else {
      out << snapshot.name << "  " << created << "  " << snapshot.bytes << " bytes\n";
    }
  }
}

void query_server(Client& client, const QueryOptions& options, std::ostream& out) {
  const auto queries = io::open_vectors(options.queries, std::nullopt, io::kTestDataset);
  std::unique_ptr<io::TextLines> text;
  if (!options.query_text.empty()) text = std::make_unique<io::TextLines>(options.query_text);
  turboquant::SearchOptions search;
  search.k = options.k;
  search.parts.metadata = true;
  search.rescore = options.rescore;
  search.exact = options.exact;
  if (!options.filter.empty()) search.filter = parse_filter(options.filter);
  const std::uint64_t total = std::min(options.limit.value_or(queries->rows()), queries->rows());
  std::vector<float> x(kQueryBatch * queries->dimension());
  for (std::uint64_t done = 0; done < total;) {
    io::check_interrupt();
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(kQueryBatch, total - done));
    io::read_finite(*queries, done, n, x.data());
    const auto found = value_or_throw(client.search(
        options.collection, absl::MakeConstSpan(x.data(), n * queries->dimension()), search));
    for (std::size_t i = 0; i < n; ++i) {
      if (options.json) {
        print_hits_json(done + i, found[i], out);
        continue;
      }
      out << "query " << done + i;
      if (text && done + i < text->size()) {
        out << ": " << text->line(static_cast<std::size_t>(done + i));
      }
      out << "\n";
      print_hits(found[i], options, out);
    }
    done += n;
  }
}

std::uint64_t export_collection(Client& client, const ExportOptions& options, Progress& progress) {
  const CollectionInfo info = value_or_throw(client.collection(options.collection));
  std::optional<Filter> filter;
  if (!options.filter.empty()) filter = parse_filter(options.filter);
  const std::uint64_t total = value_or_throw(client.count(options.collection, filter));
  const io::Format format = io::guess_format(options.output);
  io::VectorWriter vectors(options.output, format, io::element_for(format, io::Element::kF4), total,
                           info.options.dimension);
  std::unique_ptr<io::AtomicFile> ids;
  std::unique_ptr<io::AtomicFile> metadata;
  if (!options.ids.empty()) ids = std::make_unique<io::AtomicFile>(options.ids);
  if (!options.metadata.empty()) metadata = std::make_unique<io::AtomicFile>(options.metadata);
  ScrollOptions scroll;
  scroll.limit = kPage;
  scroll.filter = filter;
  scroll.parts = {true, true};
  std::uint64_t done = 0;
  progress.begin("export", total);
  do {
    io::check_interrupt();
    const ScrollPage page = value_or_throw(client.scroll(options.collection, scroll));
    for (const Record& record : page.records) {
      if (++done > total) break;
      vectors.append(record.vector.data(), 1);
      const std::string id_line = dump(id_json(record.id)) + "\n";
      const std::string metadata_line = metadata_text(record.metadata) + "\n";
      if (ids) ids->write(id_line.data(), id_line.size());
      if (metadata) metadata->write(metadata_line.data(), metadata_line.size());
    }
    progress.update(std::min(done, total));
    scroll.cursor = page.cursor;
  } while (!scroll.cursor.empty() && done <= total);
  if (done != total) {
    throw io::DataError(options.collection +
                        ": records were added or removed during the export; "
                        "export again, or stop the writers");
  }
  vectors.commit();
  if (ids) ids->commit();
  if (metadata) metadata->commit();
  progress.end();
  return total;
}

}  // namespace turboquant::tools
