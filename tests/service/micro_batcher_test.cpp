// Searches of one query that arrive together become one, and get what they would have got alone.
#include "service/micro_batcher.h"

#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "service/api.h"
#include "service/worker_pool.h"
#include "tests/service/server_fixture.h"

namespace turboquant::service_test {
namespace {

using service::BatchLimits;
using service::MicroBatcher;
using service::WorkerPool;

class Batcher : public testing::Test {
 protected:
  void SetUp() override {
    auto store = Store::open(folder_.file("data"));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    CollectionOptions options;
    options.dimension = kDimension;
    auto made = store_->create_collection("words", options);
    ASSERT_TRUE(made.ok());
    collection_ = *made;
    vectors_ = random_vectors(3000, 1);
    ASSERT_TRUE(collection_->upsert({number_ids(3000), vectors_, {}}).ok());
  }

  MicroBatcher::Query query(std::size_t i, MicroBatcher::Done done) {
    MicroBatcher::Query made;
    made.vector.assign(vectors_.begin() + static_cast<std::ptrdiff_t>(i * kDimension),
                       vectors_.begin() + static_cast<std::ptrdiff_t>((i + 1) * kDimension));
    made.deadline = absl::InfiniteFuture();
    made.done = std::move(done);
    return made;
  }

  TemporaryFolder folder_;
  std::unique_ptr<Store> store_;
  std::shared_ptr<Collection> collection_;
  std::vector<float> vectors_;
};

TEST_F(Batcher, AnswersAreThoseOfSearchesAlone) {
  SearchOptions options;
  options.k = 5;
  std::vector<std::vector<Hits>> alone;
  for (std::size_t i = 0; i < 300; ++i) {
    alone.push_back(*collection_->search(
        absl::MakeConstSpan(vectors_).subspan(i * kDimension, kDimension), options));
  }
  std::vector<absl::StatusOr<std::vector<Hits>>> answers(300, absl::UnknownError("none"));
  std::atomic<int> done{0};
  std::uint64_t batches = 0;
  {
    WorkerPool pool(2, 100, true);
    MicroBatcher batcher(pool, BatchLimits());
    // Most queries are there before the first is searched, the others come meanwhile.
    std::mutex gate;
    gate.lock();
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE(pool.submit([&] { const std::lock_guard lock(gate); }));
    }
    std::atomic<int> handed{0};
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (std::size_t i = t; i < 300; i += 3) {
          ASSERT_TRUE(batcher.search(collection_, options, query(i, [&, i](auto found) {
                                       answers[i] = std::move(found);
                                       ++done;
                                     })));
          ++handed;
        }
      });
    }
    while (handed < 200) absl::SleepFor(absl::Milliseconds(1));
    gate.unlock();
    for (std::thread& thread : threads) thread.join();
    while (done < 300) absl::SleepFor(absl::Milliseconds(1));
    batches = batcher.batches();
    EXPECT_EQ(batcher.queries(), 300U);
  }
  EXPECT_LE(batches, 200 / BatchLimits().max_queries + 1 + 100);  // they were put together
  for (std::size_t i = 0; i < 300; ++i) {
    ASSERT_TRUE(answers[i].ok()) << answers[i].status();
    ASSERT_EQ(answers[i]->size(), 1U);
    ASSERT_EQ((*answers[i])[0].size(), 5U);
    for (std::size_t j = 0; j < 5; ++j) {
      EXPECT_EQ((*answers[i])[0][j].id, alone[i][0][j].id);
      EXPECT_EQ((*answers[i])[0][j].score, alone[i][0][j].score);
    }
  }
}

TEST_F(Batcher, DifferentOptionsAreNotMixed) {
  std::atomic<int> done{0};
  std::atomic<int> right{0};
  WorkerPool pool(2, 100, true);
  MicroBatcher batcher(pool, BatchLimits());
  for (std::size_t i = 0; i < 60; ++i) {
    SearchOptions options;
    options.k = 1 + i % 3;
    ASSERT_TRUE(batcher.search(collection_, options, query(i, [&, i](auto found) {
                                 if (found.ok() && (*found)[0].size() == 1 + i % 3) ++right;
                                 ++done;
                               })));
  }
  while (done < 60) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(right, 60);
}

TEST_F(Batcher, WhatNobodyWaitsForIsNotSearched) {
  std::atomic<int> done{0};
  absl::StatusCode late_code{};
  absl::StatusCode gone_code{};
  WorkerPool pool(1, 100, true);
  MicroBatcher batcher(pool, BatchLimits());
  auto late = query(0, [&](auto found) {
    late_code = found.status().code();
    ++done;
  });
  late.deadline = absl::Now() - absl::Seconds(1);
  const std::atomic<bool> cancelled{true};
  auto gone = query(0, [&](auto found) {
    gone_code = found.status().code();
    ++done;
  });
  gone.cancelled = &cancelled;
  ASSERT_TRUE(batcher.search(collection_, {}, std::move(late)));
  ASSERT_TRUE(batcher.search(collection_, {}, std::move(gone)));
  while (done < 2) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(late_code, absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(gone_code, absl::StatusCode::kCancelled);
  EXPECT_EQ(batcher.queries(), 0U);
}

// gRPC has two threads for all calls: they hand single queries to the batcher, and never scan.
TEST_F(Batcher, GrpcsThreadsTakeSingleQueriesAlone) {
  WorkerPool pool(1, 100, true);
  MicroBatcher batcher(pool, BatchLimits());
  service::Api api(*store_, batcher, service::Limits());
  std::vector<service::Method> methods = api.methods();
  const auto search = std::find_if(methods.begin(), methods.end(),
                                   [](const service::Method& one) { return one.quick != nullptr; });
  ASSERT_NE(search, methods.end());
  EXPECT_EQ(search->path, "/turboquant.v1.SearchService/Search");
  std::atomic<int> answers{0};
  std::atomic<int> good{0};
  service::Call call;
  call.caller = std::make_shared<const service::Caller>();
  const auto taken = [&](const v1::SearchRequest& request) {
    return search->quick(call, request, [&](const auto& answer) {
      if (answer.ok()) ++good;
      ++answers;
    });
  };
  v1::SearchRequest request;
  request.set_collection("words");
  request.set_k(3);
  for (std::size_t i = 0; i < kDimension; ++i) request.mutable_queries()->add_values(1);
  EXPECT_TRUE(taken(request));
  v1::SearchRequest filtered = request;
  filtered.mutable_filter()->mutable_exists()->set_field("n");
  EXPECT_FALSE(taken(filtered));
  v1::SearchRequest two = request;
  for (std::size_t i = 0; i < kDimension; ++i) two.mutable_queries()->add_values(1);
  EXPECT_FALSE(taken(two));
  v1::SearchRequest bad = request;
  bad.set_k(0);
  EXPECT_TRUE(taken(bad));  // refused at once
  while (answers < 2) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(good, 1);
}

TEST_F(Batcher, TooManyWaitingAreRefused) {
  BatchLimits limits;
  limits.max_waiting = 10;
  std::atomic<int> done{0};
  int taken = 0;
  {
    WorkerPool pool(1, 100, true);
    MicroBatcher batcher(pool, limits);
    std::mutex gate;
    gate.lock();
    ASSERT_TRUE(pool.submit([&] { const std::lock_guard lock(gate); }));  // keeps the thread busy
    for (std::size_t i = 0; i < 20; ++i) {
      if (batcher.search(collection_, {}, query(i, [&](const auto&) { ++done; }))) ++taken;
    }
    gate.unlock();
    while (done < taken) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(taken, 10);
}

TEST(Workers, TheQueueIsBounded) {
  std::atomic<int> ran{0};
  int taken = 0;
  {
    WorkerPool pool(1, 3, false);
    std::mutex gate;
    gate.lock();
    std::atomic<bool> begun{false};
    ASSERT_TRUE(pool.submit([&] {
      begun = true;
      const std::lock_guard lock(gate);
    }));
    while (!begun) absl::SleepFor(absl::Milliseconds(1));
    for (int i = 0; i < 10; ++i) {
      if (pool.submit([&] { ++ran; })) ++taken;
    }
    EXPECT_EQ(pool.queued(), 3U);
    gate.unlock();
  }
  EXPECT_EQ(taken, 3);
  EXPECT_EQ(ran, 3);  // what was queued ran before the end
}

}  // namespace
}  // namespace turboquant::service_test
