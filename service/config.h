// The command line of turboquant-server. Every option is also a line of the file that --config
// names (TOML: `data-dir = "..."`) and an environment variable (TURBOQUANT_DATA_DIR).
#pragma once

#include <ostream>

#include "service/server.h"

namespace turboquant::service {

enum class Command : std::uint8_t { kServe, kToken, kNothing };

struct TokenRequest {
  std::string name;
  std::string role = "read";
  std::string collections = "*";
  double requests_per_second = 0;
};

struct CommandLine {
  Command command = Command::kNothing;
  int exit_code = 0;  ///< when there is nothing to do
  ServerOptions server;
  TokenRequest token;
};

/// Help and complaints go to out and err.
CommandLine parse_command_line(int argc, const char* const* argv, std::ostream& out,
                               std::ostream& err);

}  // namespace turboquant::service
