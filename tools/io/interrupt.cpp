#include "tools/io/interrupt.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstring>

namespace turboquant::io {
namespace {

struct Slot {
  std::atomic<int> state{0};  // 0 free, 1 being filled, 2 holds a path
  std::array<char, 4096> path{};
};

std::array<Slot, 8> slots;
std::atomic<int> pending{0};
static_assert(std::atomic<int>::is_always_lock_free, "the signal handler uses it");

void handle(int signal) {
  if (pending.exchange(signal) == 0) return;
  for (Slot& slot : slots) {
    if (slot.state.load() == 2) ::unlink(slot.path.data());
  }
  ::_exit(128 + signal);
}

}  // namespace

Interrupted::Interrupted(int signal_number)
    : std::runtime_error(signal_number == SIGTERM ? "terminated" : "interrupted"),
      signal(signal_number) {}

void install_interrupt_handlers() {
  struct sigaction action {};
  action.sa_handler = handle;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

int interrupt_signal() { return pending.load(); }

void check_interrupt() {
  if (const int signal = pending.load()) throw Interrupted(signal);
}

void clear_interrupt() { pending.store(0); }

TemporaryGuard::TemporaryGuard(const std::string& path) {
  for (std::size_t i = 0; i < slots.size(); ++i) {
    int free = 0;
    if (path.size() >= slots[i].path.size()) return;
    if (!slots[i].state.compare_exchange_strong(free, 1)) continue;
    std::memcpy(slots[i].path.data(), path.c_str(), path.size() + 1);
    slots[i].state.store(2);
    slot_ = static_cast<int>(i);
    return;
  }
}

TemporaryGuard::~TemporaryGuard() {
  if (slot_ >= 0) slots[static_cast<std::size_t>(slot_)].state.store(0);
}

}  // namespace turboquant::io
