// Client: what is sent, and when it is sent again. transport.cpp does the sending.
#include "turboquant/client.h"

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <utility>

#include "service/bulk_stream.h"
#include "service/client_impl.h"
#include "service/convert.h"
#include "service/errors.h"
#include "service/transport.h"

namespace turboquant {

using service::from_proto;
using service::Outcome;
using service::to_proto;
using service::Transport;

namespace service {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(50);
constexpr absl::Duration kLongestPause = absl::Seconds(5);

std::string random_prefix() {
  std::random_device device;
  return absl::StrCat(absl::Hex(device(), absl::kZeroPad8), absl::Hex(device(), absl::kZeroPad8));
}

}  // namespace

bool worth_repeating(const Outcome& outcome) {
  return outcome.status.code() == absl::StatusCode::kUnavailable ||
         (outcome.status.code() == absl::StatusCode::kResourceExhausted &&
          outcome.pushback > absl::ZeroDuration());
}

absl::Duration pause_before(int attempt, absl::Duration pushback) {
  thread_local std::minstd_rand random{std::random_device{}()};
  const double jitter = std::uniform_real_distribution<double>(0.5, 1.0)(random);
  const absl::Duration longest =
      std::min(kLongestPause, kFirstPause * static_cast<double>(1 << std::min(attempt, 10)));
  return std::max(pushback, longest * jitter);
}

ClientImpl::ClientImpl(const ClientOptions& chosen)
    : options(chosen), transport(make_transport(chosen)), prefix_(random_prefix()) {}

std::string ClientImpl::operation_id() {
  return absl::StrCat(prefix_, "-", next_operation_.fetch_add(1, std::memory_order_relaxed));
}

// One call with its repetitions. Lives in the callbacks that it hands out.
class RepeatedCall : public std::enable_shared_from_this<RepeatedCall> {
 public:
  RepeatedCall(ClientImpl& client, std::string path, const google::protobuf::Message& request,
               google::protobuf::Message* response, absl::Time deadline, CallDone done)
      : client_(client),
        path_(std::move(path)),
        request_(std::make_shared<const std::string>(request.SerializeAsString())),
        response_(response),
        deadline_(deadline),
        done_(std::move(done)) {}

  void run() {
    const int mine = ++runs_;
    auto attempt = client_.transport->call(
        path_, request_, response_, deadline_,
        [self = shared_from_this()](const Outcome& outcome) { self->ended(outcome); });
    const std::lock_guard lock(mutex_);
    if (mine != runs_) return;  // it has ended, and the next one began
    attempt_ = std::move(attempt);
    if (cancelled_) attempt_->cancel();
  }

  void cancel() {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    if (attempt_ != nullptr) attempt_->cancel();
  }

 private:
  void ended(const Outcome& outcome) {
    bool again = worth_repeating(outcome) && ++attempts_ < client_.options.max_attempts;
    const absl::Duration pause = pause_before(attempts_, outcome.pushback);
    {
      const std::lock_guard lock(mutex_);
      again = again && !cancelled_;
    }
    if (again && absl::Now() + pause < deadline_) {
      client_.transport->reconnect();
      client_.transport->after(pause, [self = shared_from_this()] { self->run(); });
    } else {
      done_(outcome.status);
    }
  }

  ClientImpl& client_;
  const std::string path_;
  const std::shared_ptr<const std::string> request_;
  google::protobuf::Message* const response_;
  const absl::Time deadline_;
  const CallDone done_;
  int attempts_ = 0;
  std::atomic<int> runs_{0};
  std::mutex mutex_;
  std::shared_ptr<Attempt> attempt_;
  bool cancelled_ = false;
};

void ClientImpl::call_async(const std::string& path, const google::protobuf::Message& request,
                            google::protobuf::Message* response, absl::Time deadline,
                            CallDone done) {
  std::make_shared<RepeatedCall>(*this, path, request, response,
                                 std::min(deadline, absl::Now() + options.timeout), std::move(done))
      ->run();
}

absl::Status ClientImpl::call(const std::string& path, const google::protobuf::Message& request,
                              google::protobuf::Message* response, const ReadControl& control) {
  if (control.cancelled != nullptr && *control.cancelled) {
    return make_error(absl::StatusCode::kCancelled, "CANCELLED", "the caller cancelled");
  }
  struct Waiting {
    std::mutex mutex;
    std::condition_variable wake;
    bool done = false;
    absl::Status status;
  };
  const auto waiting = std::make_shared<Waiting>();
  const auto repeated = std::make_shared<RepeatedCall>(
      *this, path, request, response, std::min(control.deadline, absl::Now() + options.timeout),
      [waiting](const absl::Status& status) {
        const std::lock_guard lock(waiting->mutex);
        waiting->status = status;
        waiting->done = true;
        waiting->wake.notify_all();
      });
  repeated->run();
  std::unique_lock lock(waiting->mutex);
  bool told = false;
  while (!waiting->done) {
    if (control.cancelled == nullptr || told) {
      waiting->wake.wait(lock);
    } else if (*control.cancelled) {
      lock.unlock();
      repeated->cancel();
      told = true;
      lock.lock();
    } else {
      waiting->wake.wait_for(lock, std::chrono::milliseconds(5));
    }
  }
  return waiting->status;
}

namespace {

std::string search_path(const char* method) {
  return absl::StrCat("/turboquant.v1.SearchService/", method);
}
std::string admin_path(const char* method) {
  return absl::StrCat("/turboquant.v1.AdminService/", method);
}

template <class Request>
Request write_request(ClientImpl& client, const std::string& collection,
                      const WriteOptions& options) {
  Request request;
  request.set_collection(collection);
  to_proto(options, request.mutable_options());
  if (options.operation_id.empty()) {
    request.mutable_options()->set_operation_id(client.operation_id());
  }
  return request;
}

v1::SearchRequest search_request(const std::string& collection, absl::Span<const float> queries,
                                 const SearchOptions& options) {
  v1::SearchRequest request;
  request.set_collection(collection);
  to_proto(queries, request.mutable_queries());
  request.set_k(saturated(options.k));
  if (options.filter) to_proto(*options.filter, request.mutable_filter());
  to_proto(options.parts, request.mutable_parts());
  request.set_rescore(options.rescore);
  request.set_oversampling(options.oversampling);
  request.set_exact(options.exact);
  return request;
}

template <class Response>
std::vector<Hits> results_of(const Response& response) {
  std::vector<Hits> results;
  for (const v1::Hits& hits : response.results()) results.push_back(from_proto(hits));
  return results;
}

}  // namespace

void to_proto(const RecordBatch& batch, v1::RecordBatch* out) {
  out->mutable_ids()->Reserve(static_cast<int>(batch.ids.size()));
  for (const RecordId& id : batch.ids) to_proto(id, out->add_ids());
  to_proto(batch.vectors, out->mutable_vectors());
  for (const Metadata& metadata : batch.metadata) to_proto(metadata, out->add_metadata());
}

}  // namespace service

struct Client::Impl : service::ClientImpl {
  using ClientImpl::ClientImpl;
};

Client::Client(const ClientOptions& options) : impl_(std::make_shared<Impl>(options)) {}
Client::~Client() = default;

absl::StatusOr<ServerInfo> Client::info() {
  v1::GetInfoResponse response;
  absl::Status status =
      impl_->call(service::search_path("GetInfo"), v1::GetInfoRequest(), &response);
  if (!status.ok()) return status;
  return ServerInfo{response.version(),  response.backend(), response.max_message_bytes(),
                    response.max_rows(), response.max_k(),   response.max_results()};
}

absl::StatusOr<WriteResult> Client::upsert(const std::string& collection, const RecordBatch& batch,
                                           const WriteOptions& options) {
  auto request = service::write_request<v1::UpsertRequest>(*impl_, collection, options);
  service::to_proto(batch, request.mutable_batch());
  v1::UpsertResponse response;
  absl::Status status = impl_->call(service::search_path("Upsert"), request, &response);
  if (!status.ok()) return status;
  return from_proto(response.result());
}

absl::StatusOr<WriteResult> Client::insert(const std::string& collection, const RecordBatch& batch,
                                           const WriteOptions& options) {
  auto request = service::write_request<v1::InsertRequest>(*impl_, collection, options);
  service::to_proto(batch, request.mutable_batch());
  v1::InsertResponse response;
  absl::Status status = impl_->call(service::search_path("Insert"), request, &response);
  if (!status.ok()) return status;
  return from_proto(response.result());
}

absl::StatusOr<WriteResult> Client::remove(const std::string& collection,
                                           absl::Span<const RecordId> ids,
                                           const WriteOptions& options) {
  auto request = service::write_request<v1::DeleteRequest>(*impl_, collection, options);
  for (const RecordId& id : ids) to_proto(id, request.add_ids());
  v1::DeleteResponse response;
  absl::Status status = impl_->call(service::search_path("Delete"), request, &response);
  if (!status.ok()) return status;
  return from_proto(response.result());
}

absl::StatusOr<WriteResult> Client::remove_if(const std::string& collection, const Filter& filter,
                                              const WriteOptions& options) {
  auto request = service::write_request<v1::DeleteRequest>(*impl_, collection, options);
  to_proto(filter, request.mutable_filter());
  v1::DeleteResponse response;
  absl::Status status = impl_->call(service::search_path("Delete"), request, &response);
  if (!status.ok()) return status;
  return from_proto(response.result());
}

absl::StatusOr<std::vector<Hits>> Client::search(const std::string& collection,
                                                 absl::Span<const float> queries,
                                                 const SearchOptions& options) {
  v1::SearchResponse response;
  absl::Status status = impl_->call(service::search_path("Search"),
                                    service::search_request(collection, queries, options),
                                    &response, options.control);
  if (!status.ok()) return status;
  return service::results_of(response);
}

absl::StatusOr<std::vector<Hits>> Client::range_search(const std::string& collection,
                                                       absl::Span<const float> queries,
                                                       const RangeOptions& options) {
  v1::RangeSearchRequest request;
  request.set_collection(collection);
  to_proto(queries, request.mutable_queries());
  request.set_radius(options.radius);
  if (options.filter) to_proto(*options.filter, request.mutable_filter());
  to_proto(options.parts, request.mutable_parts());
  if (options.max_hits != RangeOptions().max_hits) request.set_max_hits(options.max_hits);
  v1::RangeSearchResponse response;
  absl::Status status =
      impl_->call(service::search_path("RangeSearch"), request, &response, options.control);
  if (!status.ok()) return status;
  return service::results_of(response);
}

absl::StatusOr<std::vector<Record>> Client::get(const std::string& collection,
                                                absl::Span<const RecordId> ids,
                                                const Parts& parts) {
  v1::GetRequest request;
  request.set_collection(collection);
  for (const RecordId& id : ids) to_proto(id, request.add_ids());
  to_proto(parts, request.mutable_parts());
  v1::GetResponse response;
  absl::Status status = impl_->call(service::search_path("Get"), request, &response);
  if (!status.ok()) return status;
  std::vector<Record> records;
  for (const v1::Record& record : response.records()) records.push_back(from_proto(record));
  return records;
}

absl::StatusOr<ScrollPage> Client::scroll(const std::string& collection,
                                          const ScrollOptions& options) {
  v1::ScrollRequest request;
  request.set_collection(collection);
  request.set_cursor(options.cursor);
  request.set_limit(service::saturated(options.limit));
  if (options.filter) to_proto(*options.filter, request.mutable_filter());
  to_proto(options.parts, request.mutable_parts());
  v1::ScrollResponse response;
  absl::Status status =
      impl_->call(service::search_path("Scroll"), request, &response, options.control);
  if (!status.ok()) return status;
  ScrollPage page;
  for (const v1::Record& record : response.records()) page.records.push_back(from_proto(record));
  page.cursor = response.cursor();
  return page;
}

absl::StatusOr<std::uint64_t> Client::count(const std::string& collection,
                                            const std::optional<Filter>& filter) {
  v1::CountRequest request;
  request.set_collection(collection);
  if (filter) to_proto(*filter, request.mutable_filter());
  v1::CountResponse response;
  absl::Status status = impl_->call(service::search_path("Count"), request, &response);
  if (!status.ok()) return status;
  return response.count();
}

void Client::search_async(const std::string& collection, absl::Span<const float> queries,
                          const SearchOptions& options,
                          std::function<void(absl::StatusOr<std::vector<Hits>>)> done) {
  auto response = std::make_shared<v1::SearchResponse>();
  impl_->call_async(service::search_path("Search"),
                    service::search_request(collection, queries, options), response.get(),
                    options.control.deadline,
                    [response, done = std::move(done)](const absl::Status& status) {
                      if (!status.ok()) return done(status);
                      done(service::results_of(*response));
                    });
}

void Client::upsert_async(const std::string& collection, const RecordBatch& batch,
                          const WriteOptions& options,
                          std::function<void(absl::StatusOr<WriteResult>)> done) {
  auto request = service::write_request<v1::UpsertRequest>(*impl_, collection, options);
  service::to_proto(batch, request.mutable_batch());
  auto response = std::make_shared<v1::UpsertResponse>();
  impl_->call_async(service::search_path("Upsert"), request, response.get(), absl::InfiniteFuture(),
                    [response, done = std::move(done)](const absl::Status& status) {
                      if (!status.ok()) return done(status);
                      done(from_proto(response->result()));
                    });
}

std::unique_ptr<BulkStream> Client::bulk_add(const std::string& collection,
                                             const BulkOptions& options) {
  return service::make_bulk_stream(*impl_, collection, options);
}

absl::StatusOr<CollectionInfo> Client::create_collection(const std::string& name,
                                                         const CollectionOptions& options) {
  v1::CreateCollectionRequest request;
  request.set_name(name);
  to_proto(options, request.mutable_options());
  v1::CreateCollectionResponse response;
  absl::Status status = impl_->call(service::admin_path("CreateCollection"), request, &response);
  if (!status.ok()) return status;
  return from_proto(response.collection());
}

absl::Status Client::drop_collection(const std::string& name) {
  v1::DropCollectionRequest request;
  request.set_name(name);
  v1::DropCollectionResponse response;
  return impl_->call(service::admin_path("DropCollection"), request, &response);
}

absl::StatusOr<CollectionInfo> Client::collection(const std::string& name) {
  v1::GetCollectionRequest request;
  request.set_name(name);
  v1::GetCollectionResponse response;
  absl::Status status = impl_->call(service::admin_path("GetCollection"), request, &response);
  if (!status.ok()) return status;
  return from_proto(response.collection());
}

absl::StatusOr<std::vector<CollectionInfo>> Client::collections() {
  v1::ListCollectionsResponse response;
  absl::Status status =
      impl_->call(service::admin_path("ListCollections"), v1::ListCollectionsRequest(), &response);
  if (!status.ok()) return status;
  std::vector<CollectionInfo> list;
  for (const v1::CollectionInfo& info : response.collections()) list.push_back(from_proto(info));
  return list;
}

absl::Status Client::compact_collection(const std::string& name) {
  v1::CompactCollectionRequest request;
  request.set_name(name);
  v1::CompactCollectionResponse response;
  return impl_->call(service::admin_path("CompactCollection"), request, &response);
}

absl::Status Client::set_alias(const std::string& alias, const std::string& collection) {
  v1::SetAliasRequest request;
  request.set_alias(alias);
  request.set_collection(collection);
  v1::SetAliasResponse response;
  return impl_->call(service::admin_path("SetAlias"), request, &response);
}

absl::Status Client::drop_alias(const std::string& alias) {
  v1::DropAliasRequest request;
  request.set_alias(alias);
  v1::DropAliasResponse response;
  return impl_->call(service::admin_path("DropAlias"), request, &response);
}

absl::StatusOr<std::vector<Alias>> Client::aliases() {
  v1::ListAliasesResponse response;
  absl::Status status =
      impl_->call(service::admin_path("ListAliases"), v1::ListAliasesRequest(), &response);
  if (!status.ok()) return status;
  std::vector<Alias> list;
  for (const v1::Alias& alias : response.aliases()) {
    list.push_back({alias.alias(), alias.collection()});
  }
  return list;
}

absl::StatusOr<SnapshotInfo> Client::create_snapshot(SnapshotKind kind) {
  v1::CreateSnapshotRequest request;
  request.set_kind(kind == SnapshotKind::kCheckpoint ? v1::SNAPSHOT_KIND_CHECKPOINT
                                                     : v1::SNAPSHOT_KIND_BACKUP);
  v1::CreateSnapshotResponse response;
  absl::Status status = impl_->call(service::admin_path("CreateSnapshot"), request, &response);
  if (!status.ok()) return status;
  return from_proto(response.snapshot());
}

absl::StatusOr<std::vector<SnapshotInfo>> Client::snapshots() {
  v1::ListSnapshotsResponse response;
  absl::Status status =
      impl_->call(service::admin_path("ListSnapshots"), v1::ListSnapshotsRequest(), &response);
  if (!status.ok()) return status;
  std::vector<SnapshotInfo> list;
  for (const v1::Snapshot& snapshot : response.snapshots()) list.push_back(from_proto(snapshot));
  return list;
}

absl::Status Client::verify_snapshot(const std::string& name) {
  v1::VerifySnapshotRequest request;
  request.set_name(name);
  v1::VerifySnapshotResponse response;
  return impl_->call(service::admin_path("VerifySnapshot"), request, &response);
}

absl::Status Client::delete_snapshot(const std::string& name) {
  v1::DeleteSnapshotRequest request;
  request.set_name(name);
  v1::DeleteSnapshotResponse response;
  return impl_->call(service::admin_path("DeleteSnapshot"), request, &response);
}

absl::Status Client::restore_snapshot(const std::string& name) {
  v1::RestoreSnapshotRequest request;
  request.set_name(name);
  v1::RestoreSnapshotResponse response;
  return impl_->call(service::admin_path("RestoreSnapshot"), request, &response);
}

absl::Status Client::verify_store() {
  v1::VerifyStoreResponse response;
  return impl_->call(service::admin_path("VerifyStore"), v1::VerifyStoreRequest(), &response);
}

}  // namespace turboquant
