// SIGINT and SIGTERM: the first asks the program to stop at the next check, the second stops it at
// once. Either way no temporary file stays behind.
#pragma once

#include <stdexcept>
#include <string>

namespace turboquant::io {

struct Interrupted : std::runtime_error {
  explicit Interrupted(int signal_number);
  int signal;
};

/// Installs the handlers. Call once, from main.
void install_interrupt_handlers();

/// The signal that asked to stop, or 0.
int interrupt_signal();

/// Throws Interrupted if a signal asked to stop.
void check_interrupt();

/// Forgets the signal, so that a checkpoint can still be written after it.
void clear_interrupt();

/// A file that the handler removes when it stops the program at once. At most eight at a time and
/// paths below 4,096 bytes; beyond that the guard does nothing.
class TemporaryGuard {
 public:
  explicit TemporaryGuard(const std::string& path);
  ~TemporaryGuard();
  TemporaryGuard(const TemporaryGuard&) = delete;
  TemporaryGuard& operator=(const TemporaryGuard&) = delete;

 private:
  int slot_ = -1;
};

}  // namespace turboquant::io
