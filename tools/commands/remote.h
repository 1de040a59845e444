// Commands that talk to a running turboquant-server: collections, snapshot, query, export.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "tools/commands/progress.h"
#include "turboquant/client.h"

namespace turboquant::tools {

/// Where the server is, as typed.
struct ServerAddress {
  std::string address = "127.0.0.1:7443";
  std::string token_file;  ///< its first line is the token; empty: TURBOQUANT_TOKEN, or none
  bool tls = false;
  std::string ca_file;
  std::string certificate_file;
  std::string key_file;
  std::string server_name;
};

std::unique_ptr<Client> connect(const ServerAddress& server);

/// The error as one of the exceptions of io/errors.h, with the server's reason.
[[noreturn]] void throw_status(const absl::Status& status);

template <class T>
T value_or_throw(absl::StatusOr<T> result) {
  if (!result.ok()) throw_status(result.status());
  return *std::move(result);
}
inline void ok_or_throw(const absl::Status& status) {
  if (!status.ok()) throw_status(status);
}

/// A new collection, as typed.
struct NewCollection {
  std::size_t dimension = 0;
  std::string metric = "ip";
  std::string factory = "TQ4";
  std::string originals = "none";
  bool pack = false;                ///< codes at their entropy on disk
  std::vector<std::string> fields;  ///< "name:type"; bool, int, double, string, list
};

/// Throws io::UsageError.
CollectionOptions collection_options(const NewCollection& typed);

/// A filter as JSON: {"all_of": [F...]}, {"any_of": [F...]}, {"not": F}, {"equal": {"lang": "en"}},
/// {"one_of": {"lang": ["en", "de"]}}, {"range": {"year": {"gte": 1990, "lt": 2000}}},
/// {"exists": "year"}. Throws io::UsageError.
Filter parse_filter(const std::string& text);

std::string id_text(const RecordId& id);
/// One line of JSON.
std::string metadata_text(const Metadata& metadata);

void print_collections(Client& client, bool json, std::ostream& out);
void print_snapshots(Client& client, bool json, std::ostream& out);

struct QueryOptions {
  std::string collection;
  std::string queries;
  std::string query_text;  ///< line i describes query i
  std::string filter;      ///< JSON
  std::size_t k = 10;
  std::optional<std::uint64_t> limit;
  std::string text_field;  ///< print this field of the metadata; empty: all of it
  bool rescore = false;
  bool exact = false;
  bool json = false;  ///< a line of JSON per query instead of a table
};
void query_server(Client& client, const QueryOptions& options, std::ostream& out);

struct ExportOptions {
  std::string collection;
  std::string output;    ///< vectors, [records][dimension], in the order of ids
  std::string ids;       ///< a line per record: the id as JSON; empty: not written
  std::string metadata;  ///< a line of JSON per record; empty: not written
  std::string filter;
};
/// Records written. Throws io::DataError when records were added or removed meanwhile.
std::uint64_t export_collection(Client& client, const ExportOptions& options, Progress& progress);

}  // namespace turboquant::tools
