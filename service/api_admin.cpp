// The methods of AdminService.
#include <absl/strings/str_cat.h>

#include "service/api.h"
#include "service/convert.h"
#include "service/errors.h"

namespace turboquant::service {

absl::Status Api::create_collection(Call& call, const v1::CreateCollectionRequest& request,
                                    v1::CreateCollectionResponse& response) {
  if (absl::Status status = need_collection(call, request.name()); !status.ok()) return status;
  auto options = from_proto(request.options());
  if (!options.ok()) return options.status();
  if (options->dimension < 1 || options->dimension > limits_.max_dimension) {
    return invalid("BAD_OPTION", absl::StrCat("the dimension is ", options->dimension,
                                              ", not between 1 and ", limits_.max_dimension));
  }
  const std::lock_guard lock(creating_);
  if (store_.collections().size() >= limits_.max_collections) {
    return make_error(absl::StatusCode::kResourceExhausted, "TOO_MANY_COLLECTIONS",
                      absl::StrCat("this server takes ", limits_.max_collections, " collections"));
  }
  auto made = store_.create_collection(request.name(), *options);
  if (!made.ok()) return made.status();
  to_proto((*made)->info(), response.mutable_collection());
  return absl::OkStatus();
}

absl::Status Api::drop_collection(Call& call, const v1::DropCollectionRequest& request,
                                  v1::DropCollectionResponse&) {
  if (absl::Status status = need_collection(call, request.name()); !status.ok()) return status;
  return store_.drop_collection(request.name());
}

absl::Status Api::get_collection(Call& call, const v1::GetCollectionRequest& request,
                                 v1::GetCollectionResponse& response) {
  auto to = target(call, request.name());
  if (!to.ok()) return to.status();
  to_proto(to->collection->info(), response.mutable_collection());
  return absl::OkStatus();
}

absl::Status Api::list_collections(Call& call, const v1::ListCollectionsRequest&,
                                   v1::ListCollectionsResponse& response) {
  for (const CollectionInfo& info : store_.collections()) {
    if (call.caller->may_use(info.name)) to_proto(info, response.add_collections());
  }
  return absl::OkStatus();
}

absl::Status Api::compact_collection(Call& call, const v1::CompactCollectionRequest& request,
                                     v1::CompactCollectionResponse&) {
  auto to = target(call, request.name());
  return to.ok() ? to->collection->compact() : to.status();
}

absl::Status Api::set_alias(Call& call, const v1::SetAliasRequest& request, v1::SetAliasResponse&) {
  // The alias too: else a token could redirect a name that is not its own.
  if (absl::Status status = need_collection(call, request.alias()); !status.ok()) return status;
  if (absl::Status status = need_collection(call, request.collection()); !status.ok()) {
    return status;
  }
  return store_.set_alias(request.alias(), request.collection());
}

absl::Status Api::drop_alias(Call& call, const v1::DropAliasRequest& request,
                             v1::DropAliasResponse&) {
  if (absl::Status status = need_collection(call, request.alias()); !status.ok()) return status;
  return store_.drop_alias(request.alias());
}

absl::Status Api::list_aliases(Call& call, const v1::ListAliasesRequest&,
                               v1::ListAliasesResponse& response) {
  for (const Alias& alias : store_.aliases()) {
    if (!call.caller->may_use(alias.collection)) continue;
    v1::Alias* out = response.add_aliases();
    out->set_alias(alias.alias);
    out->set_collection(alias.collection);
  }
  return absl::OkStatus();
}

absl::Status Api::create_snapshot(Call& call, const v1::CreateSnapshotRequest& request,
                                  v1::CreateSnapshotResponse& response) {
  if (absl::Status status = need_all_collections(call); !status.ok()) return status;
  if (request.kind() < 0 || request.kind() > v1::SNAPSHOT_KIND_BACKUP) {
    return invalid("BAD_OPTION", "kind is not one of CHECKPOINT, BACKUP");
  }
  auto made = store_.create_snapshot(request.kind() == v1::SNAPSHOT_KIND_CHECKPOINT
                                         ? SnapshotKind::kCheckpoint
                                         : SnapshotKind::kBackup);
  if (!made.ok()) return made.status();
  to_proto(*made, response.mutable_snapshot());
  return absl::OkStatus();
}

absl::Status Api::list_snapshots(Call& call, const v1::ListSnapshotsRequest&,
                                 v1::ListSnapshotsResponse& response) {
  if (absl::Status status = need_all_collections(call); !status.ok()) return status;
  auto snapshots = store_.snapshots();
  if (!snapshots.ok()) return snapshots.status();
  for (const SnapshotInfo& snapshot : *snapshots) to_proto(snapshot, response.add_snapshots());
  return absl::OkStatus();
}

absl::Status Api::verify_snapshot(Call& call, const v1::VerifySnapshotRequest& request,
                                  v1::VerifySnapshotResponse&) {
  if (absl::Status status = need_all_collections(call); !status.ok()) return status;
  return store_.verify_snapshot(request.name());
}

absl::Status Api::delete_snapshot(Call& call, const v1::DeleteSnapshotRequest& request,
                                  v1::DeleteSnapshotResponse&) {
  if (absl::Status status = need_all_collections(call); !status.ok()) return status;
  return store_.delete_snapshot(request.name());
}

absl::Status Api::restore_snapshot(Call& call, const v1::RestoreSnapshotRequest& request,
                                   v1::RestoreSnapshotResponse&) {
  if (absl::Status status = need_all_collections(call); !status.ok()) return status;
  return store_.restore_snapshot(request.name());
}

absl::Status Api::verify_store(Call& call, const v1::VerifyStoreRequest&,
                               v1::VerifyStoreResponse&) {
  if (absl::Status status = need_all_collections(call); !status.ok()) return status;
  return store_.verify();
}

void Api::add_admin_methods(std::vector<Method>& methods) {
  const auto add = [&](const char* name, Role role, auto handler) {
    // What only reads must not wait for a snapshot to be verified.
    const Workers workers = role == Role::kRead ? Workers::kCompute : Workers::kAdmin;
    methods.push_back(
        method(absl::StrCat("/turboquant.v1.AdminService/", name).c_str(), role, workers, handler));
  };
  add("CreateCollection", Role::kAdmin, &Api::create_collection);
  add("DropCollection", Role::kAdmin, &Api::drop_collection);
  add("GetCollection", Role::kRead, &Api::get_collection);
  add("ListCollections", Role::kRead, &Api::list_collections);
  add("CompactCollection", Role::kAdmin, &Api::compact_collection);
  add("SetAlias", Role::kAdmin, &Api::set_alias);
  add("DropAlias", Role::kAdmin, &Api::drop_alias);
  add("ListAliases", Role::kRead, &Api::list_aliases);
  add("CreateSnapshot", Role::kAdmin, &Api::create_snapshot);
  add("ListSnapshots", Role::kAdmin, &Api::list_snapshots);
  add("VerifySnapshot", Role::kAdmin, &Api::verify_snapshot);
  add("DeleteSnapshot", Role::kAdmin, &Api::delete_snapshot);
  add("RestoreSnapshot", Role::kAdmin, &Api::restore_snapshot);
  add("VerifyStore", Role::kAdmin, &Api::verify_store);
}

}  // namespace turboquant::service
