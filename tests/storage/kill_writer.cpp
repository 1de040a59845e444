// kill_writer FOLDER NEXT0 NEXT1 NEXT2: writes to the store in FOLDER from three threads until it
// is killed, thread t from operation NEXTt on. A byte pair on standard output tells what happened:
// "t+" operation begins, "t=" it was acknowledged. One pair is one write call, so a pipe keeps it
// whole and in order.
#include <unistd.h>

#include <cstdlib>
#include <thread>

#include "tests/storage/kill_model.h"

using namespace turboquant;
using namespace turboquant::test;

namespace {

void tell(std::size_t thread, char what) {
  const char pair[2] = {static_cast<char>('0' + thread), what};
  if (::write(STDOUT_FILENO, pair, 2) != 2) std::_Exit(3);
}

void work(Collection& collection, std::size_t thread, std::uint64_t number) {
  for (;; ++number) {
    const KillOperation operation(thread, number);
    WriteOptions options;
    options.operation_id = operation.name;
    // A killed process loses nothing that the operating system has: both levels must hold.
    options.durability = operation.fsync ? Durability::kFsync : Durability::kWal;
    tell(thread, '+');
    const absl::Status status = test::run(operation, collection, options).status();
    if (!status.ok()) {
      std::fprintf(stderr, "operation %s: %s\n", operation.name.c_str(), status.ToString().c_str());
      std::_Exit(4);
    }
    tell(thread, '=');
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 + static_cast<int>(kKillThreads)) return 2;
  auto store = Store::open(argv[1]);
  if (!store.ok()) {
    std::fprintf(stderr, "open: %s\n", store.status().ToString().c_str());
    return 5;
  }
  auto collection = (*store)->collection("k");
  if (!collection.ok()) return 6;
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kKillThreads; ++t) {
    threads.emplace_back(work, std::ref(**collection), t, std::strtoull(argv[2 + t], nullptr, 10));
  }
  threads.emplace_back([&] {
    for (;;) {
      ::usleep(20'000);
      (void)(*collection)->compact();
    }
  });
  for (std::thread& thread : threads) thread.join();
}
