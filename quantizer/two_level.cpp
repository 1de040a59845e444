#include "quantizer/two_level.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "quantizer/levels.h"
#include "quantizer/quantizer_impl.h"

namespace turboquant {
namespace {

// Levels that are the codes themselves. Entries past 2^bits repeat, as the kernels want them.
struct Identity {
  explicit Identity(int bits) {
    for (int i = 0; i < 16; ++i) levels[i] = static_cast<std::int8_t>(i % (1 << bits));
  }
  std::int8_t levels[16];
};

QuantizerOptions first_options(const Quantizer& whole, int first_bits) {
  QuantizerOptions options = whole.options();
  if (options.estimator == Estimator::kQjl || options.estimator == Estimator::kTrellis) {
    throw std::invalid_argument("only scalar codes have leading bits to search by");
  }
  if (first_bits < 1 || first_bits >= options.bits) {
    throw std::invalid_argument("the first level of a code of " + std::to_string(options.bits) +
                                " bits has 1 to " + std::to_string(options.bits - 1) +
                                " bits, not " + std::to_string(first_bits));
  }
  options.bits = first_bits;
  options.estimator = Estimator::kTurboQuant;
  return options;
}

}  // namespace

TwoLevel::TwoLevel(const Quantizer& whole, int first_bits)
    : whole_(whole),
      first_(first_options(whole, first_bits)),
      rest_bits_(whole.options().bits - first_bits),
      rest_size_(kernels::packed_bytes(whole.dimension(), rest_bits_) + sizeof(float)) {}

void TwoLevel::split(const std::uint8_t* rows, std::size_t n, std::uint8_t* first,
                     std::uint8_t* rest) const {
  const Quantizer::Impl& from = whole_.impl();
  const Quantizer::Impl& to = first_.impl();
  const std::size_t d = whole_.dimension();
  std::vector<std::int8_t> codes(from.padded);
  std::vector<std::uint8_t> leading(d);
  std::vector<std::uint8_t> trailing(d);
  const Identity identity(from.options.bits);
  const auto mask = static_cast<std::uint8_t>((1 << rest_bits_) - 1);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint8_t* row = rows + i * from.code_size();
    std::uint8_t* out = first + i * to.code_size();
    std::uint8_t* other = rest + i * rest_size_;
    from.kernels.decode(row, d, from.options.bits, identity.levels, codes.data());
    std::int64_t squares = 0;
    std::int64_t product = 0;
    for (std::size_t j = 0; j < d; ++j) {
      const auto code = static_cast<std::uint8_t>(codes[j]);
      leading[j] = static_cast<std::uint8_t>(code >> rest_bits_);
      trailing[j] = code & mask;
      const std::int64_t level = from.levels.levels[code];
      squares += level * level;
      product += level * to.levels.levels[leading[j]];
    }
    from.kernels.pack(leading.data(), d, to.options.bits, out);
    from.kernels.pack(trailing.data(), d, rest_bits_, other);
    // The multiple of the first level that the whole level is, but for an error orthogonal to it.
    const float scale = from.scale(row);
    const float first_scale = saturate(static_cast<double>(scale) * static_cast<double>(squares) /
                                       static_cast<double>(product));
    std::memcpy(out + to.packed, &first_scale, sizeof first_scale);
    const std::size_t after = from.packed + sizeof(float);
    std::memcpy(out + to.packed + sizeof(float), row + after, from.code_size() - after);
    std::memcpy(other + rest_size_ - sizeof scale, &scale, sizeof scale);
  }
}

void TwoLevel::join(const std::uint8_t* first, const std::uint8_t* rest,
                    const std::int64_t* numbers, std::size_t n, std::uint8_t* rows) const {
  const Quantizer::Impl& to = whole_.impl();
  const Quantizer::Impl& from = first_.impl();
  const std::size_t d = whole_.dimension();
  std::vector<std::int8_t> leading(to.padded);
  std::vector<std::int8_t> trailing(to.padded);
  std::vector<std::uint8_t> codes(d);
  const Identity first_identity(from.options.bits);
  const Identity rest_identity(rest_bits_);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t number = numbers == nullptr ? i : static_cast<std::size_t>(numbers[i]);
    const std::uint8_t* a = first + number * from.code_size();
    const std::uint8_t* b = rest + number * rest_size_;
    std::uint8_t* row = rows + i * to.code_size();
    to.kernels.decode(a, d, from.options.bits, first_identity.levels, leading.data());
    to.kernels.decode(b, d, rest_bits_, rest_identity.levels, trailing.data());
    for (std::size_t j = 0; j < d; ++j) {
      codes[j] = static_cast<std::uint8_t>(leading[j] << rest_bits_ | trailing[j]);
    }
    to.kernels.pack(codes.data(), d, to.options.bits, row);
    std::memcpy(row + to.packed, b + rest_size_ - sizeof(float), sizeof(float));
    const std::size_t after = to.packed + sizeof(float);
    std::memcpy(row + after, a + from.packed + sizeof(float), to.code_size() - after);
  }
}

}  // namespace turboquant
