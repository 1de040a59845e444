// A page: the codes of a run of tokens of one layer, for all its kv heads. docs/kv_format.md.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernel_table.h"
#include "kvcache/options.h"
#include "quantizer/aligned.h"
#include "quantizer/rotation.h"

namespace turboquant::kv {

/// Channels of a head that share a rotation and a number of bits: all of them, or the outliers, or
/// the rest.
struct PartFormat {
  std::size_t d = 0;
  int bits = 0;
  std::size_t codes = 0;   ///< offsets from the start of the head's side in a page
  std::size_t scales = 0;  ///< page_tokens halves
  std::size_t first = 0;   ///< where the part starts in a rotated vector of the head
  const Rotation* rotation = nullptr;
  /// A stored scale times this is the scale. Stored ones are so near the norm of the vector, where
  /// halves are dense; scales themselves are hundreds of times smaller.
  double scale_unit = 0;
};

/// The keys or the values of one head in a page.
struct SideFormat {
  SideOptions options;
  bool keys = false;
  std::size_t dim = 0;
  std::size_t page_tokens = 0;
  std::vector<PartFormat> parts;  ///< empty when raw
  std::size_t mean = 0;           ///< offset of dim halves in the rotated space, when centred
  std::size_t bytes = 0;          ///< a multiple of 16
  bool raw() const { return options.bits == kRawBits; }
};

/// How the pages of one layer are laid out: per head its keys, then its values.
struct LayerFormat {
  /// Rotations by part size, shared by the heads. Before the sides, which point into it.
  std::vector<std::unique_ptr<Rotation>> rotations;
  SideFormat keys;
  SideFormat values;
  std::size_t head_bytes = 0;
  std::size_t page_bytes = 0;

  LayerFormat(const CacheOptions& options, const LayerOptions& layer);
  LayerFormat(LayerFormat&&) = default;

 private:
  SideFormat side(const CacheOptions& options, const SideOptions& side, std::size_t dim, bool keys);
  const Rotation* rotation(std::size_t d, std::uint64_t seed);
};

/// The channels of a head in the order of its parts: outliers first, ascending. Chosen once.
struct ChannelOrder {
  std::vector<std::uint16_t> keys;  ///< empty: not chosen yet, or nothing to choose
  std::vector<std::uint16_t> values;
};

/// Counts its bytes in the cache that made it, until the last sequence lets it go.
class Page {
 public:
  Page(std::size_t bytes, std::shared_ptr<std::atomic<std::size_t>> allocated);
  ~Page();
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  std::uint8_t* data() { return bytes_.data(); }
  const std::uint8_t* data() const { return bytes_.data(); }

 private:
  AlignedVector<std::uint8_t> bytes_;
  std::shared_ptr<std::atomic<std::size_t>> allocated_;
};

/// Level tables whose thresholds are those of a vector times 0.8 to 1.28. The best codes of a
/// vector are its roundings under one of its multiples, and which one differs from vector to
/// vector.
inline constexpr std::size_t kStretches = 9;
const kernels::CodeTable* stretched_tables(int bits);

/// The `outliers` channels with the largest sum of squares of x[page_tokens][stride] after
/// centring, ascending, then the others.
std::vector<std::uint16_t> choose_channels(const kernels::KernelTable& kernels,
                                           const SideFormat& format, const std::uint16_t* x,
                                           std::size_t stride);

/// Encodes x[page_tokens][stride] (halves, the head's dim first ones of each row) to `out`.
/// channels: see ChannelOrder; null when the side has one part.
void encode_side(const kernels::KernelTable& kernels, const SideFormat& format,
                 const std::uint16_t* channels, const std::uint16_t* x, std::size_t stride,
                 std::uint8_t* out);

/// The inverse, for tests and tools: x[page_tokens][stride] floats, means added.
void decode_side(const kernels::KernelTable& kernels, const SideFormat& format,
                 const std::uint16_t* channels, const std::uint8_t* in, float* x,
                 std::size_t stride);

inline const std::uint16_t* halves(const std::uint8_t* at) {
  return reinterpret_cast<const std::uint16_t*>(at);
}
inline std::uint16_t* halves(std::uint8_t* at) { return reinterpret_cast<std::uint16_t*>(at); }

}  // namespace turboquant::kv
