// Requests of any bytes to every method of the server, over a real store in memory. The first byte
// picks the method. Each is answered once, an error has a reason and a sentence, and what is taken
// leaves a store that can be verified.
#include <absl/time/clock.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "service/api.h"
#include "service/micro_batcher.h"
#include "service/worker_pool.h"
#include "turboquant/store.h"

namespace turboquant::service {
namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

class Served {
 public:
  Served() {
    std::string pattern = "/dev/shm/tq-fuzz-XXXXXX";
    require(::mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    StoreOptions options;
    options.background = false;
    options.memory_limit_bytes = std::uint64_t{64} << 20;
    auto store = Store::open(folder_, options);
    require(store.ok());
    store_ = *std::move(store);
    limits_.max_rows = 64;
    limits_.max_k = 64;
    limits_.max_dimension = 64;
    limits_.max_collections = 4;
    batcher_ = std::make_unique<MicroBatcher>(pool_, BatchLimits());
    api_ = std::make_unique<Api>(*store_, *batcher_, limits_);
    for (Method& method : api_->methods()) {
      // Snapshots are made of files: too slow here, and their requests hold no more than a name.
      if (method.path.find("Snapshot") == std::string::npos) methods_.push_back(std::move(method));
    }
    make_words();
  }
  ~Served() {
    api_.reset();
    batcher_.reset();
    store_.reset();
    std::filesystem::remove_all(folder_);
  }

  void call(const std::uint8_t* data, std::size_t size) {
    Method& method = methods_[data[0] % methods_.size()];
    Call call;
    call.caller = std::make_shared<const Caller>();
    Message* const message = method.request->New(&call.arena);
    if (!message->ParseFromArray(data + 1, static_cast<int>(size - 1))) return;
    std::atomic<int> answers{0};
    method.handle(call, *message, [&](absl::StatusOr<const Message*> result) {
      if (!result.ok()) {
        require(!error_reason(result.status()).empty());
        require(!result.status().message().empty());
      } else {
        require((*result)->ByteSizeLong() < limits_.max_message_bytes);
      }
      ++answers;
    });
    while (answers == 0) absl::SleepFor(absl::Microseconds(20));  // batched searches
    require(answers == 1);
    if (++calls_ % 5000 == 0) {
      require(store_->verify().ok());
      make_words();
    }
  }

 private:
  // The collection that requests of the corpus name, as it was.
  void make_words() {
    for (const CollectionInfo& info : store_->collections()) {
      require(store_->drop_collection(info.name).ok());
    }
    CollectionOptions options;
    options.dimension = 4;
    options.metric = DistanceMetric::kCosine;
    options.originals = Originals::kFp16;
    options.fields = {{"n", FieldType::kInt64}, {"s", FieldType::kString}};
    auto words = store_->create_collection("w", options);
    require(words.ok());
    const std::vector<float> x = {1, 2, 3, 4, 4, 3, 2, 1, -1, 0, 1, 0};
    const RecordBatch batch{{std::uint64_t{1}, std::uint64_t{2}, std::string("a")},
                            x,
                            {{{"n", std::int64_t{1}}}, {{"s", std::string("x")}}, {}}};
    require((*words)->upsert(batch).ok());
  }

  std::string folder_;
  std::unique_ptr<Store> store_;
  Limits limits_;
  WorkerPool pool_{1, 64, false};
  std::unique_ptr<MicroBatcher> batcher_;
  std::unique_ptr<Api> api_;
  std::vector<Method> methods_;
  std::uint64_t calls_ = 0;
};

}  // namespace
}  // namespace turboquant::service

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static turboquant::service::Served served;
  if (size > 0) served.call(data, size);
  return 0;
}
