#include "index/payload.h"

#include <faiss/index_io.h>
#include <faiss/invlists/InvertedListsIOHook.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "index/checked_reader.h"
#include "index/checks.h"
#include "index/checksum.h"
#include "index/packed_lists.h"
#include "index/packed_rows.h"
#include "quantizer/quantizer_impl.h"

namespace turboquant {
namespace {

constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kPackedVersion = 2;  // with kFlagPacked, and only with it
constexpr std::uint64_t kMaxCodeBytes = std::uint64_t{1} << 62;
constexpr std::uint64_t kMaxLists = std::uint64_t{1} << 24;
constexpr std::size_t kMaxDimension = 65536;
constexpr std::uint8_t kFlagNormalize = 1;
constexpr std::uint8_t kFlagByResidual = 2;
constexpr std::uint8_t kFlagCentre = 4;         // of flat indexes whose codes are of x - c
constexpr std::uint8_t kFlagCentreFollows = 8;  // c itself stands before the codes
constexpr std::uint8_t kFlagPacked = 16;        // of version 2
constexpr std::uint8_t kFlagResidual = 32;      // of flat indexes that refine another
enum Kind : std::uint8_t { kFlat = 0, kIvf = 1, kTwoLevel = 2 };

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t header_size;
  std::uint8_t kind;
  std::uint8_t bits;
  std::uint8_t estimator;
  std::uint8_t projection;
  std::uint8_t metric;
  std::uint8_t flags;
  std::uint16_t first_bits;  // of kTwoLevel, else 0
  std::uint32_t dimension;
  std::uint32_t code_size;
  std::uint64_t seed;
  std::uint64_t count;
  std::uint64_t lists;
  std::uint64_t fingerprint;
  std::uint64_t reserved2;
  std::uint64_t checksum;
};
static_assert(sizeof(Header) == 80 && alignof(Header) == 8);
static_assert(offsetof(Header, dimension) == 24 && offsetof(Header, seed) == 32 &&
              offsetof(Header, fingerprint) == 56 && offsetof(Header, checksum) == 72);

std::uint64_t header_checksum(const Header& header) {
  return checksum(reinterpret_cast<const std::uint8_t*>(&header), offsetof(Header, checksum));
}

Header make_header(Kind kind, const Quantizer& codec, const IndexOptions& options,
                   faiss::MetricType metric) {
  Header header{};
  std::memcpy(header.magic, kPayloadMagic, sizeof header.magic);
  header.version = kVersion;
  header.header_size = sizeof(Header);
  header.kind = kind;
  header.bits = static_cast<std::uint8_t>(options.bits);
  header.estimator = static_cast<std::uint8_t>(options.estimator);
  header.projection = static_cast<std::uint8_t>(options.projection);
  header.metric = static_cast<std::uint8_t>(to_metric(metric));
  header.flags = static_cast<std::uint8_t>((options.normalize ? kFlagNormalize : 0) |
                                           (options.centre ? kFlagCentre : 0) |
                                           (options.residual ? kFlagResidual : 0));
  header.dimension = static_cast<std::uint32_t>(codec.dimension());
  header.code_size = static_cast<std::uint32_t>(codec.code_size());
  header.seed = options.seed;
  header.lists = 1;
  header.fingerprint = code_fingerprint(codec);
  return header;
}

// ---- writing ----

void write_header(faiss::IOWriter* writer, Header header, bool packed) {
  if (packed) {
    header.version = kPackedVersion;
    header.flags |= kFlagPacked;
  }
  header.checksum = header_checksum(header);
  write_bytes(writer, kPayloadKey, 4);
  write_bytes(writer, &header, sizeof header);
}

void write_checksum(faiss::IOWriter* writer, const void* data, std::size_t size) {
  const std::uint64_t sum = checksum(static_cast<const std::uint8_t*>(data), size);
  write_bytes(writer, &sum, sizeof sum);
}

// first_bits: of a two-level index, else 0.
void write_flat(const IndexTurboQuant& index, int first_bits, faiss::IOWriter* writer, bool pack) {
  Header header = make_header(first_bits > 0 ? kTwoLevel : kFlat, index.codec(), index.options(),
                              index.metric_type);
  header.first_bits = static_cast<std::uint16_t>(first_bits);
  header.count = static_cast<std::uint64_t>(index.ntotal);
  const std::vector<float> centre = index.centre();
  if (!centre.empty()) header.flags |= kFlagCentreFollows;
  write_header(writer, header, pack);
  if (!centre.empty()) {
    const std::size_t size = centre.size() * sizeof(float);
    write_bytes(writer, centre.data(), size);
    write_checksum(writer, centre.data(), size);
  }
  const auto rows = static_cast<std::size_t>(index.ntotal);
  if (pack) {
    const packing::RowLayout layout = row_layout(index.codec());
    const std::size_t batch = packed_batch_rows(layout);
    for (std::size_t i = 0; i < rows; i += batch) {
      write_packed_rows(writer, layout, index.codes.data() + i * index.code_size,
                        std::min(batch, rows - i));
    }
    return;
  }
  write_bytes(writer, index.codes.data(), rows * index.code_size);
  write_checksum(writer, index.codes.data(), rows * index.code_size);
}

void write_ivf(const IndexIVFTurboQuant& index, faiss::IOWriter* writer, bool pack) {
  Header header = make_header(kIvf, index.codec(), index.options(), index.metric_type);
  if (index.by_residual) header.flags |= kFlagByResidual;
  header.count = static_cast<std::uint64_t>(index.ntotal);
  header.lists = index.nlist;
  pack = pack && index.invlists != nullptr;
  write_header(writer, header, pack);
  if (pack) {
    write_packed_lists(writer, row_layout(index.codec()), *index.invlists);
    return;
  }
  faiss::write_InvertedLists(index.invlists, writer);
}

// ---- reading ----

Header read_header(CheckedReader& reader) {
  const auto header = reader.value<Header>("TurboQuant header");
  if (std::memcmp(header.magic, kPayloadMagic, sizeof header.magic) != 0) {
    reader.fail_here("no TurboQuant index: the magic number is wrong");
  }
  if (header.version < kVersion || header.version > kPackedVersion ||
      header.header_size != sizeof(Header)) {
    reader.fail_here("TurboQuant index format " + std::to_string(header.version) +
                     " is unknown; this program reads formats " + std::to_string(kVersion) +
                     " and " + std::to_string(kPackedVersion));
  }
  if (kCompareChecksums && header.checksum != header_checksum(header)) {
    reader.fail_here("the TurboQuant header is damaged: its checksum is wrong");
  }
  const bool gaussian = header.projection == static_cast<std::uint8_t>(Projection::kGaussian);
  const bool qjl = header.estimator == static_cast<std::uint8_t>(Estimator::kQjl);
  const std::uint8_t allowed_flags =
      (header.kind == kIvf ? kFlagByResidual : kFlagNormalize | kFlagCentre | kFlagCentreFollows) |
      (header.kind == kFlat ? kFlagResidual : 0) | kFlagPacked;
  const bool stray_residual =
      (header.flags & kFlagResidual) != 0 && (header.flags & (kFlagNormalize | kFlagCentre)) != 0;
  const bool stray_packing =
      ((header.flags & kFlagPacked) != 0) != (header.version == kPackedVersion);
  const bool stray_centre = (header.flags & kFlagCentreFollows) != 0
                                ? (header.flags & kFlagCentre) == 0
                                : (header.flags & kFlagCentre) != 0 && header.count > 0;
  const bool trellis = header.estimator == static_cast<std::uint8_t>(Estimator::kTrellis);
  const bool bad_level = header.kind == kTwoLevel ? header.first_bits < 1 || qjl || trellis ||
                                                        header.first_bits >= header.bits
                                                  : header.first_bits != 0;
  if (header.kind > kTwoLevel || bad_level || header.bits < 1 || header.bits > 4 ||
      header.estimator > 3 || header.projection > 1 || (gaussian && !qjl) || header.metric > 1 ||
      (header.flags & ~allowed_flags) != 0 || stray_centre || stray_packing || stray_residual ||
      header.reserved2 != 0) {
    reader.fail_here("the TurboQuant header holds a value that format " +
                     std::to_string(header.version) + " does not allow");
  }
  if (header.dimension < 1 || header.dimension > kMaxDimension) {
    reader.fail_here("the dimension " + std::to_string(header.dimension) + " is out of range");
  }
  if (header.lists < 1 || header.lists > kMaxLists || (header.kind != kIvf && header.lists != 1)) {
    reader.fail_here(std::to_string(header.lists) + " inverted lists are out of range");
  }
  if (header.code_size < 1 || header.count > kMaxCodeBytes / header.code_size) {
    reader.fail_here(std::to_string(header.count) + " vectors are out of range");
  }
  return header;
}

IndexOptions options_of(const Header& header) {
  IndexOptions options;
  options.bits = header.bits;
  options.estimator = static_cast<Estimator>(header.estimator);
  options.projection = static_cast<Projection>(header.projection);
  options.normalize = (header.flags & kFlagNormalize) != 0;
  options.centre = (header.flags & kFlagCentre) != 0;
  options.residual = (header.flags & kFlagResidual) != 0;
  options.seed = header.seed;
  return options;
}

faiss::MetricType metric_of(const Header& header) {
  return header.metric == static_cast<std::uint8_t>(Metric::kL2) ? faiss::METRIC_L2
                                                                 : faiss::METRIC_INNER_PRODUCT;
}

void check_codec(const CheckedReader& reader, const Header& header, const Quantizer& codec) {
  if (header.code_size != codec.code_size()) {
    reader.fail_here("the file has codes of " + std::to_string(header.code_size) +
                     " bytes, its parameters make " + std::to_string(codec.code_size()));
  }
  if (kCompareChecksums && header.fingerprint != code_fingerprint(codec)) {
    reader.fail_here("the file was made with another rotation or level table");
  }
}

// The floats behind the packed coordinates of each code.
void check_factors(const CheckedReader& reader, const Quantizer& codec, const std::uint8_t* codes,
                   std::size_t n) {
  const std::size_t code_size = codec.code_size();
  const std::size_t packed = codec.impl().packed;
  for (std::size_t row = 0; row < n; ++row) {
    for (std::size_t at = packed; at + sizeof(float) <= code_size; at += sizeof(float)) {
      float factor;
      std::memcpy(&factor, codes + row * code_size + at, sizeof factor);
      if (!std::isfinite(factor)) {
        reader.fail_here("the factors of vector " + std::to_string(row) + " are not finite");
      }
    }
  }
}

// The centre of a flat index; empty when it has none.
std::vector<float> read_centre(CheckedReader& reader, const Header& header) {
  std::vector<float> centre;
  if ((header.flags & kFlagCentreFollows) == 0) return centre;
  reader.read_vector(centre, header.dimension, "centre");
  const auto stored = reader.value<std::uint64_t>("checksum of the centre");
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(centre.data());
  if (kCompareChecksums && stored != checksum(bytes, centre.size() * sizeof(float))) {
    reader.fail_here("the centre is damaged: its checksum is wrong");
  }
  for (const float c : centre) {
    if (!std::isfinite(c)) reader.fail_here("the centre is not finite");
  }
  return centre;
}

bool is_packed(const Header& header) { return (header.flags & kFlagPacked) != 0; }

// `codes` grows as the bytes arrive, or at once when the stream is known to be long enough.
template <class Codes>
void read_packed_codes(CheckedReader& reader, const Quantizer& codec, std::uint64_t count,
                       Codes& codes) {
  const packing::RowLayout layout = row_layout(codec);
  const std::size_t batch = packed_batch_rows(layout);
  const bool sure = require_packed_rows(reader, layout, count);
  if (sure) codes.resize(static_cast<std::size_t>(count) * layout.code_size);
  std::vector<std::uint8_t> scratch;
  for (std::uint64_t done = 0; done < count;) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(batch, count - done));
    const std::size_t at = static_cast<std::size_t>(done) * layout.code_size;
    if (!sure) codes.resize(at + n * layout.code_size);
    read_packed_rows(reader, layout, codes.data() + at, n, scratch);
    done += n;
  }
}

std::unique_ptr<IndexTurboQuant> read_flat(CheckedReader& reader, const Header& header) {
  auto index = std::make_unique<IndexTurboQuant>(static_cast<int>(header.dimension),
                                                 options_of(header), metric_of(header));
  const std::vector<float> centre = read_centre(reader, header);
  if (!centre.empty()) index->set_centre(centre.data());
  check_codec(reader, header, index->codec());
  if (is_packed(header)) {
    read_packed_codes(reader, index->codec(), header.count, index->codes);
  } else {
    reader.read_vector(index->codes, header.count * header.code_size, "codes");
    const auto stored = reader.value<std::uint64_t>("checksum of the codes");
    if (kCompareChecksums && stored != checksum(index->codes.data(), index->codes.size())) {
      reader.fail_here("the codes are damaged: their checksum is wrong");
    }
  }
  check_factors(reader, index->codec(), index->codes.data(),
                static_cast<std::size_t>(header.count));
  index->ntotal = static_cast<std::int64_t>(header.count);
  return index;
}

// Sizes of the lists of FAISS's "ilar" format: all of them, or pairs of list and size.
std::vector<std::uint64_t> read_list_sizes(CheckedReader& reader, const Header& header) {
  char type[4];
  reader.read(type, sizeof type, "inverted list sizes");
  const bool full = std::memcmp(type, "full", 4) == 0;
  if (!full && std::memcmp(type, "sprs", 4) != 0) {
    reader.fail_here("the inverted list sizes are of unknown type");
  }
  const auto stored = reader.value<std::uint64_t>("inverted list sizes");
  if (full ? stored != header.lists : stored > 2 * header.lists || stored % 2 != 0) {
    reader.fail_here("the number of inverted list sizes is wrong");
  }
  std::vector<std::uint64_t> sizes;
  reader.read_vector(sizes, stored, "inverted list sizes");
  if (!full) {
    std::vector<std::uint64_t> all(static_cast<std::size_t>(header.lists), 0);
    for (std::size_t i = 0; i < sizes.size(); i += 2) {
      if (sizes[i] >= header.lists) reader.fail_here("an inverted list number is out of range");
      all[static_cast<std::size_t>(sizes[i])] = sizes[i + 1];
    }
    sizes = std::move(all);
  }
  require_list_sizes(reader, sizes, header.count);
  return sizes;
}

std::unique_ptr<faiss::InvertedLists> read_lists_in_memory(CheckedReader& reader,
                                                           const Header& header,
                                                           const Quantizer& codec) {
  if (reader.value<std::uint64_t>("inverted lists") != header.lists ||
      reader.value<std::uint64_t>("inverted lists") != header.code_size) {
    reader.fail_here("the inverted lists do not fit the TurboQuant header");
  }
  const std::vector<std::uint64_t> sizes = read_list_sizes(reader, header);
  auto lists = std::make_unique<faiss::ArrayInvertedLists>(static_cast<std::size_t>(header.lists),
                                                           codec.code_size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) continue;
    reader.read_vector(lists->codes[i], sizes[i] * header.code_size, "codes of an inverted list");
    reader.read_vector(lists->ids[i], sizes[i], "ids of an inverted list");
    check_factors(reader, codec, lists->codes[i].data(), static_cast<std::size_t>(sizes[i]));
  }
  return lists;
}

// Lists that FAISS maps or keeps elsewhere are FAISS's to read; ours are read here, bounded.
std::unique_ptr<faiss::InvertedLists> read_lists(CheckedReader& reader, const Header& header,
                                                 const Quantizer& codec, int io_flags) {
  if (is_packed(header)) {
    if ((io_flags & faiss::IO_FLAG_SKIP_IVF_DATA) != 0) {
      reader.fail_here(
          "the inverted lists are packed: read them into memory, or write the index "
          "again without packing");
    }
    auto lists = read_packed_lists(reader, row_layout(codec),
                                   static_cast<std::size_t>(header.lists), header.count);
    for (std::size_t i = 0; i < lists->nlist; ++i) {
      check_factors(reader, codec, lists->codes[i].data(), lists->ids[i].size());
    }
    return lists;
  }
  std::unique_ptr<faiss::InvertedLists> lists;
  if ((io_flags & faiss::IO_FLAG_SKIP_IVF_DATA) != 0) {
    lists.reset(faiss::read_InvertedLists(reader.stream(), io_flags));
  } else {
    char key[5] = {};
    reader.read(key, 4, "inverted lists");
    if (std::memcmp(key, "ilar", 4) == 0) return read_lists_in_memory(reader, header, codec);
    if (std::memcmp(key, "il00", 4) == 0) {
      if (header.count != 0) reader.fail_here("the inverted lists are missing");
      return nullptr;
    }
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    reader.fail_here("lists on disk are not fuzzed");
#endif
    const auto* hook =
        faiss::InvertedListsIOHook::lookup(static_cast<int>(faiss::fourcc(std::string(key))));
    lists.reset(hook->read(reader.stream(), io_flags));
  }
  if (lists == nullptr || lists->nlist != header.lists || lists->code_size != header.code_size) {
    reader.fail_here("the inverted lists do not fit the TurboQuant header");
  }
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < lists->nlist; ++i) total += lists->list_size(i);
  if (total != header.count) reader.fail_here("the inverted lists do not add up to the index");
  return lists;
}

struct Hook : faiss::InvertedListsIOHook {
  Hook() : faiss::InvertedListsIOHook(kPayloadKey, typeid(Payload).name()) {}

  void write(const faiss::InvertedLists* lists, faiss::IOWriter* writer) const override {
    write_payload(dynamic_cast<const Payload&>(*lists), writer);
  }
  faiss::InvertedLists* read(faiss::IOReader* reader, int io_flags) const override {
    return read_payload(reader, io_flags).release();
  }
};

}  // namespace

// FAISS compares the code size with the carrier's, an IndexIVFFlat.
Payload::Payload(std::size_t nlist_in, std::size_t dimension)
    : faiss::ReadOnlyInvertedLists(nlist_in, dimension * sizeof(float)) {}

namespace {
[[noreturn]] void fail_unconverted() {
  fail("this TurboQuant index was read without turboquant::read_index; link turboquant::index");
}
}  // namespace

std::size_t Payload::list_size(std::size_t) const { fail_unconverted(); }
const std::uint8_t* Payload::get_codes(std::size_t) const { fail_unconverted(); }
const std::int64_t* Payload::get_ids(std::size_t) const { fail_unconverted(); }

void write_payload(const Payload& payload, faiss::IOWriter* writer) {
  if (payload.flat_to_write != nullptr) {
    write_flat(*payload.flat_to_write, 0, writer, payload.pack);
  } else if (payload.two_level_to_write != nullptr) {
    const IndexTwoLevel& index = *payload.two_level_to_write;
    write_flat(index.flat(), index.first_bits(), writer, payload.pack);
  } else if (payload.ivf_to_write != nullptr) {
    write_ivf(*payload.ivf_to_write, writer, payload.pack);
  } else {
    fail_unconverted();
  }
}

std::unique_ptr<Payload> read_payload(faiss::IOReader* stream, int io_flags) {
  CheckedReader reader(stream);
  const Header header = read_header(reader);
  auto payload =
      std::make_unique<Payload>(static_cast<std::size_t>(header.lists), header.dimension);
  if (header.kind != kIvf) {
    payload->flat = read_flat(reader, header);
    if (header.kind == kTwoLevel) {
      payload->two_level = std::make_unique<IndexTwoLevel>(*payload->flat, header.first_bits);
      payload->flat.reset();
    }
    return payload;
  }
  const Quantizer codec = make_codec(header.dimension, options_of(header), metric_of(header));
  check_codec(reader, header, codec);
  payload->ivf = std::make_unique<IvfContent>();
  payload->ivf->options = options_of(header);
  payload->ivf->metric = metric_of(header);
  payload->ivf->dimension = header.dimension;
  payload->ivf->nlist = static_cast<std::size_t>(header.lists);
  payload->ivf->count = header.count;
  payload->ivf->by_residual = (header.flags & kFlagByResidual) != 0;
  payload->ivf->lists = read_lists(reader, header, codec, io_flags);
  return payload;
}

FlatView view_flat_payload(MemoryReader& stream, bool check_codes) {
  CheckedReader reader(&stream);
  const Header header = read_header(reader);
  if (header.kind != kFlat) reader.fail_here("expected a flat TurboQuant index");
  if (is_packed(header)) {
    reader.fail_here(
        "the codes are packed and cannot be mapped: read them into memory, or write "
        "the index again without packing");
  }
  std::vector<float> centre = read_centre(reader, header);
  const Quantizer codec =
      make_codec(header.dimension, options_of(header), metric_of(header), centre);
  check_codec(reader, header, codec);
  const std::uint64_t bytes = header.count * header.code_size;
  if (stream.remaining() < sizeof(std::uint64_t) ||
      bytes > stream.remaining() - sizeof(std::uint64_t)) {
    reader.fail_here("the file ends inside the codes");
  }
  FlatView view{options_of(header), metric_of(header),
                header.dimension,   static_cast<std::int64_t>(header.count),
                stream.position(),  std::move(centre)};
  if (check_codes) {
    std::uint64_t stored;
    std::memcpy(&stored, view.codes + bytes, sizeof stored);
    if (kCompareChecksums && stored != checksum(view.codes, static_cast<std::size_t>(bytes))) {
      reader.fail_here("the codes are damaged: their checksum is wrong");
    }
    check_factors(reader, codec, view.codes, static_cast<std::size_t>(header.count));
  }
  return view;
}

void register_payload() {
  static std::once_flag once;
  std::call_once(once, [] { faiss::InvertedListsIOHook::add_callback(new Hook); });
}

}  // namespace turboquant
