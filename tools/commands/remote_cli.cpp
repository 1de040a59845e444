#include "tools/commands/remote_cli.h"

#include <CLI/CLI.hpp>
#include <utility>

#include "tools/commands/push.h"
#include "tools/commands/remote.h"
#include "tools/io/errors.h"

namespace turboquant::tools {

struct RemoteCommands::Parts {
  Parts(CLI::App& root, Host given) : app(root), host(std::move(given)) {}

  CLI::App* command(CLI::App& parent, const std::string& word, const std::string& description,
                    std::function<void()> work) {
    CLI::App* const sub = parent.add_subcommand(word, description);
    if (work) host.on_command(sub, std::move(work));
    return sub;
  }

  void add_server(CLI::App* sub) {
    sub->add_option("--server", server.address, "host:port or unix:PATH")
        ->envname("TURBOQUANT_SERVER")
        ->capture_default_str();
    sub->add_option("--token-file", server.token_file,
                    "file with the token (default: the variable TURBOQUANT_TOKEN)");
    sub->add_flag("--tls", server.tls, "connect with TLS");
    sub->add_option("--ca", server.ca_file, "PEM of the authority that signed the server's key");
    sub->add_option("--cert", server.certificate_file, "PEM to show to the server");
    sub->add_option("--key", server.key_file, "PEM key of --cert");
    sub->add_option("--server-name", server.server_name, "name in the server's certificate");
  }

  void add_new_collection(CLI::App* sub) {
    sub->add_option("--factory", made.factory, "TQ1 to TQ4, and t, qjl, qjlg or mse")
        ->capture_default_str();
    sub->add_option("--metric", made.metric, "ip, cosine or l2")
        ->check(CLI::IsMember({"ip", "cosine", "l2"}))
        ->capture_default_str();
    sub->add_option("--originals", made.originals, "keep vectors: none, fp16 or fp32")
        ->check(CLI::IsMember({"none", "fp16", "fp32"}))
        ->capture_default_str();
    sub->add_flag("--pack", made.pack, "codes on disk at their entropy: fewer bytes, slower start");
    sub->add_option("--field", made.fields, "name:type of a field to filter by; repeat it");
  }

  void add_push() {
    CLI::App* const sub =
        command(app, "push", "vectors into a collection of a server", [this] { run_push(); });
    sub->add_option("-i,--input", pushed.input.vectors, "vectors")->required();
    sub->add_option("-c,--collection", pushed.collection, "its name")->required();
    sub->add_option("--dataset", pushed.input.dataset, "of an HDF5 input (default: train)");
    sub->add_option("--ids", pushed.input.ids, "one number a row: .npy, .ibin or text lines");
    sub->add_option("--names", pushed.input.names, "text with a line a row: names as ids");
    sub->add_option("--text", pushed.input.text, "text with a line a row, stored as metadata");
    sub->add_option("--text-field", pushed.input.text_field, "field of --text")
        ->capture_default_str();
    sub->add_option("--metadata", pushed.input.metadata,
                    "JSON lines, an object a row; may be compressed by gzip");
    sub->add_option("--id-field", pushed.input.id_field, "member of --metadata that is the id");
    sub->add_flag("--create", create, "make the collection when it is not there");
    add_new_collection(sub);
    sub->add_option("--batch-rows", pushed.batch_rows, "rows of a write")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    sub->add_flag("--insert", pushed.insert, "refuse ids that exist, instead of replacing");
    sub->add_option("--durability", pushed.durability, "memory, wal or fsync")
        ->check(CLI::IsMember({"memory", "wal", "fsync"}))
        ->capture_default_str();
    sub->add_flag("--resume", pushed.resume, "go on with a push that was ended");
    sub->add_option("--manifest", pushed.manifest,
                    "what was done so far (default: beside the input)");
    sub->add_flag("--dry-run", pushed.dry_run, "check the input, write nothing");
    sub->add_option("--on-bad-row", on_bad_row, "fail, skip or quarantine (write them to a file)")
        ->check(CLI::IsMember({"fail", "skip", "quarantine"}))
        ->capture_default_str();
    sub->add_option("--data-dir", pushed.data_dir, "write into this store, without a server");
    add_server(sub);
    host.add_common(sub);
  }

  void add_query() {
    CLI::App* const sub = command(app, "query", "neighbours of every query, from a server",
                                  [this] { query_server(*connect(server), queried, *host.out); });
    sub->add_option("-c,--collection", queried.collection, "its name or alias")->required();
    sub->add_option("--queries", queried.queries, "vectors")->required();
    sub->add_option("-k", queried.k, "neighbours a query")->capture_default_str();
    sub->add_option("--limit", queried.limit, "only the first so many queries");
    sub->add_option("--query-text", queried.query_text, "text with a line a query");
    sub->add_option("--text-field", queried.text_field, "print this field instead of all");
    sub->add_option("--filter", queried.filter,
                    R"(JSON, such as {"range": {"year": {"gte": 1990}}})");
    sub->add_flag("--rescore", queried.rescore, "order the best by the originals");
    sub->add_flag("--exact", queried.exact, "score the originals instead of codes");
    sub->add_flag("--json", queried.json, "a line of JSON per query");
    add_server(sub);
  }

  void add_collections() {
    CLI::App* const all = command(app, "collections", "what a server holds", nullptr);
    all->require_subcommand(1);
    CLI::App* sub = command(*all, "list", "collections and aliases",
                            [this] { print_collections(*connect(server), json, *host.out); });
    sub->add_flag("--json", json, "print lines of JSON");
    add_server(sub);
    sub = command(*all, "create", "makes a collection", [this] {
      value_or_throw(connect(server)->create_collection(name, collection_options(made)));
    });
    sub->add_option("name", name)->required();
    sub->add_option("--dimension", made.dimension, "numbers in a vector")->required();
    add_new_collection(sub);
    add_server(sub);
    sub = command(*all, "drop", "removes a collection and its records",
                  [this] { ok_or_throw(connect(server)->drop_collection(name)); });
    sub->add_option("name", name)->required();
    add_server(sub);
    sub = command(*all, "compact", "reclaims the space of deleted records",
                  [this] { ok_or_throw(connect(server)->compact_collection(name)); });
    sub->add_option("name", name)->required();
    add_server(sub);
    sub = command(*all, "alias", "makes an alias, or points it elsewhere",
                  [this] { ok_or_throw(connect(server)->set_alias(name, target)); });
    sub->add_option("alias", name)->required();
    sub->add_option("collection", target)->required();
    add_server(sub);
    sub = command(*all, "unalias", "removes an alias",
                  [this] { ok_or_throw(connect(server)->drop_alias(name)); });
    sub->add_option("alias", name)->required();
    add_server(sub);
  }

  void add_snapshot() {
    CLI::App* const all = command(app, "snapshot", "copies of all collections", nullptr);
    all->require_subcommand(1);
    CLI::App* sub = command(*all, "create", "takes one; prints its name", [this] {
      const auto kind = checkpoint ? SnapshotKind::kCheckpoint : SnapshotKind::kBackup;
      *host.out << value_or_throw(connect(server)->create_snapshot(kind)).name << "\n";
    });
    sub->add_flag("--checkpoint", checkpoint, "by hard links, in the data folder");
    add_server(sub);
    sub = command(*all, "list", "all of them",
                  [this] { print_snapshots(*connect(server), json, *host.out); });
    sub->add_flag("--json", json, "print lines of JSON");
    add_server(sub);
    sub = command(*all, "verify", "compares all checksums",
                  [this] { ok_or_throw(connect(server)->verify_snapshot(name)); });
    sub->add_option("name", name)->required();
    add_server(sub);
    sub = command(*all, "delete", "removes one",
                  [this] { ok_or_throw(connect(server)->delete_snapshot(name)); });
    sub->add_option("name", name)->required();
    add_server(sub);
    sub = command(*all, "restore", "replaces everything by it",
                  [this] { ok_or_throw(connect(server)->restore_snapshot(name)); });
    sub->add_option("name", name)->required();
    add_server(sub);
  }

  void add_export() {
    CLI::App* const sub = command(app, "export", "records of a collection to files", [this] {
      Progress shown = host.progress();
      const auto records = export_collection(*connect(server), exported, shown);
      *host.out << exported.output << ": " << records << " records\n";
    });
    sub->add_option("-c,--collection", exported.collection, "its name or alias")->required();
    sub->add_option("-o,--output", exported.output, "vectors to write")->required();
    sub->add_option("--ids", exported.ids, "ids to write, a line of JSON each");
    sub->add_option("--metadata", exported.metadata, "metadata to write, a line of JSON each");
    sub->add_option("--filter", exported.filter, "JSON, as of query");
    add_server(sub);
    host.add_common(sub);
  }

  void run_push() {
    pushed.server = server;
    pushed.on_bad_row = on_bad_row == "skip"         ? OnBadRow::kSkip
                        : on_bad_row == "quarantine" ? OnBadRow::kQuarantine
                                                     : OnBadRow::kFail;
    if (create) {
      made.dimension = io::open_vectors(pushed.input.vectors)->dimension();
      pushed.create = made;
    }
    Progress shown = host.progress();
    const PushReport report = push(pushed, shown);
    std::ostream& out = *host.out;
    out << pushed.collection << ": " << report.rows << " rows read";
    if (pushed.dry_run) out << " and checked, nothing written";
    if (!pushed.dry_run) {
      out << ", " << report.inserted << " inserted, " << report.updated << " replaced, "
          << report.seconds << " s";
    }
    if (report.resumed_at > 0) out << ", resumed after row " << report.resumed_at;
    if (report.bad > 0) out << ", " << report.bad << " bad rows left out";
    if (report.bad > 0 && !report.quarantine_file.empty()) out << ": " << report.quarantine_file;
    out << "\n";
  }

  CLI::App& app;
  Host host;
  ServerAddress server;
  PushOptions pushed;
  NewCollection made;
  bool create = false;
  std::string on_bad_row = "fail";
  QueryOptions queried;
  ExportOptions exported;
  bool json = false;
  bool checkpoint = false;
  std::string name;
  std::string target;
};

RemoteCommands::RemoteCommands(CLI::App& app, Host host)
    : parts_(std::make_unique<Parts>(app, std::move(host))) {
  parts_->add_push();
  parts_->add_query();
  parts_->add_collections();
  parts_->add_snapshot();
  parts_->add_export();
}

RemoteCommands::~RemoteCommands() = default;

}  // namespace turboquant::tools
