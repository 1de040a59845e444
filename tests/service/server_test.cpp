// Every method through the client, health, deadlines, draining, logs and metrics.
#include "service/server.h"

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <turboquant/v1/search_service.pb.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "packing/streams.h"
#include "tests/service/raw_client.h"
#include "tests/service/server_fixture.h"

namespace turboquant::service_test {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;

class EveryMethod : public ServerTest {};

TEST_F(EveryMethod, InfoTellsTheLimits) {
  start();
  const auto info = client().info();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->max_message_bytes, std::uint64_t{64} << 20);
  EXPECT_EQ(info->max_k, 10'000U);
  EXPECT_FALSE(info->backend.empty());
}

TEST_F(EveryMethod, SearchGivesWhatTheStoreGives) {
  start();
  fill(500);
  SearchOptions options;
  options.k = 7;
  options.parts = {true, true};
  const auto one = client().search("words", vector(3), options);
  ASSERT_TRUE(one.ok()) << one.status();
  const auto two =
      client().search("words", absl::MakeConstSpan(vectors_).first(2 * kDimension), options);
  ASSERT_TRUE(two.ok()) << two.status();
  ASSERT_EQ(two->size(), 2U);
  ASSERT_EQ(one->size(), 1U);
  ASSERT_EQ((*one)[0].size(), 7U);
  const auto three = client().search("words", vector(3), options);
  ASSERT_TRUE(server_->stop().ok());

  auto store = Store::open(folder_.file("data"));
  ASSERT_TRUE(store.ok()) << store.status();
  const auto direct = (*(*store)->collection("words"))->search(vector(3), options);
  ASSERT_TRUE(direct.ok());
  for (std::size_t i = 0; i < 7; ++i) {
    const Hit& a = (*one)[0][i];
    const Hit& b = (*direct)[0][i];
    EXPECT_EQ(a.id, b.id);
    EXPECT_EQ(a.score, b.score);
    EXPECT_EQ(a.metadata, b.metadata);
    EXPECT_EQ(a.vector, b.vector);
    EXPECT_EQ((*three)[0][i].id, a.id);
  }
}

TEST_F(EveryMethod, SearchWithFilterRescoreAndExact) {
  start();
  fill(200);
  SearchOptions options;
  options.k = 200;
  options.filter = Filter::equal("lang", std::string("de"));
  options.parts.metadata = true;
  const auto found = client().search("words", vector(0), options);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ((*found)[0].size(), 100U);
  for (const Hit& hit : (*found)[0]) {
    EXPECT_EQ(std::get<std::string>(hit.metadata.at("lang")), "de");
  }
  options = {};
  options.k = 1;
  options.exact = true;
  const auto exact = client().search("words", vector(9), options);
  ASSERT_TRUE(exact.ok()) << exact.status();
  double length = 0;
  for (const float x : vector(9)) length += double{x} * x;
  EXPECT_NEAR((*exact)[0][0].score, length, 1e-3);
  options.exact = false;
  options.rescore = true;
  EXPECT_EQ((*client().search("words", vector(9), options))[0][0].score, (*exact)[0][0].score);
}

TEST_F(EveryMethod, RangeSearchGetScrollCount) {
  start();
  fill(100, DistanceMetric::kL2);
  RangeOptions range;
  range.radius = 1e9F;
  const auto all = client().range_search("words", vector(0), range);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ((*all)[0].size(), 100U);
  range.max_hits = 99;
  EXPECT_EQ(error_reason(client().range_search("words", vector(0), range).status()),
            "TOO_MANY_HITS");

  const std::vector<RecordId> ids = {std::uint64_t{7}, std::string("none"), std::uint64_t{3}};
  const auto records = client().get("words", ids, {true, true});
  ASSERT_TRUE(records.ok()) << records.status();
  ASSERT_EQ(records->size(), 2U);
  EXPECT_EQ((*records)[0].id, RecordId(std::uint64_t{7}));
  EXPECT_EQ((*records)[1].vector, std::vector<float>(vector(3).begin(), vector(3).end()));

  ScrollOptions scroll;
  scroll.limit = 30;
  std::size_t seen = 0;
  do {
    const auto page = client().scroll("words", scroll);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const Record& record : page->records)
      EXPECT_EQ(record.id, RecordId(std::uint64_t{seen++}));
    scroll.cursor = page->cursor;
  } while (!scroll.cursor.empty());
  EXPECT_EQ(seen, 100U);

  EXPECT_EQ(*client().count("words"), 100U);
  FilterRange below;
  below.lt = std::int64_t{10};
  EXPECT_EQ(*client().count("words", Filter::range("n", below)), 10U);
}

TEST_F(EveryMethod, WritesReplaceRefuseAndDelete) {
  start();
  fill(10);
  const auto fresh = random_vectors(2, 5);
  const RecordBatch batch{{std::uint64_t{3}, std::string("new")}, fresh, {}};
  EXPECT_EQ(error_reason(client().insert("words", batch).status()), "ID_EXISTS");
  const auto written = client().upsert("words", batch);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->inserted, 1U);
  EXPECT_EQ(written->updated, 1U);
  const auto fresh_other = random_vectors(1, 6);
  const RecordBatch other{{std::string("other")}, fresh_other, {}};
  EXPECT_TRUE(client().insert("words", other).ok());
  const std::vector<RecordId> gone = {std::string("other"), std::string("never")};
  EXPECT_EQ(client().remove("words", gone)->deleted, 1U);
  EXPECT_EQ(client().remove_if("words", Filter::equal("lang", std::string("en")))->deleted, 5U);
  EXPECT_EQ(*client().count("words"), 6U);
}

TEST_F(EveryMethod, NumbersTooLargeForTheWireAreRefusedNotCut) {
  start();
  fill(3);
  constexpr std::size_t kOver = std::size_t{1} << 32;
  SearchOptions search;
  search.k = kOver + 1;
  EXPECT_EQ(error_reason(client().search("words", vector(0), search).status()), "BAD_OPTION");
  ScrollOptions scroll;
  scroll.limit = kOver + 1;
  EXPECT_EQ(error_reason(client().scroll("words", scroll).status()), "TOO_MANY_ROWS");
  CollectionOptions options;
  options.dimension = kOver + 8;
  EXPECT_EQ(error_reason(client().create_collection("wide", options).status()), "BAD_OPTION");
}

TEST_F(EveryMethod, AnOperationIsDoneOnce) {
  start();
  fill(3);
  const auto fresh = random_vectors(1, 7);
  const RecordBatch batch{{std::string("a")}, fresh, {}};
  WriteOptions options;
  options.operation_id = "once";
  EXPECT_FALSE(client().insert("words", batch, options)->replayed);
  EXPECT_TRUE(client().insert("words", batch, options)->replayed);
  const RecordBatch other{{std::string("b")}, fresh, {}};
  EXPECT_EQ(error_reason(client().insert("words", other, options).status()), "OPERATION_MISMATCH");
  EXPECT_EQ(*client().count("words"), 4U);
}

TEST_F(EveryMethod, CollectionsAndAliases) {
  start();
  fill(5);
  EXPECT_EQ(client().collections()->size(), 1U);
  EXPECT_TRUE(client().set_alias("current", "words").ok());
  EXPECT_EQ(client().collection("current")->name, "words");
  EXPECT_EQ(client().collection("current")->options.fields.size(), 2U);
  EXPECT_EQ(client().aliases()->at(0).alias, "current");
  EXPECT_TRUE(client().drop_alias("current").ok());
  EXPECT_EQ(error_reason(client().drop_alias("current")), "ALIAS_NOT_FOUND");
  EXPECT_TRUE(client().compact_collection("words").ok());
  EXPECT_TRUE(client().drop_collection("words").ok());
  EXPECT_EQ(error_reason(client().collection("words").status()), "COLLECTION_NOT_FOUND");
}

TEST_F(EveryMethod, SnapshotsBringBackWhatWas) {
  start();
  fill(50);
  for (const SnapshotKind kind : {SnapshotKind::kBackup, SnapshotKind::kCheckpoint}) {
    const auto snapshot = client().create_snapshot(kind);
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    EXPECT_TRUE(client().verify_snapshot(snapshot->name).ok());
    const std::vector<RecordId> ids = number_ids(50);
    EXPECT_TRUE(client().remove("words", ids).ok());
    EXPECT_EQ(*client().count("words"), 0U);
    ASSERT_TRUE(client().restore_snapshot(snapshot->name).ok());
    EXPECT_EQ(*client().count("words"), 50U);
    EXPECT_EQ(client().snapshots()->size(), 1U);
    EXPECT_TRUE(client().delete_snapshot(snapshot->name).ok());
  }
  EXPECT_TRUE(client().verify_store().ok());
  EXPECT_EQ(error_reason(client().verify_snapshot("../../etc")), "SNAPSHOT_NOT_FOUND");
}

TEST_F(EveryMethod, PackedCollectionsAnswerAsOthersFromFewerBytes) {
  start();
  constexpr std::size_t kRows = 9'000;  // two full blocks and some
  vectors_ = random_vectors(kRows, 11);
  const RecordBatch batch{number_ids(kRows), vectors_, {}};
  CollectionOptions options;
  options.dimension = kDimension;
  for (const char* name : {"plain", "packed"}) {
    options.pack_codes = std::string(name) == "packed";
    const auto made = client().create_collection(name, options);
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_EQ(made->options.pack_codes, options.pack_codes);
    EXPECT_EQ(made->block_bytes, 0U);
    ASSERT_TRUE(client().upsert(name, batch).ok());
  }
  const auto check = [&](const char* when) {
    SCOPED_TRACE(when);
    const auto plain = client().collection("plain");
    const auto packed = client().collection("packed");
    ASSERT_TRUE(plain.ok()) << plain.status();
    ASSERT_TRUE(packed.ok()) << packed.status();
    EXPECT_FALSE(plain->options.pack_codes);
    EXPECT_TRUE(packed->options.pack_codes);
    const std::uint64_t codes = 2 * 4096 * plain->code_bytes;
    EXPECT_GT(plain->block_bytes, codes);
    if (packing::can_code()) {
      EXPECT_LT(packed->block_bytes, plain->block_bytes - codes / 25);
    }
    EXPECT_EQ(packed->records, kRows);
    const auto queries = absl::MakeConstSpan(vectors_).first(20 * kDimension);
    const auto a = client().search("plain", queries, {});
    const auto b = client().search("packed", queries, {});
    ASSERT_TRUE(a.ok()) << a.status();
    ASSERT_TRUE(b.ok()) << b.status();
    ASSERT_EQ(a->size(), b->size());
    for (std::size_t q = 0; q < a->size(); ++q) {
      ASSERT_EQ((*a)[q].size(), 10U);
      ASSERT_EQ((*b)[q].size(), 10U);
      for (std::size_t i = 0; i < 10; ++i) {
        EXPECT_EQ((*a)[q][i].id, (*b)[q][i].id);
        EXPECT_EQ((*a)[q][i].score, (*b)[q][i].score);
      }
    }
    EXPECT_THAT(server_->metrics(),
                HasSubstr("turboquant_collection_block_bytes{collection=\"packed\"} " +
                          std::to_string(packed->block_bytes) + "\n"));
  };
  check("as written");
  const auto backup = client().create_snapshot(SnapshotKind::kBackup);
  ASSERT_TRUE(backup.ok()) << backup.status();
  ASSERT_TRUE(server_->stop().ok());
  start();
  check("after a restart");
  ASSERT_TRUE(client().drop_collection("packed").ok());
  ASSERT_TRUE(client().restore_snapshot(backup->name).ok());
  check("after a restore");
  EXPECT_TRUE(client().verify_store().ok());
}

class Running : public ServerTest {};

TEST_F(Running, HealthIsPerService) {
  start();
  for (const char* name :
       {"", service::kSearchHealth, service::kAdminHealth, service::kWritesHealth}) {
    EXPECT_EQ(health(address_, name), "SERVING") << name;
  }
  EXPECT_EQ(health(address_, "nobody"), "NOT_FOUND");
}

TEST_F(Running, AnExpiredDeadlineIsToldAndNothingIsWritten) {
  start();
  fill(3);
  v1::UpsertRequest request;
  request.set_collection("words");
  request.mutable_batch()->add_ids()->set_name("late");
  for (std::size_t i = 0; i < kDimension; ++i) {
    request.mutable_batch()->mutable_vectors()->add_values(1);
  }
  RawOptions options;
  options.timeout = -absl::Seconds(1);
  EXPECT_EQ(
      raw_call(address_, "/turboquant.v1.SearchService/Upsert", request, nullptr, options).code,
      static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(*client().count("words"), 3U);
  SearchOptions search;
  search.control.deadline = absl::Now() - absl::Seconds(1);
  EXPECT_EQ(client().search("words", vector(0), search).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(Running, ACancelledSearchEnds) {
  start();
  fill(3);
  std::atomic<bool> cancelled{true};
  SearchOptions search;
  search.control.cancelled = &cancelled;
  EXPECT_EQ(client().search("words", vector(0), search).status().code(),
            absl::StatusCode::kCancelled);
}

TEST_F(Running, RequestsAreLoggedWithTheirIds) {
  service::ServerOptions options = usual_options();
  options.log_level = service::LogLevel::kWarning;
  options.front.slow_query = absl::ZeroDuration();  // everything is slow
  start(options);
  fill(3);
  RawOptions raw;
  raw.request_id = "abc-123";
  v1::CountRequest request;
  request.set_collection("words");
  const RawAnswer answer =
      raw_call(address_, "/turboquant.v1.SearchService/Count", request, nullptr, raw);
  EXPECT_EQ(answer.code, 0) << answer.message;
  EXPECT_EQ(answer.request_id, "abc-123");
  raw.request_id = "two words";
  EXPECT_THAT(
      raw_call(address_, "/turboquant.v1.SearchService/Count", request, nullptr, raw).request_id,
      Not(HasSubstr(" ")));
  ASSERT_TRUE(server_->stop().ok());
  EXPECT_THAT(log_.str(), HasSubstr("\"event\":\"slow request\",\"request_id\":\"abc-123\""));
}

TEST_F(Running, MetricsCountRequests) {
  start();
  fill(3);
  EXPECT_TRUE(client().search("words", vector(0), {}).ok());
  (void)client().search("nothing", vector(0), {});
  std::string text;
  for (int i = 0; i < 1000; ++i) {  // calls are counted just after their answers, in any order
    text = server_->metrics();
    if (text.find("turboquant_request_seconds_count{method=\"Search\"} 2") != std::string::npos &&
        text.find("code=\"OK\",method=\"Search\"} 1") != std::string::npos &&
        text.find("code=\"NOT_FOUND\",method=\"Search\"} 1") != std::string::npos) {
      break;
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_THAT(text, HasSubstr("turboquant_requests_total{code=\"OK\",method=\"Search\"} 1"));
  EXPECT_THAT(text, HasSubstr("turboquant_requests_total{code=\"NOT_FOUND\",method=\"Search\"} 1"));
  EXPECT_THAT(text, HasSubstr("turboquant_request_seconds_count{method=\"Search\"} 2"));
  EXPECT_THAT(text, HasSubstr("turboquant_collection_records{collection=\"words\"} 3"));
  EXPECT_THAT(text, HasSubstr("factory=\"TQ4\""));
  EXPECT_THAT(text, HasSubstr("turboquant_writable 1"));
  EXPECT_THAT(text, Not(HasSubstr("turboquant_fsyncs_total 0\n")));
}

TEST_F(Running, StoppingDrainsCallsUnderWay) {
  service::ServerOptions options = usual_options();
  options.drain = kPatience;
  start(options);
  fill(2000);
  std::atomic<int> good{0};
  std::atomic<int> refused{0};
  std::atomic<int> other{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      ClientOptions impatient = client_options();
      impatient.max_attempts = 1;
      Client mine(impatient);
      while (!stop) {
        const auto found = mine.search("words", vector(static_cast<std::size_t>(t)), {});
        if (found.ok()) {
          ++good;
        } else if (found.status().code() == absl::StatusCode::kUnavailable) {
          ++refused;
          return;
        } else {
          ADD_FAILURE() << found.status();
          ++other;
        }
      }
    });
  }
  while (good < 50) absl::SleepFor(absl::Milliseconds(1));
  ASSERT_TRUE(server_->stop().ok());
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(other, 0);
  EXPECT_THAT(log_.str(), HasSubstr("\"event\":\"stopped\""));
}

TEST_F(Running, StoppingDoesNotWaitForStalledCallsForever) {
  service::ServerOptions options = usual_options();
  options.drain = absl::Milliseconds(200);
  start(options);
  StalledCall stalled(address_, "/turboquant.v1.SearchService/Upsert");
  absl::SleepFor(absl::Milliseconds(100));
  const absl::Time begin = absl::Now();
  EXPECT_TRUE(server_->stop().ok());  // ctest ends it where it waits
  if (std::getenv("TURBOQUANT_TIMINGS") != nullptr) {
    EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
  }
}

// The time under which 99 of 100 searches stay, in milliseconds.
double slowest_but_one_percent(Client& client, absl::Span<const float> query, int searches) {
  std::vector<double> times;
  for (int i = 0; i < searches; ++i) {
    const absl::Time begin = absl::Now();
    EXPECT_TRUE(client.search("words", query, {}).ok());
    times.push_back(absl::ToDoubleMilliseconds(absl::Now() - begin));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() * 99 / 100];
}

TEST_F(Running, StalledClientsDoNotHoldUpOthers) {
  start();
  fill(100);
  const bool timed = std::getenv("TURBOQUANT_TIMINGS") != nullptr;  // of a quiet machine
  const int searches = timed ? 5000 : 20;
  (void)slowest_but_one_percent(client(), vector(0), searches);
  const double before = slowest_but_one_percent(client(), vector(0), searches);
  std::vector<std::unique_ptr<StalledCall>> stalled;
  stalled.reserve(100);
  for (int i = 0; i < 100; ++i) {
    stalled.push_back(
        std::make_unique<StalledCall>(address_, "/turboquant.v1.SearchService/Upsert"));
  }
  const double beside = slowest_but_one_percent(client(), vector(0), searches);
  if (timed) {
    std::printf("99%% of searches take less than %.3f ms alone, %.3f ms beside 100 stalled calls\n",
                before, beside);
    EXPECT_LT(beside, 2 * before);
  }
  const auto fresh_batch = random_vectors(1, 8);
  const RecordBatch batch{{std::string("a")}, fresh_batch, {}};
  EXPECT_TRUE(client().upsert("words", batch).ok());
}

TEST_F(Running, AFullQueueAsksToComeBack) {
  service::ServerOptions options = usual_options();
  options.compute_threads = 1;
  options.max_queued = 1;
  start(options);
  fill(5000);
  std::atomic<int> busy{0};
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  v1::SearchRequest request;
  request.set_collection("words");
  request.set_k(100);
  for (int i = 0; i < 1000; ++i) {
    for (const float x : vector(static_cast<std::size_t>(i))) {
      request.mutable_queries()->add_values(x);
    }
  }
  threads.reserve(12);
  for (int t = 0; t < 12; ++t) {
    threads.emplace_back([&] {
      // Until both were seen, however the threads get their turns.
      do {
        v1::SearchResponse response;
        const RawAnswer answer =
            raw_call(address_, "/turboquant.v1.SearchService/Search", request, &response);
        if (answer.code == 0) {
          ++good;
        } else if (answer.reason == "SERVER_BUSY" && !answer.pushback_ms.empty()) {
          ++busy;
        } else {
          ADD_FAILURE() << answer.code << " " << answer.message;
          return;
        }
      } while (good == 0 || busy == 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(good, 0);
  EXPECT_GT(busy, 0);
}

TEST_F(Running, AMemoryLimitRefusesWritesAndReadsGoOn) {
  service::ServerOptions options = usual_options();
  options.limits.memory_limit_bytes = std::uint64_t{1} << 20;
  start(options);
  fill(100);
  const auto vectors = random_vectors(5000, 2);
  absl::Status refused;
  for (std::uint64_t i = 0; i < 200 && refused.ok(); ++i) {
    WriteOptions write;
    write.durability = Durability::kMemory;
    refused =
        client().upsert("words", {number_ids(5000, 1000 + 5000 * i), vectors, {}}, write).status();
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(error_reason(refused), "MEMORY_LIMIT");
  EXPECT_TRUE(client().search("words", vector(0), {}).ok());
}

TEST_F(Running, TheClientRepeatsUntilTheServerIsBack) {
  start();
  fill(10);
  const service::ServerOptions again = [&] {
    service::ServerOptions options = usual_options();
    options.front.address = address_;  // the same port
    return options;
  }();
  ASSERT_TRUE(server_->stop().ok());
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(300));
    auto server = service::Server::start(again, log_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  });
  ClientOptions options = client_options();
  options.max_attempts = 50;
  Client patient(options);
  const auto fresh_batch = random_vectors(1, 8);
  const RecordBatch batch{{std::string("a")}, fresh_batch, {}};
  const auto written = patient.insert("words", batch);
  later.join();
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(*patient.count("words"), 11U);
}

// Failures make gRPC's own pauses between tries to connect longer; they do not hold up a client.
TEST_F(Running, AClientFindsAServerThatIsBackAfterManyFailures) {
  start();
  fill(3);
  service::ServerOptions again = usual_options();
  again.front.address = address_;  // the same port
  ASSERT_TRUE(server_->stop().ok());
  ClientOptions options = client_options();
  options.max_attempts = 6;
  Client mine(options);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(mine.count("words").status().code(), absl::StatusCode::kUnavailable);
  }
  auto server = service::Server::start(again, log_);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  const absl::Time begin = absl::Now();
  auto found = mine.count("words");
  // A busy machine may take longer to connect than one call's repetitions last.
  for (int i = 0; i < 20 && !found.ok(); ++i) found = mine.count("words");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, 3U);
  if (std::getenv("TURBOQUANT_TIMINGS") != nullptr) {
    EXPECT_LT(absl::Now() - begin, absl::Milliseconds(500));
  }
}

}  // namespace
}  // namespace turboquant::service_test
