#include "index/carrier.h"

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "index/checked_reader.h"
#include "index/checks.h"
#include "index/index_tree.h"
#include "index/payload.h"
#include "index/refining.h"
#include "index/selecting_id_map.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {
namespace {

// FAISS's index header (docs/index_format.md): 33 bytes behind the fourcc.
struct Envelope {
  std::int32_t d = 0;
  std::int64_t ntotal = 0;
  std::int32_t metric = 0;
};

Envelope read_envelope(CheckedReader& reader) {
  Envelope envelope;
  envelope.d = reader.value<std::int32_t>("index header");
  envelope.ntotal = reader.value<std::int64_t>("index header");
  reader.value<std::int64_t>("index header");
  reader.value<std::int64_t>("index header");
  const auto is_trained = reader.value<std::uint8_t>("index header");
  envelope.metric = reader.value<std::int32_t>("index header");
  const bool known_metric =
      envelope.metric == faiss::METRIC_INNER_PRODUCT || envelope.metric == faiss::METRIC_L2;
  if (is_trained != 1 || !known_metric) reader.fail_here("the index header is damaged");
  return envelope;
}

void expect(CheckedReader& reader, const char (&fourcc)[5]) {
  char key[4];
  reader.read(key, sizeof key, fourcc);
  if (std::memcmp(key, fourcc, sizeof key) != 0) {
    reader.fail_here(std::string("expected ") + fourcc + " in the index file");
  }
}

void expect(CheckedReader& reader, std::uint64_t value, const char* what) {
  if (reader.value<std::uint64_t>(what) != value) {
    reader.fail_here(std::string("the ") + what + " of the carrier is damaged");
  }
}

// A carrier's fields must say what the payload says.
void check_carrier(std::int64_t d, std::int64_t ntotal, int metric, std::int64_t payload_d,
                   std::uint64_t payload_count, int payload_metric) {
  if (d != payload_d || static_cast<std::uint64_t>(ntotal) != payload_count ||
      metric != payload_metric) {
    fail("the TurboQuant index in the file contradicts the FAISS header around it");
  }
}

void check_location(std::int64_t location, const faiss::InvertedLists& lists) {
  const std::uint64_t list = faiss::lo_listno(static_cast<std::uint64_t>(location));
  const std::uint64_t offset = faiss::lo_offset(static_cast<std::uint64_t>(location));
  if (list >= lists.nlist || offset >= lists.list_size(static_cast<std::size_t>(list))) {
    fail("the direct map of the index file points outside the inverted lists");
  }
}

void check_direct_map(const faiss::DirectMap& map, std::int64_t ntotal,
                      const faiss::InvertedLists* lists) {
  if (map.type == faiss::DirectMap::NoMap) return;
  if (lists == nullptr) fail("the index file has a direct map but no inverted lists");
  if (map.type == faiss::DirectMap::Array) {
    if (static_cast<std::int64_t>(map.array.size()) != ntotal) {
      fail("the direct map of the index file has the wrong size");
    }
    for (const std::int64_t location : map.array) {
      if (location >= 0) check_location(location, *lists);
    }
  } else if (map.type == faiss::DirectMap::Hashtable) {
    for (const auto& entry : map.hashtable) check_location(entry.second, *lists);
  } else {
    fail("the direct map of the index file is of unknown type");
  }
}

std::unique_ptr<faiss::Index> restore_ivf(faiss::IndexIVFFlat& carrier, IvfContent& content) {
  check_carrier(carrier.d, carrier.ntotal, carrier.metric_type,
                static_cast<std::int64_t>(content.dimension), content.count, content.metric);
  if (carrier.quantizer == nullptr || carrier.quantizer->d != carrier.d) {
    fail("the coarse quantizer in the index file has the wrong dimension");
  }
  check_direct_map(carrier.direct_map, carrier.ntotal, content.lists.get());
  auto index =
      std::make_unique<IndexIVFTurboQuant>(carrier.quantizer, content.dimension, content.nlist,
                                           content.options, content.metric, content.by_residual);
  index->own_fields = std::exchange(carrier.own_fields, false);
  index->ntotal = carrier.ntotal;
  index->is_trained = carrier.is_trained;
  index->nprobe = carrier.nprobe;
  std::swap(index->direct_map, carrier.direct_map);
  index->replace_invlists(content.lists.release(), true);
  return index;
}

std::unique_ptr<faiss::Index> restore_carrier(faiss::IndexIVFFlat& carrier, Payload& payload) {
  if (payload.ivf != nullptr) return restore_ivf(carrier, *payload.ivf);
  if (payload.two_level != nullptr) {
    check_carrier(carrier.d, carrier.ntotal, carrier.metric_type, payload.two_level->d,
                  static_cast<std::uint64_t>(payload.two_level->ntotal),
                  payload.two_level->metric_type);
    return std::move(payload.two_level);
  }
  if (payload.flat == nullptr) fail("the index file holds a TurboQuant index without content");
  check_carrier(carrier.d, carrier.ntotal, carrier.metric_type, payload.flat->d,
                static_cast<std::uint64_t>(payload.flat->ntotal), payload.flat->metric_type);
  return std::move(payload.flat);
}

std::unique_ptr<faiss::IndexIVFFlat> make_carrier(faiss::Index* coarse, const faiss::Index& index,
                                                  std::size_t nlist,
                                                  std::unique_ptr<Payload> payload) {
  auto carrier = std::make_unique<faiss::IndexIVFFlat>(coarse, static_cast<std::size_t>(index.d),
                                                       nlist, index.metric_type);
  carrier->own_fields = false;
  carrier->replace_invlists(payload.release(), true);
  carrier->ntotal = index.ntotal;
  carrier->is_trained = index.is_trained;
  return carrier;
}

}  // namespace

StandIn::StandIn(const faiss::Index& tree, bool pack) : pack_(pack), root_(build(tree)) {}

faiss::Index* StandIn::keep(std::unique_ptr<faiss::Index> index) {
  made_.push_back(std::move(index));
  return made_.back().get();
}

faiss::Index* StandIn::build(const faiss::Index& index) {
  if (!contains_turboquant(index)) return const_cast<faiss::Index*>(&index);
  const auto* flat = dynamic_cast<const IndexTurboQuant*>(&index);
  const auto* two_level = dynamic_cast<const IndexTwoLevel*>(&index);
  if (flat != nullptr || two_level != nullptr) {
    const auto dimension = static_cast<std::size_t>(index.d);
    auto payload = std::make_unique<Payload>(1, dimension);
    payload->flat_to_write = flat;
    payload->two_level_to_write = two_level;
    payload->pack = pack_;
    auto coarse = std::make_unique<faiss::IndexFlat>(index.d, index.metric_type);
    coarse->add(1, std::vector<float>(dimension, 0).data());
    return keep(make_carrier(keep(std::move(coarse)), index, 1, std::move(payload)));
  }
  if (const auto* ivf = dynamic_cast<const IndexIVFTurboQuant*>(&index)) {
    auto payload = std::make_unique<Payload>(ivf->nlist, static_cast<std::size_t>(ivf->d));
    payload->ivf_to_write = ivf;
    payload->pack = pack_;
    auto carrier = make_carrier(build(*ivf->quantizer), *ivf, ivf->nlist, std::move(payload));
    carrier->nprobe = ivf->nprobe;
    carrier->direct_map = ivf->direct_map;
    return keep(std::move(carrier));
  }
  faiss::Index* copy = keep(copy_wrapper(index));
  for (faiss::Index** child : children(copy)) {
    if (*child != nullptr) *child = build(**child);
  }
  return copy;
}

std::unique_ptr<faiss::Index> restore(std::unique_ptr<faiss::Index> tree) {
  for (faiss::Index** slot : children(tree.get())) {
    if (*slot == nullptr) continue;
    std::unique_ptr<faiss::Index> child(std::exchange(*slot, nullptr));
    *slot = restore(std::move(child)).release();
  }
  if (auto* carrier = dynamic_cast<faiss::IndexIVFFlat*>(tree.get())) {
    if (auto* payload = dynamic_cast<Payload*>(carrier->invlists)) {
      return restore_carrier(*carrier, *payload);
    }
  }
  return with_refining(with_selectors(std::move(tree)));
}

bool starts_flat_index(const std::vector<std::uint8_t>& prefix) {
  constexpr std::size_t kFixed = 4 + 33 + 16 + 4 + 33 + 8 + 9;  // all but the zero vector
  std::int32_t d = 0;
  if (prefix.size() < 8) return false;
  std::memcpy(&d, prefix.data() + 4, sizeof d);
  if (d < 1 || d > 65536) return false;
  const std::size_t at = kFixed + 4 * static_cast<std::size_t>(d);
  if (prefix.size() < at + 4 + 17) return false;  // the key, and the payload up to its kind
  return std::memcmp(prefix.data() + at, kPayloadKey, 4) == 0 &&
         std::memcmp(prefix.data() + at + 4, kPayloadMagic, 8) == 0 && prefix[at + 4 + 16] == 0;
}

namespace {

// Everything of a flat index's carrier up to the payload.
Envelope read_flat_envelope(CheckedReader& reader) {
  expect(reader, "IwFl");
  const Envelope envelope = read_envelope(reader);
  if (envelope.d < 1 || envelope.d > 65536) reader.fail_here("the dimension is out of range");
  expect(reader, 1, "number of lists");
  reader.value<std::uint64_t>("number of probes");
  expect(reader, envelope.metric == faiss::METRIC_L2 ? "IxF2" : "IxFI");
  const Envelope coarse = read_envelope(reader);
  if (coarse.d != envelope.d || coarse.ntotal != 1 || coarse.metric != envelope.metric) {
    reader.fail_here("the coarse quantizer of the carrier is damaged");
  }
  expect(reader, static_cast<std::uint64_t>(envelope.d), "coarse quantizer");
  std::vector<float> zero;
  reader.read_vector(zero, static_cast<std::uint64_t>(envelope.d), "coarse quantizer");
  if (reader.value<std::uint8_t>("direct map") != 0) reader.fail_here("unexpected direct map");
  expect(reader, 0, "direct map");
  expect(reader, "ilTQ");
  return envelope;
}

}  // namespace

std::unique_ptr<IndexTurboQuant> read_flat_carrier(faiss::IOReader* stream) {
  CheckedReader reader(stream);
  const Envelope envelope = read_flat_envelope(reader);
  auto payload = read_payload(stream, 0);
  if (payload->flat == nullptr) reader.fail_here("expected a flat TurboQuant index");
  require_residuals_in_place(*payload->flat);
  check_carrier(envelope.d, envelope.ntotal, envelope.metric, payload->flat->d,
                static_cast<std::uint64_t>(payload->flat->ntotal), payload->flat->metric_type);
  return std::move(payload->flat);
}

FlatView view_flat_carrier(const std::uint8_t* data, std::size_t size, bool check_codes) {
  MemoryReader stream(data, size);
  CheckedReader reader(&stream);
  const Envelope envelope = read_flat_envelope(reader);
  FlatView view = view_flat_payload(stream, check_codes);
  if (view.options.residual) fail("codes of residuals cannot be mapped without their base");
  check_carrier(envelope.d, envelope.ntotal, envelope.metric,
                static_cast<std::int64_t>(view.dimension), static_cast<std::uint64_t>(view.count),
                view.metric);
  return view;
}

}  // namespace turboquant
