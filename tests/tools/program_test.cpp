// The real program as a process: kill -9 and resume, signals, exit codes, clean streams.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/tools/test_files.h"

namespace turboquant::tools {
namespace {

// A running program whose stderr comes through a small pipe: it cannot get far ahead of the reader,
// so a test can stop it at a known place.
class Process {
 public:
  Process(std::vector<std::string> arguments, const std::string& stdout_path) {
    int ends[2];
    if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
    ::fcntl(ends[1], F_SETPIPE_SZ, 4096);
    pid_ = ::fork();
    if (pid_ == 0) {
      const int out = ::open(stdout_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      ::dup2(out, STDOUT_FILENO);
      ::dup2(ends[1], STDERR_FILENO);
      ::close(ends[0]);
      ::close(ends[1]);
      std::vector<char*> argv;
      std::string program = TURBOQUANT_INDEX_PROGRAM;
      argv.push_back(program.data());
      for (std::string& argument : arguments) argv.push_back(argument.data());
      argv.push_back(nullptr);
      ::execv(program.c_str(), argv.data());
      ::_exit(127);
    }
    ::close(ends[1]);
    stderr_ = ends[0];
  }
  ~Process() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(stderr_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // Reads stderr until `text` has come; false when the program ends before.
  bool read_until(const std::string& text) {
    char byte = 0;
    while (errors_.find(text) == std::string::npos) {
      if (::read(stderr_, &byte, 1) != 1) return false;
      errors_.push_back(byte);
    }
    return true;
  }
  void signal(int number) const { ::kill(pid_, number); }
  // The exit code, or 1000 + the signal that ended it.
  int wait() {
    char buffer[4096];
    for (ssize_t n; (n = ::read(stderr_, buffer, sizeof buffer)) > 0;) {
      errors_.append(buffer, static_cast<std::size_t>(n));
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  const std::string& errors() const { return errors_; }

 private:
  pid_t pid_ = -1;
  int stderr_ = -1;
  std::string errors_;
};

class Program : public testing::FolderTest {
 protected:
  // 50 batches, each with a line of progress.
  std::vector<std::string> build(const std::string& factory, const std::string& output,
                                 const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {
        "build",      "--input",      testing::example("base.npy"),
        "--factory",  factory,        "--output",
        path(output), "--batch-rows", "100",
        "--progress", "json",         "--progress-interval",
        "0"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::string out() const { return testing::read_bytes(path("stdout")); }
  std::string out_path() const { return path("stdout"); }
};

TEST_F(Program, ResumeAfterKillGivesTheSameBytes) {
  for (const char* factory : {"TQ3", "PCA32,SQ8", "IVF16,TQ4"}) {
    Process whole(build(factory, "whole"), out_path());
    ASSERT_EQ(whole.wait(), 0) << whole.errors();

    const std::vector<std::string> resumable = {"--resume", "--checkpoint-seconds", "0"};
    Process killed(build(factory, "parts", resumable), out_path());
    ASSERT_TRUE(killed.read_until("\"done\":1000,")) << killed.errors();
    killed.signal(SIGKILL);
    ASSERT_EQ(killed.wait(), 1000 + SIGKILL);
    ASSERT_FALSE(std::filesystem::exists(path("parts")));
    ASSERT_TRUE(std::filesystem::exists(path("parts.partial.json")));
    Process resumed(build(factory, "parts", resumable), out_path());
    ASSERT_EQ(resumed.wait(), 0) << resumed.errors();
    EXPECT_NE(resumed.errors().find("going on after row"), std::string::npos);
    EXPECT_NE(out().find("resumed after row"), std::string::npos) << out();
    EXPECT_EQ(testing::read_bytes(path("parts")), testing::read_bytes(path("whole"))) << factory;
    EXPECT_FALSE(std::filesystem::exists(path("parts.partial")));
    std::filesystem::remove(path("parts"));
  }
}

TEST_F(Program, SignalsLeaveNothing) {
  for (const auto& [signal, code] : {std::pair(SIGINT, 130), std::pair(SIGTERM, 143)}) {
    Process process(build("TQ3", "x.tqi"), out_path());
    ASSERT_TRUE(process.read_until("\"done\":1000,"));
    process.signal(signal);
    EXPECT_EQ(process.wait(), code) << process.errors();
    EXPECT_NE(process.errors().find(signal == SIGINT ? "interrupted" : "terminated"),
              std::string::npos);
    EXPECT_EQ(names(), std::vector<std::string>{"stdout"});
  }
}

TEST_F(Program, ASignalWithResumeLeavesACheckpoint) {
  const std::vector<std::string> resumable = {"--resume"};
  Process process(build("TQ3", "x.tqi", resumable), out_path());
  ASSERT_TRUE(process.read_until("\"done\":1000,"));
  process.signal(SIGINT);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_EQ(names(), (std::vector<std::string>{"stdout", "x.tqi.partial", "x.tqi.partial.json"}));
  Process resumed(build("TQ3", "x.tqi", resumable), out_path());
  ASSERT_EQ(resumed.wait(), 0) << resumed.errors();
  Process whole(build("TQ3", "whole"), out_path());
  ASSERT_EQ(whole.wait(), 0);
  EXPECT_EQ(testing::read_bytes(path("x.tqi")), testing::read_bytes(path("whole")));
}

TEST_F(Program, ProgressIsJsonLinesWithoutATerminal) {
  Process process({"build", "--input", testing::example("base.npy"), "--factory", "TQ3", "--output",
                   path("x.tqi")},
                  out_path());
  ASSERT_EQ(process.wait(), 0);
  std::istringstream lines(process.errors());
  std::uint64_t last = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto event = nlohmann::json::parse(line);
    if (event["phase"] == "add") last = event["done"];
  }
  EXPECT_EQ(last, 5000U);
  EXPECT_NE(out().find("TQ3, 5000 vectors of dimension 384"), std::string::npos);
}

TEST_F(Program, ExitCodes) {
  const auto code = [&](const std::vector<std::string>& arguments) {
    Process process(arguments, out_path());
    return process.wait();
  };
  EXPECT_EQ(code({"--help"}), 0);
  EXPECT_EQ(code({"build"}), 2);
  testing::write_bytes(path("bad.npy"), "nothing");
  EXPECT_EQ(code({"info", path("bad.npy")}), 3);
  EXPECT_EQ(code({"info", path("none.npy")}), 4);
}

TEST_F(Program, AFullDiskIsAnError) {
  // /dev/full takes the place of a terminal or a disk without room.
  Process process({"info", testing::example("base.npy")}, "/dev/full");
  EXPECT_EQ(process.wait(), 4);
}

}  // namespace
}  // namespace turboquant::tools
