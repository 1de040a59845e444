// turboquant-server: see config.h for its options and server.h for what it does.
#include <signal.h>

#include <cstdlib>
#include <exception>
#include <iostream>

#include "service/auth.h"
#include "service/config.h"
#include "service/server.h"

namespace turboquant::service {
namespace {

int print_token(const TokenRequest& request) {
  const std::string token = make_token();
  std::cout << "token: " << token << "\nline for --tokens:\n"
            << request.name << " " << request.role << " " << hash_token(token) << " "
            << request.collections << " " << request.requests_per_second << "\n";
  return EXIT_SUCCESS;
}

int serve(const ServerOptions& options, const sigset_t& signals) {
  auto server = Server::start(options, std::cerr);
  if (!server.ok()) {
    std::cerr << "turboquant-server: " << server.status().message() << std::endl;
    return server.status().code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
  }
  std::cout << "listening on " << options.front.address << " port " << (*server)->port()
            << std::endl;
  for (;;) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) continue;
    if (signal == SIGHUP) {
      (void)(*server)->reload();
      continue;
    }
    return (*server)->stop().ok() ? EXIT_SUCCESS : EXIT_FAILURE;
  }
}

}  // namespace
}  // namespace turboquant::service

int main(int argc, char** argv) {
  using namespace turboquant::service;
  // Before any thread, which inherits it: signals are waited for, they interrupt nothing.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  try {
    const CommandLine line = parse_command_line(argc, argv, std::cout, std::cerr);
    if (line.command == Command::kToken) return print_token(line.token);
    if (line.command == Command::kServe) return serve(line.server, signals);
    return line.exit_code;
  } catch (const std::exception& error) {
    std::cerr << "turboquant-server: " << error.what() << std::endl;
    return EXIT_FAILURE;
  }
}
