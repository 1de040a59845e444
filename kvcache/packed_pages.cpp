#include "kvcache/packed_pages.h"

#include <cstring>

#include "packing/rows.h"
#include "packing/streams.h"

namespace turboquant::kv {
namespace {

// The codes of one part of one head in a page: rows of one layout.
struct CodePlane {
  std::size_t at;
  std::size_t rows;
  packing::RowLayout layout;
  std::size_t bytes() const { return rows * layout.code_size; }
};

CodePlane plane_of(const SideFormat& side, const PartFormat& part, std::size_t at) {
  const std::size_t dimension = side.keys ? part.d : side.page_tokens;
  return {at + part.codes,
          side.keys ? side.page_tokens : part.d,
          {dimension, part.bits, kernels::packed_bytes(dimension, part.bits)}};
}

// Per part of keys and of values, its planes in all heads, ascending.
std::vector<std::vector<CodePlane>> planes_by_part(const LayerFormat& format,
                                                   std::size_t kv_heads) {
  std::vector<std::vector<CodePlane>> all;
  std::size_t first = 0;
  for (const SideFormat* side : {&format.keys, &format.values}) {
    for (const PartFormat& part : side->parts) {
      all.emplace_back();
      for (std::size_t head = 0; head < kv_heads; ++head) {
        all.back().push_back(plane_of(*side, part, head * format.head_bytes + first));
      }
    }
    first += side->bytes;
  }
  return all;
}

// Calls f(at, bytes) for what lies between the code planes of a page.
template <class F>
void for_gaps(const LayerFormat& format, std::size_t kv_heads, const F& f) {
  std::size_t end = 0;
  std::size_t first = 0;
  for (std::size_t head = 0; head < kv_heads; ++head) {
    first = head * format.head_bytes;
    for (const SideFormat* side : {&format.keys, &format.values}) {
      for (const PartFormat& part : side->parts) {
        const CodePlane plane = plane_of(*side, part, first);
        f(end, plane.at - end);
        end = plane.at + plane.bytes();
      }
      first += side->bytes;
    }
  }
  f(end, format.page_bytes - end);
}

std::size_t gap_bytes(const LayerFormat& format, std::size_t kv_heads) {
  std::size_t sum = 0;
  for_gaps(format, kv_heads, [&](std::size_t, std::size_t n) { sum += n; });
  return sum;
}

}  // namespace

std::vector<std::uint8_t> pack_pages(const LayerFormat& format, std::size_t kv_heads,
                                     const std::vector<const std::uint8_t*>& pages) {
  std::vector<std::uint8_t> out;
  for (const std::uint8_t* page : pages) {
    for_gaps(format, kv_heads, [&](std::size_t at, std::size_t n) {
      out.insert(out.end(), page + at, page + at + n);
    });
  }
  for (const std::vector<CodePlane>& planes : planes_by_part(format, kv_heads)) {
    std::vector<std::uint8_t> codes;
    for (const std::uint8_t* page : pages) {
      for (const CodePlane& plane : planes) {
        codes.insert(codes.end(), page + plane.at, page + plane.at + plane.bytes());
      }
    }
    const packing::RowLayout& layout = planes[0].layout;
    const auto packed = packing::pack_rows(layout, codes.data(), codes.size() / layout.code_size);
    const std::uint64_t size = packed.size();
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&size);
    out.insert(out.end(), bytes, bytes + sizeof size);
    out.insert(out.end(), packed.begin(), packed.end());
  }
  return out;
}

std::size_t least_packed_bytes(const LayerFormat& format, std::size_t kv_heads, std::size_t pages) {
  const std::size_t gaps = gap_bytes(format, kv_heads);
  return pages * gaps + pages * (format.page_bytes - gaps) / packing::kMostExpansion;
}

bool unpack_pages(const LayerFormat& format, std::size_t kv_heads, const std::uint8_t* bytes,
                  std::size_t size, const std::vector<std::uint8_t*>& pages) {
  if (size < pages.size() * gap_bytes(format, kv_heads)) return false;
  for (std::uint8_t* page : pages) {
    for_gaps(format, kv_heads, [&](std::size_t at, std::size_t n) {
      std::memcpy(page + at, bytes, n);
      bytes += n;
      size -= n;
    });
  }
  for (const std::vector<CodePlane>& planes : planes_by_part(format, kv_heads)) {
    std::uint64_t packed = 0;
    if (size < sizeof packed) return false;
    std::memcpy(&packed, bytes, sizeof packed);
    bytes += sizeof packed;
    size -= sizeof packed;
    std::vector<std::uint8_t> codes(pages.size() * planes.size() * planes[0].bytes());
    const packing::RowLayout& layout = planes[0].layout;
    if (packed > size || !packing::unpack_rows(layout, bytes, static_cast<std::size_t>(packed),
                                               codes.size() / layout.code_size, codes.data())) {
      return false;
    }
    bytes += packed;
    size -= static_cast<std::size_t>(packed);
    const std::uint8_t* from = codes.data();
    for (std::uint8_t* page : pages) {
      for (const CodePlane& plane : planes) {
        std::memcpy(page + plane.at, from, plane.bytes());
        from += plane.bytes();
      }
    }
  }
  return size == 0;
}

}  // namespace turboquant::kv
