#include "service/config.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <string>

#include "service/version.h"

namespace turboquant::service {
namespace {

std::string environment_name(std::string option) {
  for (char& c : option) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
  return "TURBOQUANT_" + option;
}

class Parser {
 public:
  explicit Parser(CommandLine& line) : line_(line), server_(line.server) {
    app_.name("turboquant-server");
    app_.description("Serves collections of vectors over gRPC (proto/turboquant/v1).");
    app_.footer(
        "Every option --some-name is also the environment variable TURBOQUANT_SOME_NAME and a\n"
        "line `some-name = value` of the file that --config names. Sizes take k, m, g (1024).\n"
        "SIGTERM drains and stops; SIGHUP reads the tokens again.");
    app_.set_config("--config", "", "file of options (TOML)")->envname("TURBOQUANT_CONFIG");
    app_.set_version_flag("--version", std::string("turboquant-server ") + kVersion);
    add_general();
    add_security();
    add_limits();
    add_token_command();
  }

  void parse(int argc, const char* const* argv, std::ostream& out, std::ostream& err) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      line_.exit_code = app_.exit(error, out, err) == 0 ? 0 : 2;
      return;
    }
    line_.command = token_->parsed() ? Command::kToken : Command::kServe;
    server_.front.slow_query = absl::Milliseconds(slow_ms_);
    server_.drain = absl::Seconds(drain_seconds_);
    server_.batch.max_wait = absl::Microseconds(batch_wait_us_);
    server_.log_level = parse_log_level(log_level_).value_or(LogLevel::kInfo);
  }

 private:
  template <class T>
  CLI::Option* option(const std::string& name, T& value, const std::string& help) {
    return app_.add_option("--" + name, value, help)
        ->envname(environment_name(name))
        ->capture_default_str();
  }

  CLI::Option* size(const std::string& name, std::uint64_t& value, const std::string& help) {
    return option(name, value, help)->transform(CLI::AsSizeValue(false));
  }

  void add_general() {
    option("data-dir", server_.data_dir, "folder of the store; made when it is not there");
    option("backup-dir", server_.backup_dir, "folder of backups (default: in the data folder)");
    option("listen", server_.front.address, "host:port, or unix:PATH; port 0: any");
    option("metrics-listen", server_.metrics_address,
           "host:port for Prometheus, GET /metrics (default: none)");
    option("log-level", log_level_, "debug (every request), info, warning or error")
        ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
    option("slow-query-ms", slow_ms_, "requests that take longer are logged")
        ->check(CLI::NonNegativeNumber);
    option("drain-seconds", drain_seconds_, "time for calls under way when stopping")
        ->check(CLI::NonNegativeNumber);
    app_.add_flag("--reflection,!--no-reflection", server_.front.reflection,
                  "let clients ask for the methods (default: yes)")
        ->envname("TURBOQUANT_REFLECTION");
  }

  void add_security() {
    option("tls-cert", server_.front.tls.certificate, "PEM chain; read again once a minute");
    option("tls-key", server_.front.tls.key, "PEM key");
    option("tls-client-ca", server_.front.tls.client_ca,
           "PEM; clients must show a certificate that it signed");
    option("tokens", server_.token_file, "file of hashed tokens; read again when it changes");
    app_.add_flag("--insecure", server_.insecure, "listen beyond loopback without TLS and tokens")
        ->envname("TURBOQUANT_INSECURE");
  }

  void add_limits() {
    Limits& limits = server_.limits;
    size("max-message-bytes", limits.max_message_bytes, "largest request and answer")
        ->check(CLI::Range(std::uint64_t{1} << 10, std::uint64_t{1} << 30));
    option("max-rows", limits.max_rows, "records in one request")->check(CLI::Range(1, 1 << 20));
    option("max-k", limits.max_k, "records per query")->check(CLI::Range(1, 1 << 20));
    option("max-results", limits.max_results, "queries times k of one request")
        ->check(CLI::Range(1, 1 << 30));
    option("max-dimension", limits.max_dimension, "numbers in a vector")
        ->check(CLI::Range(1, 65'536));
    option("max-collections", limits.max_collections, "collections")
        ->check(CLI::Range(1, 1'000'000));
    size("memory-limit", limits.memory_limit_bytes,
         "memory of collections beyond which writes are refused (0: none)");
    size("cache-bytes", server_.cache_bytes, "RocksDB's block cache");
    size("transport-memory", server_.front.transport_memory_bytes, "memory of gRPC's buffers");
    option("max-streams", server_.front.max_concurrent_streams, "calls at once on a connection")
        ->check(CLI::Range(1, 1 << 20));
    option("compute-threads", server_.compute_threads, "threads for reads (0: one per core)")
        ->check(CLI::Range(0, 4096));
    option("write-threads", server_.write_threads, "threads for writes")
        ->check(CLI::Range(1, 4096));
    option("max-queued", server_.max_queued, "requests that may wait for a thread, per kind")
        ->check(CLI::Range(1, 1 << 20));
    option("batch-queries", server_.batch.max_queries, "single queries searched together")
        ->check(CLI::Range(1, 4096));
    option("batch-wait-us", batch_wait_us_, "how long a batch waits for callers to come back")
        ->check(CLI::Range(0, 100'000));
  }

  void add_token_command() {
    token_ = app_.add_subcommand("token", "makes a token: prints it, and its line for --tokens");
    token_->add_option("--name", line_.token.name, "for logs")->required();
    token_->add_option("--role", line_.token.role, "read, write or admin")
        ->check(CLI::IsMember({"read", "write", "admin"}))
        ->capture_default_str();
    token_->add_option("--collections", line_.token.collections, "names, or * for all")
        ->capture_default_str();
    token_->add_option("--rate", line_.token.requests_per_second, "requests a second (0: any)")
        ->check(CLI::NonNegativeNumber);
  }

  CommandLine& line_;
  ServerOptions& server_;
  CLI::App app_;
  CLI::App* token_ = nullptr;
  std::string log_level_ = "info";
  std::int64_t slow_ms_ = 500;
  std::int64_t drain_seconds_ = 30;
  std::int64_t batch_wait_us_ = 200;
};

}  // namespace

CommandLine parse_command_line(int argc, const char* const* argv, std::ostream& out,
                               std::ostream& err) {
  CommandLine line;
  Parser(line).parse(argc, argv, out, err);
  return line;
}

}  // namespace turboquant::service
