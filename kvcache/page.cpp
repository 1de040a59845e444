#include "kvcache/page.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "quantizer/levels.h"

namespace turboquant::kv {
namespace {

using kernels::CodeTable;
using kernels::KernelTable;

constexpr std::size_t kPlaneAlignment = 16;

void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

void validate_side(const SideOptions& side, std::size_t dim, const char* name) {
  const bool coded = side.bits >= 1 && side.bits <= kernels::kMaxBits;
  if (!coded && side.bits != kRawBits) {
    refuse(std::string(name) + " bits must be 1 to 4, or 16 for half precision, not " +
           std::to_string(side.bits));
  }
  if (side.outliers == 0) return;
  if (!coded || side.bits == kernels::kMaxBits) {
    refuse(std::string("outlier channels take one bit more, so ") + name +
           " bits must be 1 to 3 with them, not " + std::to_string(side.bits));
  }
  if (side.outliers >= dim) {
    refuse(std::string("there are ") + std::to_string(side.outliers) + " outlier channels of " +
           name + ", but a head has " + std::to_string(dim));
  }
}

// A vector of a head in the order of its parts.
void gather(const std::uint16_t* channels, std::size_t dim, const float* x, float* out) {
  if (channels == nullptr) {
    std::memcpy(out, x, dim * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < dim; ++i) out[i] = x[channels[i]];
}

double squared_levels(const CodeTable& table, const std::uint8_t* codes, std::size_t d) {
  std::int32_t squares[16];
  for (std::size_t c = 0; c < 16; ++c) squares[c] = table.levels[c] * table.levels[c];
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < d; ++i) sum += squares[codes[i]];
  return sum;
}

// Codes of one rotated residual y[d] (scaled in place): of the roundings of its multiples, the one
// with the largest cosine. Returns the scale as it is stored; docs/kv_format.md says which.
// `spare` has room for d codes.
std::uint16_t encode_row(const KernelTable& kernels, const PartFormat& part, float* y,
                         std::uint8_t* codes, std::uint8_t* spare) {
  const double norm = std::sqrt(kernels.norm_squared(y, part.d));
  const double sqrt_d = std::sqrt(static_cast<double>(part.d));
  kernels.scale(y, part.d, norm > 0 ? sqrt_d / norm : 0, y);
  const CodeTable* tables = stretched_tables(part.bits);
  double product = 0;
  double squares = 1;
  for (std::size_t i = 0; i < (part.bits == 1 ? 1 : kStretches); ++i) {
    const double p = kernels.quantize(y, part.d, tables[i], spare);
    const double s = squared_levels(tables[i], spare, part.d);
    if (i > 0 && p * p * squares <= product * product * s) continue;
    product = p;
    squares = s;
    std::memcpy(codes, spare, part.d);
  }
  const double scale = part.bits == kernels::kMaxBits ? norm / sqrt_d * product / squares
                                                      : norm / std::sqrt(squares);
  const auto stored = static_cast<float>(scale / part.scale_unit);
  std::uint16_t half = 0;
  kernels.to_half(&stored, 1, &half);
  return half;
}

// Channel-major: row i holds the codes of channel i of all tokens.
void pack_values(const KernelTable& kernels, const PartFormat& part, std::size_t page_tokens,
                 const std::vector<std::uint8_t>& codes, std::uint8_t* out) {
  const std::size_t row_bytes = kernels::packed_bytes(page_tokens, part.bits);
  std::vector<std::uint8_t> row(page_tokens);
  for (std::size_t i = 0; i < part.d; ++i) {
    for (std::size_t t = 0; t < page_tokens; ++t) row[t] = codes[t * part.d + i];
    kernels.pack(row.data(), page_tokens, part.bits, out + i * row_bytes);
  }
}

}  // namespace

const CodeTable* stretched_tables(int bits) {
  static const auto tables = [] {
    std::array<std::array<CodeTable, kStretches>, kernels::kMaxBits> made{};
    for (std::size_t b = 0; b < made.size(); ++b) {
      for (std::size_t i = 0; i < kStretches; ++i) {
        made[b][i] = level_table(static_cast<int>(b) + 1);
        const float stretch = 0.8f + 0.06f * static_cast<float>(i);
        for (float& threshold : made[b][i].thresholds) threshold /= stretch;
      }
    }
    return made;
  }();
  return tables[static_cast<std::size_t>(bits) - 1].data();
}

void validate(const CacheOptions& options) {
  if (options.layers.empty()) refuse("a cache needs at least one layer");
  if (options.layers.size() > 4096) refuse("a cache has at most 4096 layers");
  if (options.kv_heads == 0 || options.kv_heads > 4096) refuse("kv heads must be 1 to 4096");
  if (options.query_heads == 0 || options.query_heads % options.kv_heads != 0 ||
      options.query_heads > 65536) {
    refuse("query heads (" + std::to_string(options.query_heads) +
           ") must be a multiple of kv heads (" + std::to_string(options.kv_heads) + ")");
  }
  for (const std::size_t dim : {options.key_dim, options.value_dim}) {
    if (dim == 0 || dim > 1024) refuse("a head size must be 1 to 1024, not " + std::to_string(dim));
  }
  if (options.page_tokens != 64 && options.page_tokens != 128) {
    refuse("a page has 64 or 128 tokens, not " + std::to_string(options.page_tokens));
  }
  if (options.max_sequences == 0 || options.max_sequences > 1u << 20) {
    refuse("sequences must be 1 to 1048576, not " + std::to_string(options.max_sequences));
  }
  if (options.sink_tokens > 1u << 20 || options.tail_tokens > 1u << 20) {
    refuse("sink and tail tokens are at most 1048576");
  }
  for (const LayerOptions& layer : options.layers) {
    validate_side(layer.keys, options.key_dim, "key");
    validate_side(layer.values, options.value_dim, "value");
    if (layer.values.centre) refuse("values cannot be centred");
  }
}

LayerFormat::LayerFormat(const CacheOptions& options, const LayerOptions& layer)
    : keys(side(options, layer.keys, options.key_dim, true)),
      values(side(options, layer.values, options.value_dim, false)),
      head_bytes(keys.bytes + values.bytes),
      page_bytes(head_bytes * options.kv_heads) {}

const Rotation* LayerFormat::rotation(std::size_t d, std::uint64_t seed) {
  for (const auto& known : rotations) {
    if (known->dimension() == d) return known.get();
  }
  rotations.push_back(std::make_unique<Rotation>(d, seed));
  return rotations.back().get();
}

SideFormat LayerFormat::side(const CacheOptions& options, const SideOptions& side, std::size_t dim,
                             bool keys_side) {
  SideFormat format;
  format.options = side;
  format.keys = keys_side;
  format.dim = dim;
  format.page_tokens = options.page_tokens;
  std::size_t at = 0;
  const auto plane = [&](std::size_t bytes) {
    const std::size_t start = at;
    at = kernels::round_up(at + bytes, kPlaneAlignment);
    return start;
  };
  if (format.raw()) {
    plane(options.page_tokens * dim * sizeof(std::uint16_t));
    format.bytes = at;
    return format;
  }
  std::size_t first = 0;
  const auto add_part = [&](std::size_t d, int bits) {
    PartFormat part;
    part.d = d;
    part.bits = bits;
    part.first = first;
    part.scale_unit = level_step(bits) / std::sqrt(static_cast<double>(d));
    first += d;
    part.rotation = rotation(d, options.seed);
    part.codes = plane(keys_side ? options.page_tokens * kernels::packed_bytes(d, bits)
                                 : d * kernels::packed_bytes(options.page_tokens, bits));
    part.scales = plane(options.page_tokens * sizeof(std::uint16_t));
    format.parts.push_back(part);
  };
  if (side.outliers > 0) add_part(side.outliers, side.bits + 1);
  add_part(dim - side.outliers, side.bits);
  if (side.centre) format.mean = plane(dim * sizeof(std::uint16_t));
  format.bytes = at;
  return format;
}

Page::Page(std::size_t bytes, std::shared_ptr<std::atomic<std::size_t>> allocated)
    : bytes_(bytes), allocated_(std::move(allocated)) {
  allocated_->fetch_add(bytes, std::memory_order_relaxed);
}

Page::~Page() { allocated_->fetch_sub(bytes_.size(), std::memory_order_relaxed); }

std::vector<std::uint16_t> choose_channels(const KernelTable& kernels, const SideFormat& format,
                                           const std::uint16_t* x, std::size_t stride) {
  std::vector<double> sums(format.dim);
  std::vector<double> squares(format.dim);
  std::vector<float> row(format.dim);
  for (std::size_t t = 0; t < format.page_tokens; ++t) {
    kernels.to_float(x + t * stride, format.dim, row.data());
    for (std::size_t i = 0; i < format.dim; ++i) {
      sums[i] += row[i];
      squares[i] += static_cast<double>(row[i]) * row[i];
    }
  }
  if (format.options.centre) {
    const auto n = static_cast<double>(format.page_tokens);
    for (std::size_t i = 0; i < format.dim; ++i) squares[i] -= sums[i] * sums[i] / n;
  }
  std::vector<std::uint16_t> order(format.dim);
  std::iota(order.begin(), order.end(), std::uint16_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint16_t a, std::uint16_t b) { return squares[a] > squares[b]; });
  const auto outliers = order.begin() + static_cast<std::ptrdiff_t>(format.options.outliers);
  std::sort(order.begin(), outliers);
  std::sort(outliers, order.end());
  return order;
}

void encode_side(const KernelTable& kernels, const SideFormat& format,
                 const std::uint16_t* channels, const std::uint16_t* x, std::size_t stride,
                 std::uint8_t* out) {
  const std::size_t tokens = format.page_tokens;
  if (format.raw()) {
    for (std::size_t t = 0; t < tokens; ++t) {
      std::memcpy(out + 2 * t * format.dim, x + t * stride, 2 * format.dim);
    }
    return;
  }
  std::memset(out, 0, format.bytes);
  std::vector<float> rotated(tokens * format.dim);
  std::vector<float> row(format.dim);
  for (std::size_t t = 0; t < tokens; ++t) {
    float* y = rotated.data() + t * format.dim;
    kernels.to_float(x + t * stride, format.dim, row.data());
    gather(channels, format.dim, row.data(), y);
    for (const PartFormat& part : format.parts) part.rotation->apply(kernels, y + part.first);
  }
  if (format.options.centre) {
    std::vector<float> mean(format.dim);
    for (std::size_t t = 0; t < tokens; ++t) {
      kernels.add_scaled(rotated.data() + t * format.dim, 1.0f / static_cast<float>(tokens),
                         format.dim, mean.data());
    }
    kernels.to_half(mean.data(), format.dim, halves(out + format.mean));
    // What is subtracted is what is stored, so the mean's rounding costs nothing.
    kernels.to_float(halves(out + format.mean), format.dim, mean.data());
    for (std::size_t t = 0; t < tokens; ++t) {
      kernels.add_scaled(mean.data(), -1, format.dim, rotated.data() + t * format.dim);
    }
  }
  std::vector<std::uint8_t> codes(tokens * format.dim);
  std::vector<std::uint8_t> spare(format.dim);
  for (const PartFormat& part : format.parts) {
    for (std::size_t t = 0; t < tokens; ++t) {
      std::uint8_t* row_codes = codes.data() + t * part.d;
      halves(out + part.scales)[t] = encode_row(
          kernels, part, rotated.data() + t * format.dim + part.first, row_codes, spare.data());
      if (format.keys) {
        kernels.pack(row_codes, part.d, part.bits,
                     out + part.codes + t * kernels::packed_bytes(part.d, part.bits));
      }
    }
    if (!format.keys) pack_values(kernels, part, tokens, codes, out + part.codes);
  }
}

void decode_side(const KernelTable& kernels, const SideFormat& format,
                 const std::uint16_t* channels, const std::uint8_t* in, float* x,
                 std::size_t stride) {
  const std::size_t tokens = format.page_tokens;
  if (format.raw()) {
    for (std::size_t t = 0; t < tokens; ++t) {
      kernels.to_float(halves(in) + t * format.dim, format.dim, x + t * stride);
    }
    return;
  }
  std::vector<float> mean(format.dim);
  if (format.options.centre) kernels.to_float(halves(in + format.mean), format.dim, mean.data());
  std::vector<float> scales(tokens);
  const std::size_t row_bytes = kernels::round_up(std::max(format.dim, tokens), kernels::kBlock);
  std::vector<std::int8_t> levels(row_bytes * std::max(format.dim, tokens));
  std::vector<float> y(format.dim);
  for (const PartFormat& part : format.parts) {
    const std::size_t rows = format.keys ? tokens : part.d;
    const std::size_t width = format.keys ? part.d : tokens;
    for (std::size_t r = 0; r < rows; ++r) {
      kernels.decode(in + part.codes + r * kernels::packed_bytes(width, part.bits), width,
                     part.bits, level_table(part.bits).levels, levels.data() + r * row_bytes);
    }
    kernels.to_float(halves(in + part.scales), tokens, scales.data());
    const auto unit = static_cast<float>(part.scale_unit);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t i = 0; i < part.d; ++i) {
        const int level = format.keys ? levels[t * row_bytes + i] : levels[i * row_bytes + t];
        y[i] = static_cast<float>(level) * (scales[t] * unit) + mean[part.first + i];
      }
      part.rotation->apply_inverse(kernels, y.data());
      for (std::size_t i = 0; i < part.d; ++i) {
        const std::size_t at = part.first + i;
        x[t * stride + (channels == nullptr ? at : channels[at])] = y[i];
      }
    }
  }
}

}  // namespace turboquant::kv
