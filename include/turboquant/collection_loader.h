// A first load of many records into a new collection of a store on this machine: sorted files are
// written and handed to the database whole, past its log and its memory. Several times the rate of
// upserts, and all or nothing.
//
//   auto loader = turboquant::CollectionLoader::begin(*store, "words", options);
//   (*loader)->add({ids, vectors, metadata});        // as often as needed
//   (*loader)->finish();                             // now the collection is there, and on disk
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <string>

#include "turboquant/store.h"

namespace turboquant {

/// For one thread. Destroyed before finish(), or after an error, it leaves nothing behind; what a
/// killed process left is removed when the store is opened again.
class CollectionLoader {
 public:
  /// COLLECTION_EXISTS when there is a collection or alias of this name. The store outlives the
  /// loader, and has one loader at a time.
  static absl::StatusOr<std::unique_ptr<CollectionLoader>> begin(Store& store,
                                                                 const std::string& name,
                                                                 const CollectionOptions& options);
  virtual ~CollectionLoader() = default;

  /// Refuses what Collection::insert() refuses; ids that repeat those of an earlier batch are found
  /// by finish(). Keeps about 50 bytes of memory an id.
  virtual absl::Status add(const RecordBatch& batch) = 0;

  /// Returns the number of records. DUPLICATE_ID when an id came twice.
  virtual absl::StatusOr<std::uint64_t> finish() = 0;
};

}  // namespace turboquant
