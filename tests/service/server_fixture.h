// A server in this process over a store in a temporary folder, and a client of it.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "service/server.h"
#include "turboquant/client.h"

namespace turboquant::service_test {

constexpr std::size_t kDimension = 16;
// Of calls that have to succeed. A machine may stand still for a minute; ctest ends what hangs.
constexpr absl::Duration kPatience = absl::Minutes(10);

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tq-service-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data()) == nullptr ? std::string() : pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(file(name)) << text;
    return file(name);
  }

 private:
  std::string path_;
};

/// [n][dimension] normal numbers; the same for the same seed.
inline std::vector<float> random_vectors(std::size_t n, unsigned seed,
                                         std::size_t dimension = kDimension) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> vectors(n * dimension);
  for (float& x : vectors) x = normal(random);
  return vectors;
}

inline std::vector<RecordId> number_ids(std::size_t n, std::uint64_t first = 0) {
  std::vector<RecordId> ids;
  for (std::size_t i = 0; i < n; ++i) ids.emplace_back(first + i);
  return ids;
}

class ServerTest : public testing::Test {
 protected:
  void TearDown() override {
    client_.reset();
    if (server_ != nullptr) {
      EXPECT_TRUE(server_->stop().ok());
    }
  }

  service::ServerOptions usual_options() const {
    service::ServerOptions options;
    options.data_dir = folder_.file("data");
    options.front.address = "127.0.0.1:0";
    options.compute_threads = 2;
    options.write_threads = 4;
    return options;
  }

  void start(const service::ServerOptions& options) {
    auto server = service::Server::start(options, log_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    address_ = "127.0.0.1:" + std::to_string(server_->port());
    client_ = std::make_unique<Client>(client_options());
  }
  void start() { start(usual_options()); }

  ClientOptions client_options(const std::string& token = {}) const {
    ClientOptions options;
    options.address = address_;
    options.token = token;
    options.timeout = kPatience;
    options.max_attempts = 2;
    return options;
  }

  Client& client() { return *client_; }

  /// Makes "words" with the fields n (int64) and lang (string), and n records.
  void fill(std::size_t n, DistanceMetric metric = DistanceMetric::kInnerProduct,
            Originals originals = Originals::kFp32, const std::string& token = {}) {
    Client admin(client_options(token));
    CollectionOptions options;
    options.dimension = kDimension;
    options.metric = metric;
    options.originals = originals;
    options.fields = {{"n", FieldType::kInt64}, {"lang", FieldType::kString}};
    const auto made = admin.create_collection("words", options);
    ASSERT_TRUE(made.ok()) << made.status();
    vectors_ = random_vectors(n, 1);
    if (n == 0) return;
    RecordBatch batch{number_ids(n), vectors_, {}};
    for (std::size_t i = 0; i < n; ++i) {
      batch.metadata.push_back(
          {{"n", static_cast<std::int64_t>(i)}, {"lang", std::string(i % 2 == 0 ? "en" : "de")}});
    }
    const auto written = admin.upsert("words", batch);
    ASSERT_TRUE(written.ok()) << written.status();
    ASSERT_EQ(written->inserted, n);
  }

  absl::Span<const float> vector(std::size_t i) const {
    return absl::MakeConstSpan(vectors_).subspan(i * kDimension, kDimension);
  }

  TemporaryFolder folder_;
  std::ostringstream log_;
  std::unique_ptr<service::Server> server_;
  std::unique_ptr<Client> client_;
  std::string address_;
  std::vector<float> vectors_;
};

}  // namespace turboquant::service_test
