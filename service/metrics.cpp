#include "service/metrics.h"

#include <absl/strings/str_cat.h>
#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <utility>

#include "service/errors.h"
#include "service/version.h"

namespace turboquant::service {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr std::size_t kCodes = 17;

const prometheus::Histogram::BucketBoundaries kSeconds = {
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10};

MetricFamily family(const char* name, const char* help, MetricType type) {
  MetricFamily made;
  made.name = name;
  made.help = help;
  made.type = type;
  return made;
}

void add(MetricFamily& family, double value, std::vector<ClientMetric::Label> labels = {}) {
  ClientMetric metric;
  metric.label = std::move(labels);
  (family.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  family.metric.push_back(std::move(metric));
}

const char* metric_name(DistanceMetric metric) {
  constexpr std::array<const char*, 3> kNames = {"inner_product", "cosine", "l2"};
  return kNames[static_cast<std::size_t>(metric)];
}

const char* originals_name(Originals originals) {
  constexpr std::array<const char*, 3> kNames = {"none", "fp16", "fp32"};
  return kNames[static_cast<std::size_t>(originals)];
}

// Reads the server's state when /metrics is asked for.
class StateCollector final : public prometheus::Collectable {
 public:
  explicit StateCollector(std::function<Gauges()> gauges) : gauges_(std::move(gauges)) {}

  std::vector<MetricFamily> Collect() const override {
    const Gauges state = gauges_();
    std::vector<MetricFamily> families;
    const auto single = [&](const char* name, const char* help, MetricType type, auto value) {
      add(families.emplace_back(family(name, help, type)), static_cast<double>(value));
    };
    const auto gauge = [&](const char* name, const char* help, auto value) {
      single(name, help, MetricType::Gauge, value);
    };
    const auto counter = [&](const char* name, const char* help, auto value) {
      single(name, help, MetricType::Counter, value);
    };
    MetricFamily& queue = families.emplace_back(
        family("turboquant_queued_tasks", "Tasks that wait for a thread.", MetricType::Gauge));
    add(queue, static_cast<double>(state.compute_queue), {{"workers", "compute"}});
    add(queue, static_cast<double>(state.write_queue), {{"workers", "writes"}});
    add(queue, static_cast<double>(state.admin_queue), {{"workers", "admin"}});
    counter("turboquant_search_batches_total", "Searches made for single queries.", state.batches);
    counter("turboquant_batched_queries_total", "Single queries in those searches.",
            state.batched_queries);
    gauge("turboquant_writable", "1 when writes are taken, 0 when they are refused.",
          state.writable ? 1 : 0);
    gauge("turboquant_memory_bytes", "Memory of all collections.", state.store.memory_bytes);
    gauge("turboquant_disk_bytes", "Live files of the database.", state.store.disk_bytes);
    counter("turboquant_fsyncs_total", "Syncs of the log.", state.store.fsyncs);
    counter("turboquant_fsync_seconds_total", "Time spent in them.", state.store.fsync_seconds);
    counter("turboquant_recoveries_total", "Times the database was opened again after an error.",
            state.store.recoveries);
    add_collections(state, families);
    return families;
  }

 private:
  static void add_collections(const Gauges& state, std::vector<MetricFamily>& families) {
    MetricFamily records =
        family("turboquant_collection_records", "Records that can be found.", MetricType::Gauge);
    MetricFamily dead =
        family("turboquant_collection_dead_rows",
               "Deleted or replaced rows that are not reclaimed yet.", MetricType::Gauge);
    MetricFamily memory =
        family("turboquant_collection_memory_bytes", "Memory for searches.", MetricType::Gauge);
    MetricFamily blocks = family("turboquant_collection_block_bytes",
                                 "Full blocks of codes on disk.", MetricType::Gauge);
    MetricFamily settings = family("turboquant_collection_info",
                                   "What recall depends on, as labels.", MetricType::Gauge);
    for (const CollectionInfo& info : state.collections) {
      const std::vector<ClientMetric::Label> label = {{"collection", info.name}};
      add(records, static_cast<double>(info.records), label);
      add(dead, static_cast<double>(info.dead_rows), label);
      add(memory, static_cast<double>(info.memory_bytes), label);
      add(blocks, static_cast<double>(info.block_bytes), label);
      add(settings, 1,
          {{"collection", info.name},
           {"factory", info.options.factory},
           {"metric", metric_name(info.options.metric)},
           {"originals", originals_name(info.options.originals)},
           {"dimension", absl::StrCat(info.options.dimension)}});
    }
    for (MetricFamily* one : {&records, &dead, &memory, &blocks, &settings}) {
      if (!one->metric.empty()) families.push_back(std::move(*one));
    }
  }

  std::function<Gauges()> gauges_;
};

struct MethodMetrics {
  prometheus::Histogram* seconds = nullptr;
  prometheus::Histogram* queued = nullptr;
  prometheus::Counter* rows = nullptr;
  prometheus::Gauge* running = nullptr;
  std::array<prometheus::Counter*, kCodes> codes{};
};

}  // namespace

struct Metrics::Parts {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<StateCollector> state;
  std::vector<MethodMetrics> methods;
  std::unique_ptr<prometheus::Exposer> exposer;  // last: it ends before what it reads
};

Metrics::Metrics(const std::vector<std::string>& methods, std::function<Gauges()> gauges)
    : parts_(std::make_unique<Parts>()) {
  prometheus::Registry& registry = *parts_->registry;
  auto& seconds = prometheus::BuildHistogram()
                      .Name("turboquant_request_seconds")
                      .Help("Time from a request's headers to its answer.")
                      .Register(registry);
  auto& queued = prometheus::BuildHistogram()
                     .Name("turboquant_request_queue_seconds")
                     .Help("Part of it spent waiting for a thread.")
                     .Register(registry);
  auto& rows = prometheus::BuildCounter()
                   .Name("turboquant_request_rows_total")
                   .Help("Queries, ids or records in requests.")
                   .Register(registry);
  auto& running = prometheus::BuildGauge()
                      .Name("turboquant_requests_running")
                      .Help("Requests under way.")
                      .Register(registry);
  auto& codes = prometheus::BuildCounter()
                    .Name("turboquant_requests_total")
                    .Help("Requests by method and gRPC code.")
                    .Register(registry);
  prometheus::BuildGauge()
      .Name("turboquant_build_info")
      .Help("Version, as a label.")
      .Register(registry)
      .Add({{"version", kVersion}})
      .Set(1);
  for (const std::string& path : methods) {
    const prometheus::Labels label = {{"method", path.substr(path.rfind('/') + 1)}};
    MethodMetrics& made = parts_->methods.emplace_back();
    made.seconds = &seconds.Add(label, kSeconds);
    made.queued = &queued.Add(label, kSeconds);
    made.rows = &rows.Add(label);
    made.running = &running.Add(label);
    for (std::size_t code = 0; code < kCodes; ++code) {
      prometheus::Labels labels = label;
      labels["code"] = code_name(static_cast<int>(code));
      made.codes[code] = &codes.Add(labels);
    }
  }
  parts_->state = std::make_shared<StateCollector>(std::move(gauges));
}

Metrics::~Metrics() = default;

absl::Status Metrics::serve(const std::string& address) {
  try {
    parts_->exposer = std::make_unique<prometheus::Exposer>(address, 1);
    parts_->exposer->RegisterCollectable(parts_->registry);
    parts_->exposer->RegisterCollectable(parts_->state);
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address, ": ", error.what()));
  }
  return absl::OkStatus();
}

void Metrics::call_started(std::size_t method) { parts_->methods[method].running->Increment(); }

void Metrics::count_call(std::size_t method, int code, double seconds, double queued,
                         std::uint64_t rows) {
  MethodMetrics& one = parts_->methods[method];
  one.running->Decrement();
  one.seconds->Observe(seconds);
  one.queued->Observe(queued);
  one.rows->Increment(static_cast<double>(rows));
  one.codes[code >= 0 && code < static_cast<int>(kCodes) ? static_cast<std::size_t>(code) : 2]
      ->Increment();
}

std::string Metrics::text() const {
  auto families = parts_->registry->Collect();
  for (auto& one : parts_->state->Collect()) families.push_back(std::move(one));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace turboquant::service
