#include "tools/commands/progress.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace turboquant::tools {
namespace {

double seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

std::string clock_text(double time) {
  const auto whole = std::llround(std::min(time, 359999.0));
  std::array<char, 32> text{};
  if (whole >= 3600) {
    std::snprintf(text.data(), text.size(), "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60,
                  whole % 60);
  } else {
    std::snprintf(text.data(), text.size(), "%lld:%02lld", whole / 60, whole % 60);
  }
  return text.data();
}

}  // namespace

void Progress::begin(const std::string& phase, std::uint64_t total, std::uint64_t done) {
  phase_ = phase;
  total_ = total;
  first_ = done_ = done;
  start_ = reported_ = Clock::now();
  report(false);
}

void Progress::update(std::uint64_t done) {
  done_ = done;
  const auto now = Clock::now();
  if (seconds(now - reported_) < interval_) return;
  reported_ = now;
  report(false);
}

void Progress::end() { report(true); }

void Progress::note(const std::string& message) {
  if (mode_ == ProgressMode::kBar) *out_ << message << std::endl;
  if (mode_ == ProgressMode::kJson) {
    const nlohmann::ordered_json line = {{"event", "note"}, {"message", message}};
    *out_ << line.dump() << std::endl;
  }
}

void Progress::report(bool last) {
  if (mode_ == ProgressMode::kNone) return;
  const double elapsed = seconds(Clock::now() - start_);
  const auto fresh = static_cast<double>(done_ - first_);
  const double rate = elapsed > 0 ? fresh / elapsed : 0;
  const double left = rate > 0 ? static_cast<double>(total_ - std::min(done_, total_)) / rate : 0;
  if (mode_ == ProgressMode::kJson) {
    nlohmann::ordered_json line = {{"event", last ? "done" : "progress"},
                                   {"phase", phase_},
                                   {"done", done_},
                                   {"total", total_},
                                   {"elapsed_seconds", elapsed},
                                   {"rows_per_second", rate}};
    line["eta_seconds"] = rate > 0 ? nlohmann::json(left) : nlohmann::json(nullptr);
    *out_ << line.dump() << std::endl;
    return;
  }
  constexpr int kWidth = 30;
  const double share = total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 1.0;
  const int filled = static_cast<int>(std::min(share, 1.0) * kWidth);
  std::array<char, 200> text{};
  std::snprintf(text.data(), text.size(), "\r%-8s [%s%s] %3.0f%%  %llu/%llu  %.0f rows/s  %s %s  ",
                phase_.c_str(), std::string(static_cast<std::size_t>(filled), '#').c_str(),
                std::string(static_cast<std::size_t>(kWidth - filled), '.').c_str(), share * 100,
                static_cast<unsigned long long>(done_), static_cast<unsigned long long>(total_),
                rate, last ? "took" : "left", clock_text(last ? elapsed : left).c_str());
  *out_ << text.data();
  if (last) *out_ << '\n';
  out_->flush();
}

}  // namespace turboquant::tools
