#include "tools/io/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "tests/tools/test_files.h"
#include "tools/io/errors.h"
#include "tools/io/interrupt.h"

namespace turboquant::io {
namespace {

class Atomic : public testing::FolderTest {};

TEST_F(Atomic, AppearsAtCommit) {
  const std::string large(3'000'000, 'x');
  {
    AtomicFile file(path("out"));
    file.write(large.data(), large.size());
    EXPECT_FALSE(std::filesystem::exists(path("out")));
    file.commit();
  }
  EXPECT_EQ(testing::read_bytes(path("out")), large);
  EXPECT_EQ(names(), std::vector<std::string>{"out"});
}

TEST_F(Atomic, WithoutCommitNothingChanges) {
  testing::write_bytes(path("out"), "old");
  {
    AtomicFile file(path("out"));
    file.write("new", 3);
  }
  EXPECT_EQ(testing::read_bytes(path("out")), "old");
  EXPECT_EQ(names(), std::vector<std::string>{"out"});
}

TEST_F(Atomic, ReplacesAndRespectsTheMask) {
  testing::write_bytes(path("out"), "old");
  const mode_t before = ::umask(027);
  write_file(path("out"), "new");
  ::umask(before);
  EXPECT_EQ(testing::read_bytes(path("out")), "new");
  struct stat status {};
  ASSERT_EQ(::stat(path("out").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640U);
}

TEST_F(Atomic, ALinkKeepsPointing) {
  std::filesystem::create_directory(path("folder"));
  testing::write_bytes(path("folder/file"), "old");
  std::filesystem::create_symlink("folder/file", path("link"));
  write_file(path("link"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(path("link")));
  EXPECT_EQ(testing::read_bytes(path("folder/file")), "new");
  EXPECT_EQ(names(), (std::vector<std::string>{"folder", "link"}));
}

TEST_F(Atomic, Refusals) {
  EXPECT_FAILS(AtomicFile(path("none/out")), IoError, "none/out", "cannot create");
  EXPECT_FAILS(AtomicFile(path("") + "/"), IoError, "not a regular file");
  EXPECT_FAILS(AtomicFile("/dev/full"), IoError, "not a regular file");
}

TEST_F(Atomic, ASecondSignalRemovesTheTemporaryFile) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    install_interrupt_handlers();
    AtomicFile file(path("out"));
    ::raise(SIGTERM);
    if (interrupt_signal() != SIGTERM) ::_exit(1);
    ::raise(SIGINT);
    ::_exit(2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + SIGINT);
  EXPECT_TRUE(names().empty());
}

TEST(Interrupt, AsksOnce) {
  install_interrupt_handlers();
  check_interrupt();
  ::raise(SIGINT);
  EXPECT_EQ(interrupt_signal(), SIGINT);
  EXPECT_FAILS(check_interrupt(), Interrupted, "interrupted");
  clear_interrupt();
  check_interrupt();
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

}  // namespace
}  // namespace turboquant::io
