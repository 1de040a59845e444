// A collection on a turboquant-server: made, filled, asked, dropped.
//
//   turboquant-server --data-dir data &
//   client_example [HOST:PORT]
#include <turboquant/client.h>

#include <iostream>
#include <vector>

namespace {

int fail(const absl::Status& status) {
  std::cerr << status << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  turboquant::ClientOptions options;
  if (argc > 1) options.address = argv[1];
  options.timeout = absl::Seconds(5);
  turboquant::Client client(options);
  const auto info = client.info();
  if (!info.ok() && argc == 1) {
    std::cout << "No server on " << options.address << "; start turboquant-server.\n";
    return 0;
  }
  if (!info.ok()) return fail(info.status());
  std::cout << "turboquant-server " << info->version << ", kernels " << info->backend << "\n";

  turboquant::CollectionOptions made;
  made.dimension = 8;
  made.metric = turboquant::DistanceMetric::kCosine;
  made.fields = {{"color", turboquant::FieldType::kString}};
  if (const auto created = client.create_collection("client_example", made); !created.ok()) {
    return fail(created.status());
  }
  const std::vector<float> vectors = {1, 0, 0, 0, 1, 0, 0, 0,   //
                                      0, 1, 0, 0, 0, 1, 0, 0,   //
                                      1, 1, 0, 0, 1, 0, 0, 0};  // [3][8]
  turboquant::RecordBatch batch;
  batch.ids = {std::string("first"), std::string("second"), std::uint64_t{3}};
  batch.vectors = vectors;
  batch.metadata = {{{"color", std::string("red")}}, {{"color", std::string("blue")}}, {}};
  // On the server's disk when this returns.
  if (const auto written = client.upsert("client_example", batch); !written.ok()) {
    return fail(written.status());
  }
  turboquant::SearchOptions search;
  search.k = 1;
  search.filter = turboquant::Filter::equal("color", std::string("blue"));
  const auto found = client.search("client_example", absl::MakeConstSpan(vectors).first(8), search);
  if (!found.ok()) return fail(found.status());
  for (const turboquant::Hit& hit : found->at(0)) {
    std::cout << std::get<std::string>(hit.id) << " " << hit.score << "\n";
  }
  const absl::Status dropped = client.drop_collection("client_example");
  return dropped.ok() ? 0 : fail(dropped);
}
