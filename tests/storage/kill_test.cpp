// kill -9 at random moments, under load and during start and replay: no acknowledged write is lost,
// no delete comes back, no write is there in part. TURBOQUANT_KILL_CYCLES=1000 is the long form.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <future>
#include <thread>

#include "tests/storage/kill_model.h"

namespace turboquant::test {
namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

struct Progress {
  std::uint64_t acknowledged[kKillThreads] = {};  // operations, counted from the cycle's start
  bool under_way[kKillThreads] = {};
  bool told_nothing = false;
};

class KillTest : public testing::Test {
 protected:
  // Runs the writer, kills it so long after its start or after its first word, and returns what it
  // told.
  Progress run_and_kill(std::chrono::microseconds time, bool after_first_word) {
    int ends[2];
    EXPECT_EQ(0, ::pipe(ends));
    std::vector<std::string> arguments = {KILL_WRITER, folder_.path()};
    for (const std::uint64_t next : next_) arguments.push_back(std::to_string(next));
    std::vector<char*> pointers;
    pointers.reserve(arguments.size() + 1);
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(ends[1], STDOUT_FILENO);
      ::close(ends[0]);
      ::close(ends[1]);
      ::execv(pointers[0], pointers.data());
      std::_Exit(127);
    }
    ::close(ends[1]);
    std::string told;
    std::promise<void> first_word;
    std::thread reader([&] {
      char buffer[4096];
      for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
        if (told.empty()) first_word.set_value();
        told.append(buffer, static_cast<std::size_t>(n));
      }
    });
    if (after_first_word) {
      EXPECT_EQ(std::future_status::ready,
                first_word.get_future().wait_for(std::chrono::minutes(10)));
    }
    std::this_thread::sleep_for(time);
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the writer ended by itself: " << status;
    reader.join();
    ::close(ends[0]);
    Progress progress;
    EXPECT_EQ(0u, told.size() % 2);
    for (std::size_t i = 0; i + 1 < told.size(); i += 2) {
      const auto thread = static_cast<std::size_t>(told[i] - '0');
      progress.under_way[thread] = told[i + 1] == '+';
      if (told[i + 1] == '=') ++progress.acknowledged[thread];
    }
    progress.told_nothing = told.empty();
    if (told.empty()) ++during_start_;
    return progress;
  }

  // Compares the store with what was acknowledged; operations under way may be there or not.
  void check(const Progress& progress) {
    auto store = Store::open(folder_.path(), quiet_options());
    ASSERT_OK(store);
    auto collection = (*store)->collection("k");
    ASSERT_OK(collection);
    KillState found;
    for (const Record& record : scroll_all(**collection, 10'000, {}, {true, false})) {
      found[record.id] =
          static_cast<std::uint64_t>(std::get<std::int64_t>(record.metadata.at("number")));
    }
    for (std::size_t t = 0; t < kKillThreads; ++t) {
      for (std::uint64_t i = 0; i < progress.acknowledged[t]; ++i) {
        perform(KillOperation(t, next_[t]++), state_);
      }
      const auto from = RecordId(std::uint64_t{t * kIdsPerThread});
      const auto to = RecordId(std::uint64_t{(t + 1) * kIdsPerThread});
      const auto part = [&](const KillState& all) {
        return KillState(all.lower_bound(from), all.lower_bound(to));
      };
      if (part(found) == part(state_)) continue;
      ASSERT_TRUE(progress.under_way[t]) << "thread " << t << ": a write was lost or came back";
      const KillOperation operation(t, next_[t]);
      perform(operation, state_);
      ASSERT_EQ(part(state_), part(found)) << "thread " << t << ", operation " << operation.name;
      // A client that saw no answer repeats the operation, and must not write twice.
      WriteOptions options;
      options.operation_id = operation.name;
      const absl::StatusOr<WriteResult> again = run(operation, **collection, options);
      ASSERT_OK(again);
      ASSERT_TRUE(again->replayed);
      ++next_[t];
      ++unanswered_;
    }
    ASSERT_EQ(state_.size(), *(*collection)->count({}));
    if (cycle_ % 10 == 0) {
      ASSERT_OK((*store)->verify());
    }
  }

  TempFolder folder_;
  std::uint64_t next_[kKillThreads] = {};
  KillState state_;
  std::uint64_t cycle_ = 0;
  std::uint64_t during_start_ = 0;
  std::uint64_t unanswered_ = 0;
};

TEST_F(KillTest, NothingAcknowledgedIsLost) {
  const std::uint64_t cycles = from_environment("TURBOQUANT_KILL_CYCLES", 20);
  {
    auto store = Store::open(folder_.path(), quiet_options());
    ASSERT_OK(store);
    CollectionOptions options;
    options.dimension = kKillDimension;
    options.originals = Originals::kFp16;
    options.fields = {{"number", FieldType::kInt64}};
    options.pack_codes = true;
    ASSERT_OK((*store)->create_collection("k", options));
  }
  std::mt19937_64 random(from_environment("TURBOQUANT_KILL_SEED", 81));
  for (cycle_ = 0; cycle_ < cycles && !HasFatalFailure(); ++cycle_) {
    SCOPED_TRACE("cycle " + std::to_string(cycle_));
    // One in four is killed while it starts.
    const bool early = cycle_ % 4 == 0;
    const std::uint64_t most = early ? 60'000 : 300'000;
    const Progress progress = run_and_kill(std::chrono::microseconds(random() % most), !early);
    // Some are killed again before anybody looks.
    if (cycle_ % 5 == 0 && progress.told_nothing) continue;
    check(progress);
  }
  const unsigned long long operations = next_[0] + next_[1] + next_[2];
  std::printf("%llu cycles, %llu killed while starting, %llu operations, %llu of them unanswered\n",
              static_cast<unsigned long long>(cycle_),
              static_cast<unsigned long long>(during_start_), operations,
              static_cast<unsigned long long>(unanswered_));
  EXPECT_GT(next_[0] + next_[1] + next_[2], cycles);
}

}  // namespace
}  // namespace turboquant::test
