// FAISS indexes in a Store, without a server: an IndexTurboQuant, alone or in an IndexIDMap or
// IndexIDMap2, becomes a collection and comes back as the same index, bit for bit.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <faiss/Index.h>

#include <memory>
#include <string>

#include "turboquant/store.h"

namespace turboquant {

/// Makes the collection `name` from the index; one of that name is replaced whole, at once. The
/// record ids are the id map's, or the row numbers; negative ids are stored modulo 2^64. Refused
/// (INVALID_ARGUMENT): other index classes, an id that occurs twice, L2 on normalized vectors.
absl::Status save_to_store(const faiss::Index& index, Store& store, const std::string& name);

/// The index that was saved: an IndexTurboQuant or an IndexIDMap2 of one. Any collection whose ids
/// are numbers can be loaded; ids 0 to n - 1 in this order need no id map.
absl::StatusOr<std::unique_ptr<faiss::Index>> load_from_store(const Store& store,
                                                              const std::string& name);

}  // namespace turboquant
