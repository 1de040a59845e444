// Tokens: who may do what, in the library and through the server.
#include "service/auth.h"

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <turboquant/v1/admin_service.pb.h>
#include <turboquant/v1/search_service.pb.h>

#include "service/server.h"
#include "tests/service/raw_client.h"
#include "tests/service/server_fixture.h"

namespace turboquant::service_test {
namespace {

using service::Authenticator;
using service::Role;
using testing::HasSubstr;

std::string line(const std::string& name, const std::string& role, const std::string& token,
                 const std::string& rest = "*") {
  return name + " " + role + " " + service::hash_token(token) + " " + rest + "\n";
}

TEST(Tokens, HashIsSha256) {
  EXPECT_EQ(service::hash_token("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_NE(service::make_token(), service::make_token());
  EXPECT_GE(service::make_token().size(), 40U);
}

TEST(Tokens, FileGivesRolesAndScopes) {
  const TemporaryFolder folder;
  const std::string path =
      folder.write("tokens", "# comment\n\n" + line("app", "write", "secret", "a,b 5") +
                                 line("ops", "admin", "x"));
  const auto auth = Authenticator::create(path);
  ASSERT_TRUE(auth.ok()) << auth.status();
  EXPECT_EQ((*auth)->size(), 2U);
  const auto app = (*auth)->authenticate("Bearer secret");
  ASSERT_TRUE(app.ok());
  EXPECT_EQ((*app)->name, "app");
  EXPECT_EQ((*app)->role, Role::kWrite);
  EXPECT_TRUE((*app)->may_use("a"));
  EXPECT_FALSE((*app)->may_use("c"));
  EXPECT_NE((*app)->rate, nullptr);
  EXPECT_TRUE((*(*auth)->authenticate("bearer x"))->may_use("anything"));
  for (const char* header :
       {"", "Bearer ", "Bearer secre", "Bearer secrets", "secret", "Basic secret"}) {
    const auto refused = (*auth)->authenticate(header);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnauthenticated) << header;
    EXPECT_EQ(error_reason(refused.status()), "BAD_TOKEN");
  }
}

TEST(Tokens, ABadFileIsRefusedWithItsLine) {
  const TemporaryFolder folder;
  const std::string good = line("a", "read", "x");
  for (const std::string& bad :
       {std::string("a read\n"), line("a", "root", "x"), std::string("a read 12 *\n"),
        line("a", "read", "x", "* -1"), line("a", "read", "x", "* fast"),
        "a read " + std::string(64, 'g') + " *\n"}) {
    const auto auth = Authenticator::create(folder.write("tokens", good + bad));
    ASSERT_FALSE(auth.ok()) << bad;
    EXPECT_THAT(std::string(auth.status().message()), HasSubstr("tokens:2: "));
  }
  EXPECT_FALSE(Authenticator::create(folder.write("tokens", "# none\n")).ok());
  EXPECT_FALSE(Authenticator::create(folder.file("absent")).ok());
}

TEST(Tokens, AFileThatTurnsBadKeepsTheOldTokens) {
  const TemporaryFolder folder;
  const auto auth = Authenticator::create(folder.write("tokens", line("a", "read", "x")));
  ASSERT_TRUE(auth.ok());
  folder.write("tokens", "nonsense\n");
  EXPECT_FALSE((*auth)->reload().ok());
  EXPECT_TRUE((*auth)->authenticate("Bearer x").ok());
  folder.write("tokens", line("b", "read", "y"));
  EXPECT_TRUE((*auth)->reload().ok());
  EXPECT_FALSE((*auth)->authenticate("Bearer x").ok());
  EXPECT_TRUE((*auth)->authenticate("Bearer y").ok());
}

TEST(Rate, BurstsOfASecond) {
  service::RateLimit limit(10);
  const absl::Time start = absl::FromUnixSeconds(1000);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.take(start), absl::ZeroDuration()) << i;
  EXPECT_GT(limit.take(start), absl::ZeroDuration());
  EXPECT_LE(limit.take(start), absl::Milliseconds(100));
  EXPECT_EQ(limit.take(start + absl::Milliseconds(101)), absl::ZeroDuration());
  EXPECT_GT(limit.take(start + absl::Milliseconds(102)), absl::ZeroDuration());
}

class Guarded : public ServerTest {
 protected:
  void SetUp() override {
    service::ServerOptions options = usual_options();
    options.token_file = folder_.write("tokens", line("root", "admin", "t-admin") +
                                                     line("app", "write", "t-write", "words") +
                                                     line("web", "read", "t-read", "words") +
                                                     line("other", "admin", "t-other", "texts") +
                                                     line("slow", "read", "t-slow", "* 0.001"));
    start(options);
    fill(5, DistanceMetric::kInnerProduct, Originals::kNone, "t-admin");
  }

  absl::Status count(const std::string& token, const std::string& collection = "words") {
    return Client(client_options(token)).count(collection).status();
  }
  absl::Status write(const std::string& token, const std::string& collection = "words") {
    const auto vectors = random_vectors(1, 3);
    return Client(client_options(token))
        .upsert(collection, {{std::string("a")}, vectors, {}})
        .status();
  }
};

TEST_F(Guarded, WithoutATokenNothingGoes) {
  for (const char* token : {"", "wrong"}) {
    EXPECT_EQ(error_reason(count(token)), "BAD_TOKEN");
    EXPECT_EQ(error_reason(write(token)), "BAD_TOKEN");
    EXPECT_EQ(error_reason(Client(client_options(token)).info().status()), "BAD_TOKEN");
    EXPECT_EQ(error_reason(Client(client_options(token)).drop_collection("words")), "BAD_TOKEN");
  }
  EXPECT_EQ(health(address_, service::kSearchHealth), "SERVING");  // needs none
}

TEST_F(Guarded, RolesCoverWhatTheySay) {
  EXPECT_TRUE(count("t-read").ok());
  EXPECT_EQ(error_reason(write("t-read")), "ROLE");
  EXPECT_TRUE(count("t-write").ok());
  EXPECT_TRUE(write("t-write").ok());
  EXPECT_EQ(error_reason(Client(client_options("t-write")).drop_collection("words")), "ROLE");
  EXPECT_TRUE(Client(client_options("t-admin")).drop_collection("words").ok());
}

TEST_F(Guarded, TheBodyIsNotReadBeforeTheTokenIsJudged) {
  // A message that is no message: were it read first, the answer would be another one.
  RawOptions options;
  options.token = "t-read";
  const RawAnswer answer = raw_call(address_, "/turboquant.v1.SearchService/Upsert",
                                    std::string("\xff"), nullptr, options);
  EXPECT_EQ(answer.reason, "ROLE");
}

TEST_F(Guarded, ScopesHold) {
  Client root(client_options("t-admin"));
  Client other(client_options("t-other"));
  CollectionOptions options;
  options.dimension = kDimension;
  EXPECT_EQ(error_reason(count("t-other")), "SCOPE");
  // Whether it exists is not told.
  EXPECT_EQ(error_reason(count("t-other", "absent")), "SCOPE");
  EXPECT_EQ(error_reason(write("t-write", "texts")), "SCOPE");
  EXPECT_EQ(error_reason(other.create_collection("mine", options).status()), "SCOPE");
  EXPECT_TRUE(other.create_collection("texts", options).ok());
  EXPECT_EQ(other.collections()->size(), 1U);
  EXPECT_EQ(root.collections()->size(), 2U);
  EXPECT_EQ(error_reason(other.drop_collection("words")), "SCOPE");
  EXPECT_EQ(error_reason(other.set_alias("texts2", "texts")), "SCOPE");
  EXPECT_EQ(error_reason(other.set_alias("texts", "words")), "SCOPE");
  for (const absl::Status& status :
       {other.create_snapshot(SnapshotKind::kBackup).status(), other.snapshots().status(),
        other.verify_store(), other.restore_snapshot("x"), other.delete_snapshot("x"),
        other.verify_snapshot("x")}) {
    EXPECT_EQ(error_reason(status), "SCOPE");
  }
  // An alias may be used by those who may use what it stands for.
  ASSERT_TRUE(root.set_alias("current", "words").ok());
  EXPECT_TRUE(count("t-read", "current").ok());
  EXPECT_EQ(error_reason(count("t-other", "current")), "SCOPE");
}

TEST_F(Guarded, ScopesHoldInsideAStream) {
  Client writer(client_options("t-write"));
  std::string reason;
  BulkOptions options;
  options.acknowledged = [&](const auto& a) { reason = error_reason(a.result.status()); };
  auto stream = writer.bulk_add("texts", options);
  const auto vectors = random_vectors(1, 3);
  ASSERT_TRUE(stream->send({{std::string("a")}, vectors, {}}).ok());
  EXPECT_TRUE(stream->finish().ok());
  EXPECT_EQ(reason, "SCOPE");
}

TEST_F(Guarded, ARateIsKept) {
  RawOptions options;
  options.token = "t-slow";
  v1::CountRequest request;
  request.set_collection("words");
  int limited = 0;
  for (int i = 0; i < 10; ++i) {
    const RawAnswer answer =
        raw_call(address_, "/turboquant.v1.SearchService/Count", request, nullptr, options);
    if (answer.reason == "RATE_LIMITED") {
      ++limited;
      EXPECT_EQ(answer.code, static_cast<int>(absl::StatusCode::kResourceExhausted));
      EXPECT_FALSE(answer.pushback_ms.empty());
    }
  }
  EXPECT_GT(limited, 0);
}

TEST_F(Guarded, ChangedTokensAreTaken) {
  folder_.write("tokens", line("root", "admin", "t-new"));
  ASSERT_TRUE(server_->reload().ok());
  EXPECT_EQ(error_reason(count("t-admin")), "BAD_TOKEN");
  EXPECT_TRUE(count("t-new").ok());
}

TEST(Exposure, OtherAddressesNeedTlsAndTokens) {
  service::ServerOptions options;
  options.data_dir = "d";
  EXPECT_TRUE(service::check(options).ok());
  for (const char* address : {"127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/s"}) {
    options.front.address = address;
    EXPECT_TRUE(service::check(options).ok()) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "1270:1",
                              "127.0.0.1.example.org:1"}) {
    options = {};
    options.data_dir = "d";
    options.front.address = address;
    EXPECT_FALSE(service::check(options).ok()) << address;
    options.token_file = "t";
    EXPECT_FALSE(service::check(options).ok()) << address;
    options.front.tls.certificate = "c";
    EXPECT_FALSE(service::check(options).ok()) << address;
    options.front.tls.key = "k";
    EXPECT_TRUE(service::check(options).ok()) << address;
    options.token_file = "";
    EXPECT_FALSE(service::check(options).ok()) << address;
    options.insecure = true;
    EXPECT_TRUE(service::check(options).ok()) << address;
  }
}

}  // namespace
}  // namespace turboquant::service_test
