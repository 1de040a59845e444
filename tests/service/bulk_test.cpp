// Bulk streams: order, windows, refused batches, broken connections.
#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "service/server.h"
#include "tests/service/server_fixture.h"

namespace turboquant::service_test {
namespace {

class Bulk : public ServerTest {
 protected:
  BulkOptions collecting() {
    BulkOptions options;
    options.durability = Durability::kWal;
    options.acknowledged = [this](const BulkStream::Acknowledgement& one) {
      const std::lock_guard lock(mutex_);
      acknowledged_.push_back(one);
    };
    return options;
  }

  std::mutex mutex_;
  std::vector<BulkStream::Acknowledgement> acknowledged_;
};

TEST_F(Bulk, EveryBatchIsAcknowledgedInOrder) {
  start();
  fill(0);
  auto stream = client().bulk_add("words", collecting());
  const auto vectors = random_vectors(50, 2);
  for (std::uint64_t i = 0; i < 100; ++i) {
    const auto sent = stream->send({number_ids(50, 50 * i), vectors, {}});
    ASSERT_TRUE(sent.ok()) << sent.status();
    EXPECT_EQ(*sent, i);
  }
  EXPECT_TRUE(stream->finish().ok());
  EXPECT_GE(stream->window(), 1U);
  ASSERT_EQ(acknowledged_.size(), 100U);
  for (std::size_t i = 0; i < 100; ++i) {
    EXPECT_EQ(acknowledged_[i].sequence, i);
    ASSERT_TRUE(acknowledged_[i].result.ok()) << acknowledged_[i].result.status();
    EXPECT_EQ(acknowledged_[i].result->inserted, 50U);
  }
  EXPECT_EQ(*client().count("words"), 5000U);
}

TEST_F(Bulk, ARefusedBatchChangesNothingAndTheStreamGoesOn) {
  start();
  fill(0);
  BulkOptions options = collecting();
  options.insert = true;
  auto stream = client().bulk_add("words", options);
  const auto vectors = random_vectors(2, 2);
  auto spoiled = vectors;
  spoiled[3] = NAN;
  EXPECT_TRUE(stream->send({number_ids(2, 0), vectors, {}}).ok());
  EXPECT_TRUE(stream->send({number_ids(2, 10), spoiled, {}}).ok());
  EXPECT_TRUE(stream->send({number_ids(2, 1), vectors, {}}).ok());  // 1 exists
  EXPECT_TRUE(stream->send({number_ids(2, 20), vectors, {}}).ok());
  EXPECT_TRUE(stream->finish().ok());
  ASSERT_EQ(acknowledged_.size(), 4U);
  EXPECT_TRUE(acknowledged_[0].result.ok());
  EXPECT_EQ(error_reason(acknowledged_[1].result.status()), "BAD_VECTOR");
  EXPECT_EQ(error_reason(acknowledged_[2].result.status()), "ID_EXISTS");
  EXPECT_TRUE(acknowledged_[3].result.ok());
  EXPECT_EQ(*client().count("words"), 4U);
}

TEST_F(Bulk, AStreamSurvivesARestartAndNothingIsWrittenTwice) {
  start();
  fill(0);
  ClientOptions patient = client_options();
  patient.max_attempts = 100;
  Client mine(patient);
  BulkOptions options = collecting();
  options.insert = true;  // a batch that is written twice would be refused
  options.durability = Durability::kFsync;
  auto stream = mine.bulk_add("words", options);
  service::ServerOptions again = usual_options();
  again.front.address = address_;
  again.drain = absl::ZeroDuration();
  std::thread restart([&] {
    absl::SleepFor(absl::Milliseconds(100));
    ASSERT_TRUE(server_->stop().ok());
    auto server = service::Server::start(again, log_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  });
  const auto vectors = random_vectors(20, 2);
  for (std::uint64_t i = 0; i < 200; ++i) {
    ASSERT_TRUE(stream->send({number_ids(20, 20 * i), vectors, {}}).ok());
    absl::SleepFor(absl::Milliseconds(1));
  }
  const absl::Status finished = stream->finish();
  restart.join();
  EXPECT_TRUE(finished.ok()) << finished;
  EXPECT_EQ(acknowledged_.size(), 200U);
  for (const auto& one : acknowledged_) EXPECT_TRUE(one.result.ok()) << one.result.status();
  EXPECT_EQ(*mine.count("words"), 4000U);
}

TEST_F(Bulk, AnAbandonedStreamEnds) {
  start();
  fill(0);
  auto stream = client().bulk_add("words", collecting());
  const auto vectors = random_vectors(10, 2);
  for (std::uint64_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(stream->send({number_ids(10, 10 * i), vectors, {}}).ok());
  }
  stream.reset();
  EXPECT_TRUE(client().count("words").ok());
}

TEST_F(Bulk, AServerThatIsGoneIsAnError) {
  start();
  fill(0);
  ASSERT_TRUE(server_->stop().ok());
  auto stream = client().bulk_add("words", collecting());
  const auto vectors = random_vectors(10, 2);
  absl::Status status;
  for (std::uint64_t i = 0; i < 100 && status.ok(); ++i) {
    status = stream->send({number_ids(10, 10 * i), vectors, {}}).status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

}  // namespace
}  // namespace turboquant::service_test
