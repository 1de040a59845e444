// Structured log: one JSON object a line, to a stream.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace turboquant::service {

enum class LogLevel : std::uint8_t { kDebug, kInfo, kWarning, kError };

/// "debug", "info", "warning" or "error".
std::optional<LogLevel> parse_log_level(std::string_view name);

using LogValue = std::variant<bool, std::int64_t, std::uint64_t, double, std::string>;

class Log {
 public:
  /// out outlives this. Lines below `level` are not written.
  Log(std::ostream& out, LogLevel level) : out_(out), level_(level) {}

  bool enabled(LogLevel level) const { return level >= level_; }
  void write(LogLevel level, std::string_view event,
             std::initializer_list<std::pair<std::string_view, LogValue>> fields = {});

 private:
  std::ostream& out_;
  const LogLevel level_;
  std::mutex mutex_;
};

}  // namespace turboquant::service
