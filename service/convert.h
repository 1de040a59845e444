// Between the messages of proto/turboquant/v1 and the types of include/turboquant. From a message:
// checks what only the message can get wrong; the store checks the rest. To a message: cannot fail.
#pragma once

#include <absl/status/statusor.h>
#include <absl/types/span.h>
#include <turboquant/v1/admin_service.pb.h>
#include <turboquant/v1/search_service.pb.h>
#include <turboquant/v1/types.pb.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "turboquant/store.h"

namespace turboquant::service {

using RecordIds = google::protobuf::RepeatedPtrField<v1::RecordId>;

absl::StatusOr<RecordId> from_proto(const v1::RecordId& id);
absl::StatusOr<std::vector<RecordId>> from_proto(const RecordIds& ids);
absl::StatusOr<Metadata> from_proto(const v1::Metadata& metadata);
absl::StatusOr<Filter> from_proto(const v1::Filter& filter);
absl::StatusOr<CollectionOptions> from_proto(const v1::CollectionOptions& options);
absl::StatusOr<WriteOptions> from_proto(const v1::WriteOptions& options);
CollectionInfo from_proto(const v1::CollectionInfo& info);
SnapshotInfo from_proto(const v1::Snapshot& snapshot);
WriteResult from_proto(const v1::WriteResult& result);
Record from_proto(const v1::Record& record);
Hits from_proto(const v1::Hits& hits);
Parts from_proto(const v1::Parts& parts);

void to_proto(const RecordId& id, v1::RecordId* out);
void to_proto(const Metadata& metadata, v1::Metadata* out);
void to_proto(const Filter& filter, v1::Filter* out);
void to_proto(const CollectionOptions& options, v1::CollectionOptions* out);
void to_proto(const CollectionInfo& info, v1::CollectionInfo* out);
void to_proto(const SnapshotInfo& snapshot, v1::Snapshot* out);
void to_proto(const WriteOptions& options, v1::WriteOptions* out);
void to_proto(const WriteResult& result, v1::WriteResult* out);
void to_proto(const Parts& parts, v1::Parts* out);
/// Asked-for parts alone.
void to_proto(const Record& record, const Parts& parts, v1::Record* out);
void to_proto(const Hits& hits, const Parts& parts, v1::Hits* out);

/// A number for a uint32 of a message; one that does not fit becomes the largest, which the server
/// refuses.
inline std::uint32_t saturated(std::size_t n) {
  constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();
  return n < kMost ? static_cast<std::uint32_t>(n) : kMost;
}

/// The numbers of a matrix with rows of `dimension`: as many rows as there are, at least one.
/// Points into the message or into scratch.
absl::StatusOr<absl::Span<const float>> from_proto(const v1::Vectors& vectors,
                                                   std::size_t dimension,
                                                   std::vector<float>& scratch);
/// As bytes, F32LE.
void to_proto(absl::Span<const float> values, v1::Vectors* out);

}  // namespace turboquant::service
