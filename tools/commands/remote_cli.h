// The commands that need a server, as options of turboquant-index.
#pragma once

#include <CLI/App.hpp>
#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "tools/commands/progress.h"

namespace turboquant::tools {

class RemoteCommands {
 public:
  /// What the command line gives: a way to name the work of a parsed command, the options that
  /// all commands share, and a progress report as they say.
  struct Host {
    std::function<void(CLI::App*, std::function<void()>)> on_command;
    std::function<void(CLI::App*)> add_common;
    std::function<Progress()> progress;
    std::ostream* out = nullptr;
  };

  RemoteCommands(CLI::App& app, Host host);
  ~RemoteCommands();
  RemoteCommands(const RemoteCommands&) = delete;
  RemoteCommands& operator=(const RemoteCommands&) = delete;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace turboquant::tools
