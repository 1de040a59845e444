// Carriers: how TurboQuant indexes pass through FAISS's reader and writer (docs/index_format.md).
#pragma once

#include <faiss/Index.h>
#include <faiss/impl/io.h>

#include <memory>
#include <vector>

#include "index/payload.h"
#include "turboquant/index_turboquant.h"

namespace turboquant {

/// What FAISS writes in the place of a tree: carriers instead of TurboQuant indexes, copies of the
/// wrappers around them, and the tree's own indexes elsewhere. Views the tree, which must outlive
/// it; codes are not copied. pack: codes are written packed.
class StandIn {
 public:
  StandIn(const faiss::Index& tree, bool pack);
  const faiss::Index* root() const { return root_; }

 private:
  faiss::Index* build(const faiss::Index& index);
  faiss::Index* keep(std::unique_ptr<faiss::Index> index);

  std::vector<std::unique_ptr<faiss::Index>> made_;
  bool pack_;
  faiss::Index* root_;
};

/// Replaces the carriers in a tree that FAISS read.
std::unique_ptr<faiss::Index> restore(std::unique_ptr<faiss::Index> tree);

/// True when a stream whose first bytes are `prefix` holds the carrier of a flat index. Needs at
/// most kLeafPrefix bytes.
bool starts_flat_index(const std::vector<std::uint8_t>& prefix);
inline constexpr std::size_t kLeafPrefix = 128 + 4 * 65536;

/// Reads the carrier of a flat index without FAISS's reader.
std::unique_ptr<IndexTurboQuant> read_flat_carrier(faiss::IOReader* reader);

/// The same of a file in memory, whose codes are viewed and not copied.
FlatView view_flat_carrier(const std::uint8_t* data, std::size_t size, bool check_codes);

}  // namespace turboquant
