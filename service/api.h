// What the methods of proto/turboquant/v1 do: check the request, call the store, translate.
#pragma once

#include <turboquant/v1/admin_service.pb.h>
#include <turboquant/v1/search_service.pb.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "service/call.h"
#include "service/limits.h"
#include "service/micro_batcher.h"

namespace turboquant::service {

class Api {
 public:
  /// Both outlive this.
  Api(Store& store, MicroBatcher& batcher, const Limits& limits)
      : store_(store), batcher_(batcher), limits_(limits) {}

  /// All methods of both services. They refer to this.
  std::vector<Method> methods();

  const Limits& limits() const { return limits_; }

 private:
  // A collection that the caller may use.
  struct Target {
    std::shared_ptr<Collection> collection;
    std::size_t dimension = 0;
    DistanceMetric metric = DistanceMetric::kInnerProduct;
  };
  absl::StatusOr<Target> target(Call& call, const std::string& name) const;
  absl::Status need_all_collections(const Call& call) const;
  absl::Status need_collection(Call& call, const std::string& name) const;

  void add_search_methods(std::vector<Method>& methods);
  void add_admin_methods(std::vector<Method>& methods);

  /// May refuse to scan: then returns false where it would have to, and done is not called.
  bool search(Call& call, const v1::SearchRequest& request, const Done& done, bool may_scan);
  absl::StatusOr<SearchOptions> search_options(Call& call, const v1::SearchRequest& request,
                                               const Target& target, std::size_t queries) const;
  absl::Status range_search(Call& call, const v1::RangeSearchRequest& request,
                            v1::RangeSearchResponse& response);
  absl::Status get(Call& call, const v1::GetRequest& request, v1::GetResponse& response);
  absl::Status scroll(Call& call, const v1::ScrollRequest& request, v1::ScrollResponse& response);
  absl::Status count(Call& call, const v1::CountRequest& request, v1::CountResponse& response);
  absl::Status upsert(Call& call, const v1::UpsertRequest& request, v1::UpsertResponse& response);
  absl::Status insert(Call& call, const v1::InsertRequest& request, v1::InsertResponse& response);
  absl::Status remove(Call& call, const v1::DeleteRequest& request, v1::DeleteResponse& response);
  absl::Status bulk_add(Call& call, const v1::BulkAddRequest& request,
                        v1::BulkAddResponse& response);
  absl::Status info(Call& call, const v1::GetInfoRequest& request, v1::GetInfoResponse& response);
  absl::StatusOr<WriteResult> write(Call& call, const std::string& name,
                                    const v1::RecordBatch& batch, const v1::WriteOptions& options,
                                    bool replace);
  absl::Status check_rows(std::size_t rows) const;

  absl::Status create_collection(Call& call, const v1::CreateCollectionRequest& request,
                                 v1::CreateCollectionResponse& response);
  absl::Status drop_collection(Call& call, const v1::DropCollectionRequest& request,
                               v1::DropCollectionResponse& response);
  absl::Status get_collection(Call& call, const v1::GetCollectionRequest& request,
                              v1::GetCollectionResponse& response);
  absl::Status list_collections(Call& call, const v1::ListCollectionsRequest& request,
                                v1::ListCollectionsResponse& response);
  absl::Status compact_collection(Call& call, const v1::CompactCollectionRequest& request,
                                  v1::CompactCollectionResponse& response);
  absl::Status set_alias(Call& call, const v1::SetAliasRequest& request,
                         v1::SetAliasResponse& response);
  absl::Status drop_alias(Call& call, const v1::DropAliasRequest& request,
                          v1::DropAliasResponse& response);
  absl::Status list_aliases(Call& call, const v1::ListAliasesRequest& request,
                            v1::ListAliasesResponse& response);
  absl::Status create_snapshot(Call& call, const v1::CreateSnapshotRequest& request,
                               v1::CreateSnapshotResponse& response);
  absl::Status list_snapshots(Call& call, const v1::ListSnapshotsRequest& request,
                              v1::ListSnapshotsResponse& response);
  absl::Status verify_snapshot(Call& call, const v1::VerifySnapshotRequest& request,
                               v1::VerifySnapshotResponse& response);
  absl::Status delete_snapshot(Call& call, const v1::DeleteSnapshotRequest& request,
                               v1::DeleteSnapshotResponse& response);
  absl::Status restore_snapshot(Call& call, const v1::RestoreSnapshotRequest& request,
                                v1::RestoreSnapshotResponse& response);
  absl::Status verify_store(Call& call, const v1::VerifyStoreRequest& request,
                            v1::VerifyStoreResponse& response);

  /// A method whose handler returns when it is done.
  template <class Request, class Response>
  Method method(const char* path, Role role, Workers workers,
                absl::Status (Api::*handler)(Call&, const Request&, Response&)) {
    Method made;
    made.path = path;
    made.role = role;
    made.workers = workers;
    made.request = &Request::default_instance();
    made.handle = [this, handler](Call& call, const Message& request, const Done& done) {
      auto* response = google::protobuf::Arena::CreateMessage<Response>(&call.arena);
      const absl::Status status =
          (this->*handler)(call, static_cast<const Request&>(request), *response);
      if (status.ok()) {
        done(response);
      } else {
        done(status);
      }
    };
    return made;
  }

  Store& store_;
  MicroBatcher& batcher_;
  const Limits limits_;
  std::mutex creating_;  // the number of collections is checked and raised in one step
};

/// Refuses what the store would refuse in one of many queries that are searched together.
absl::Status check_query(absl::Span<const float> query, DistanceMetric metric);

}  // namespace turboquant::service
