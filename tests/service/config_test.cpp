// Flags, environment and file of turboquant-server.
#include "service/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <sstream>

#include "tests/service/server_fixture.h"

namespace turboquant::service_test {
namespace {

using service::Command;
using service::CommandLine;
using testing::HasSubstr;

struct Parsed {
  CommandLine line;
  std::string out;
  std::string err;
};

Parsed parse(std::vector<const char*> words) {
  words.insert(words.begin(), "turboquant-server");
  std::ostringstream out;
  std::ostringstream err;
  CommandLine line =
      service::parse_command_line(static_cast<int>(words.size()), words.data(), out, err);
  return {std::move(line), out.str(), err.str()};
}

TEST(Config, ZeroConfigurationServesOnLoopback) {
  const Parsed parsed = parse({"--data-dir", "d"});
  EXPECT_EQ(parsed.line.command, Command::kServe);
  EXPECT_TRUE(service::is_loopback(parsed.line.server.front.address));
  EXPECT_TRUE(service::check(parsed.line.server).ok());
  EXPECT_TRUE(parsed.line.server.front.reflection);
}

TEST(Config, FlagsEnvironmentAndFile) {
  const TemporaryFolder folder;
  const std::string file =
      folder.write("config", "data-dir = \"from-file\"\nmax-k = 77\nmemory-limit = \"2g\"\n");
  ::setenv("TURBOQUANT_MAX_ROWS", "55", 1);
  ::setenv("TURBOQUANT_MAX_K", "66", 1);
  const Parsed parsed = parse({"--config", file.c_str(), "--max-results", "44", "--no-reflection"});
  ::unsetenv("TURBOQUANT_MAX_ROWS");
  ::unsetenv("TURBOQUANT_MAX_K");
  const service::ServerOptions& server = parsed.line.server;
  EXPECT_EQ(server.data_dir, "from-file") << parsed.err;
  EXPECT_EQ(server.limits.max_rows, 55U);
  EXPECT_EQ(server.limits.max_results, 44U);
  EXPECT_EQ(server.limits.memory_limit_bytes, std::uint64_t{2} << 30);
  EXPECT_FALSE(server.front.reflection);
  // The file is more particular than the environment, a flag more than both.
  EXPECT_EQ(server.limits.max_k, 77U);
}

TEST(Config, NonsenseIsRefused) {
  for (const char* option : {"--max-k=0", "--max-k=-1", "--max-rows=2000000", "--nothing=1",
                             "--log-level=loud", "--max-message-bytes=3g"}) {
    const Parsed parsed = parse({"--data-dir", "d", option});
    EXPECT_EQ(parsed.line.command, Command::kNothing) << option;
    EXPECT_EQ(parsed.line.exit_code, 2) << option;
    EXPECT_FALSE(parsed.err.empty()) << option;
  }
}

TEST(Config, HelpAndVersionAreNoErrors) {
  EXPECT_EQ(parse({"--help"}).line.exit_code, 0);
  EXPECT_THAT(parse({"--help"}).out, HasSubstr("--data-dir"));
  EXPECT_THAT(parse({"--version"}).out, HasSubstr("turboquant-server 0."));
}

TEST(Config, TokenCommand) {
  const Parsed parsed =
      parse({"token", "--name", "app", "--role", "write", "--collections", "a,b", "--rate", "5"});
  EXPECT_EQ(parsed.line.command, Command::kToken) << parsed.err;
  EXPECT_EQ(parsed.line.token.collections, "a,b");
  EXPECT_EQ(parsed.line.token.requests_per_second, 5);
}

}  // namespace
}  // namespace turboquant::service_test
