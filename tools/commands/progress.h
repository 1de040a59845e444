// How far a long command is: a bar with rate and time left, JSON lines, or nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>

namespace turboquant::tools {

enum class ProgressMode : std::uint8_t { kNone, kBar, kJson };

class Progress {
 public:
  /// Nothing is shown.
  Progress() = default;
  /// out must outlive this. At most one report every `interval` seconds, and one at each end.
  Progress(std::ostream& out, ProgressMode mode, double interval)
      : out_(&out), mode_(mode), interval_(interval) {}

  /// Starts a phase of `total` rows, `done` of which are there already.
  void begin(const std::string& phase, std::uint64_t total, std::uint64_t done = 0);
  void update(std::uint64_t done);
  void end();

  /// A fact worth a line, such as where a build goes on.
  void note(const std::string& message);

 private:
  using Clock = std::chrono::steady_clock;
  void report(bool last);

  std::ostream* out_ = nullptr;
  ProgressMode mode_ = ProgressMode::kNone;
  double interval_ = 0;
  std::string phase_;
  std::uint64_t total_ = 0;
  std::uint64_t first_ = 0;
  std::uint64_t done_ = 0;
  Clock::time_point start_;
  Clock::time_point reported_;
};

}  // namespace turboquant::tools
