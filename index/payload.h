// The part of an index file that is ours (docs/index_format.md): inverted lists in name only, which
// carry a TurboQuant index through FAISS's reader and writer.
#pragma once

#include <faiss/impl/io.h>
#include <faiss/invlists/InvertedLists.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "index/checked_reader.h"
#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_turboquant.h"
#include "turboquant/index_two_level.h"

namespace turboquant {

/// What the header says of an inverted file, which is complete only with the carrier's quantizer.
struct IvfContent {
  IndexOptions options;
  faiss::MetricType metric = faiss::METRIC_L2;
  std::size_t dimension = 0;
  std::size_t nlist = 0;
  std::uint64_t count = 0;
  bool by_residual = false;
  std::unique_ptr<faiss::InvertedLists> lists;
};

/// Either a view of an index that is being written, or the content of one that was read. A payload
/// that nobody replaced holds no lists that FAISS could scan: its accessors throw.
class Payload : public faiss::ReadOnlyInvertedLists {
 public:
  Payload(std::size_t nlist, std::size_t dimension);

  const IndexTurboQuant* flat_to_write = nullptr;
  const IndexIVFTurboQuant* ivf_to_write = nullptr;
  const IndexTwoLevel* two_level_to_write = nullptr;
  bool pack = false;  ///< write packed codes
  std::unique_ptr<IndexTurboQuant> flat;
  std::unique_ptr<IvfContent> ivf;
  std::unique_ptr<IndexTwoLevel> two_level;

  std::size_t list_size(std::size_t list_no) const override;
  const std::uint8_t* get_codes(std::size_t list_no) const override;
  const std::int64_t* get_ids(std::size_t list_no) const override;
};

/// The fourcc of the lists, as in the file.
inline constexpr char kPayloadKey[] = "ilTQ";

/// The first bytes after the fourcc.
inline constexpr char kPayloadMagic[] = "TQINDEX\n";

/// Writes fourcc and payload.
void write_payload(const Payload& payload, faiss::IOWriter* writer);

/// Reads what follows the fourcc. Checks everything that can be checked without the carrier.
std::unique_ptr<Payload> read_payload(faiss::IOReader* reader, int io_flags);

/// A flat payload whose codes stay where they are.
struct FlatView {
  IndexOptions options;
  faiss::MetricType metric = faiss::METRIC_L2;
  std::size_t dimension = 0;
  std::int64_t count = 0;
  const std::uint8_t* codes = nullptr;
  std::vector<float> centre;  ///< [dimension]; empty when the index has none
};

/// Reads what follows the fourcc, of codes that are not packed. The header is checked; with
/// `check_codes` the codes are too.
FlatView view_flat_payload(MemoryReader& reader, bool check_codes);

/// Makes the payload known to FAISS. Call before FAISS reads or writes.
void register_payload();

}  // namespace turboquant
