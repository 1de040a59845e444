// A full disk and a failing fsync below a server: writes get the documented answer, reads and
// health go on, and writes return by themselves once the disk is well.
#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/service/raw_client.h"
#include "tests/service/server_fixture.h"
#include "tests/storage/fault_shim.h"

namespace turboquant::service_test {
namespace {

using test::set_faults;

class Disk : public ServerTest {
 protected:
  void SetUp() override {
    service::ServerOptions options = usual_options();
    options.data_dir = folder_.file("tq_store_data");  // a name that the shim knows
    start(options);
    fill(100);
    ClientOptions once = client_options();
    once.max_attempts = 1;
    writer_ = std::make_unique<Client>(once);
  }
  void TearDown() override {
    set_faults({});
    writer_.reset();
    ServerTest::TearDown();
  }

  // Write number n: 50 records of its own, with originals some 3 KB.
  absl::Status write(std::uint64_t n) {
    const auto vectors = random_vectors(kRows, static_cast<unsigned>(n));
    const absl::Status status =
        writer_->upsert("words", {number_ids(kRows, kRows * n), vectors, {}}).status();
    if (status.ok()) acknowledged_.push_back(n);
    return status;
  }

  void expect_reads_work() {
    const auto found = client().search("words", vector(3), {});
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ((*found)[0].size(), 10U);
    EXPECT_EQ(client().get("words", number_ids(5), {true, true})->size(), 5U);
    EXPECT_EQ(health(address_, service::kSearchHealth), "SERVING");
  }

  void expect_acknowledged() {
    for (const std::uint64_t n : acknowledged_) {
      EXPECT_EQ(client().get("words", number_ids(kRows, kRows * n), {})->size(), kRows) << n;
    }
  }

  static bool soon(const std::function<bool()>& holds) {
    const absl::Time end = absl::Now() + kPatience;
    while (!holds() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(50));
    return holds();
  }

  void expect_writes_return(std::uint64_t n) {
    set_faults({});
    EXPECT_TRUE(soon([&] { return health(address_, service::kWritesHealth) == "SERVING"; }));
    EXPECT_TRUE(soon([&] { return write(n).ok(); }));
    EXPECT_NE(server_->metrics().find("turboquant_writable 1"), std::string::npos);
    expect_reads_work();
    expect_acknowledged();
  }

  static constexpr std::size_t kRows = 50;
  std::unique_ptr<Client> writer_;
  std::vector<std::uint64_t> acknowledged_;
};

TEST_F(Disk, FullRefusesWritesReadsGoOnAndWritesReturn) {
  std::uint64_t n = 10;
  set_faults({10'000, false});
  absl::Status refused;
  while (refused.ok() && n < 30) refused = write(n++);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_EQ(error_reason(refused), "DISK_FULL");
  for (int i = 0; i < 3; ++i) {
    const absl::Status later = write(n++);
    EXPECT_EQ(later.code(), absl::StatusCode::kResourceExhausted) << later;
    EXPECT_EQ(error_reason(later), "DISK_FULL");
  }
  EXPECT_EQ(error_reason(client().drop_collection("words")), "DISK_FULL");
  expect_reads_work();
  EXPECT_TRUE(soon([&] { return health(address_, service::kWritesHealth) == "NOT_SERVING"; }));
  EXPECT_NE(server_->metrics().find("turboquant_writable 0"), std::string::npos);
  expect_writes_return(n);
  EXPECT_GT(test::faults_injected(), 0U);
}

TEST_F(Disk, AFailedSyncIsNotAcknowledged) {
  std::uint64_t n = 10;
  ASSERT_TRUE(write(n++).ok());
  set_faults({-1, true});
  const absl::Status refused = write(n++);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
  EXPECT_EQ(error_reason(refused), "IO_ERROR");
  const absl::Status later = write(n++);
  EXPECT_EQ(later.code(), absl::StatusCode::kUnavailable) << later;
  expect_reads_work();
  expect_writes_return(n);
  // What was acknowledged is there after a start as well.
  ASSERT_TRUE(server_->stop().ok());
  service::ServerOptions options = usual_options();
  options.data_dir = folder_.file("tq_store_data");
  start(options);
  expect_acknowledged();
}

}  // namespace
}  // namespace turboquant::service_test
