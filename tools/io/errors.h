// What can go wrong with files. The commands turn each type into an exit code (exit_codes.h).
#pragma once

#include <stdexcept>
#include <string>

namespace turboquant::io {

/// The contents of an input file are wrong. The message names the file, the row where there is
/// one, and the reason.
struct DataError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The operating system refused: no such file, no permission, disk full.
struct IoError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A request that makes no sense whatever the files hold (an unknown format, a bad option).
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// "path: what: strerror(error)"
std::string system_message(const std::string& path, const std::string& what, int error);

}  // namespace turboquant::io
