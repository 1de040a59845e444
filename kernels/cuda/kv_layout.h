// How the codes of 64 tokens of one kv head lie on a device. Plain C++; device code uses it too.
//
// A tile: key codes, 64 key scales, the mean of the keys (dim halves), value codes, 64 value
// scales; scales and means as in docs/kv_format.md. Codes are in the order in which a warp loads
// them for m16n8k32 products whose rows they are: lane (g, t) = (lane / 4, lane % 4) needs 8 codes
// of row g and 8 of row g + 8 for each.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define TQ_KV_BOTH __host__ __device__
#else
#define TQ_KV_BOTH
#endif

namespace turboquant::cuda {

inline constexpr std::uint32_t kTileTokens = 64;

/// Byte offsets inside a tile. `dim` is 64, 128 or 256, bits are 2, 3 or 4.
struct KvTileFormat {
  std::uint32_t dim;
  std::uint32_t key_bits;
  std::uint32_t value_bits;

  TQ_KV_BOTH std::uint32_t key_code_bytes() const { return dim * kTileTokens / 8 * key_bits; }
  TQ_KV_BOTH std::uint32_t value_code_bytes() const { return dim * kTileTokens / 8 * value_bits; }
  TQ_KV_BOTH std::uint32_t key_scales() const { return key_code_bytes(); }
  TQ_KV_BOTH std::uint32_t mean() const { return key_scales() + 2 * kTileTokens; }
  TQ_KV_BOTH std::uint32_t values() const { return mean() + 2 * dim; }
  TQ_KV_BOTH std::uint32_t value_scales() const { return values() + value_code_bytes(); }
  TQ_KV_BOTH std::uint32_t bytes() const { return value_scales() + 2 * kTileTokens; }
};

/// Which token and channel code i of a fragment of a lane is.
struct KvPlace {
  std::uint32_t token;
  std::uint32_t channel;
};

/// A fragment is half of the rows of a product: 8 tokens and 32 channels (keys), or 8 channels and
/// 32 tokens (values). Row g + 8 h of the m-th 16 tokens of keys is token 8 g + 4 h + m. The order
/// of the tokens of values is that in which weights lie in a warp after one transposition.
TQ_KV_BOTH inline KvPlace kv_place(bool keys, std::uint32_t dim, std::uint32_t fragment,
                                   std::uint32_t lane, std::uint32_t i) {
  const std::uint32_t g = lane / 4;
  const std::uint32_t t = lane % 4;
  if (keys) {
    const std::uint32_t half = fragment / (dim / 32);
    const std::uint32_t step = fragment % (dim / 32);
    return {8 * g + 4 * (half % 2) + half / 2, t * (dim / 4) + 8 * step + i};
  }
  return {16 * t + 8 * (i / 2 % 2) + 4 * (i % 2) + 2 * (fragment % 2) + i / 4,
          8 * (fragment / 2) + g};
}

/// Four fragments of a lane are `bits` words, and those of four such units lie together, so that a
/// warp loads 16 bytes a lane. Word w of unit u: its offset among the codes of a side.
TQ_KV_BOTH inline std::uint32_t kv_word_offset(std::uint32_t bits, std::uint32_t unit,
                                               std::uint32_t lane, std::uint32_t w) {
  const std::uint32_t i = unit % 4 * bits + w;
  return unit / 4 * (bits * 512) + i / 4 * 512 + lane * 16 + i % 4 * 4;
}

/// Where code i (0 to 7) of fragment f (0 to 3) of a unit keeps its bit b: word and bit of it.
/// Every code is the low bits of a hexadecimal digit; at 3 bits, fragment 3 is in the digits'
/// fourth bits.
TQ_KV_BOTH inline std::uint32_t kv_bit_word(std::uint32_t bits, std::uint32_t f, std::uint32_t b) {
  if (bits == 4) return f;
  if (bits == 3) return f < 3 ? f : b;
  return f / 2;
}
TQ_KV_BOTH inline std::uint32_t kv_bit(std::uint32_t bits, std::uint32_t f, std::uint32_t i,
                                       std::uint32_t b) {
  if (bits == 4) return 4 * i + b;
  if (bits == 3) return f < 3 ? 4 * i + b : 4 * i + 3;
  return 4 * i + f % 2 * 2 + b;
}

/// The words of a unit of a lane from codes[token * token_stride + channel * channel_stride].
TQ_KV_BOTH inline void kv_pack_unit(bool keys, std::uint32_t dim, std::uint32_t bits,
                                    std::uint32_t unit, std::uint32_t lane,
                                    const std::uint8_t* codes, std::uint32_t token_stride,
                                    std::uint32_t channel_stride, std::uint32_t* words) {
  for (std::uint32_t w = 0; w < bits; ++w) words[w] = 0;
  for (std::uint32_t f = 0; f < 4; ++f) {
    for (std::uint32_t i = 0; i < 8; ++i) {
      const KvPlace at = kv_place(keys, dim, 4 * unit + f, lane, i);
      const std::uint32_t code = codes[at.token * token_stride + at.channel * channel_stride];
      for (std::uint32_t b = 0; b < bits; ++b) {
        words[kv_bit_word(bits, f, b)] |= (code >> b & 1) << kv_bit(bits, f, i, b);
      }
    }
  }
}

/// The inverse.
inline void kv_unpack_unit(bool keys, std::uint32_t dim, std::uint32_t bits, std::uint32_t unit,
                           std::uint32_t lane, const std::uint32_t* words,
                           std::uint32_t token_stride, std::uint32_t channel_stride,
                           std::uint8_t* codes) {
  for (std::uint32_t f = 0; f < 4; ++f) {
    for (std::uint32_t i = 0; i < 8; ++i) {
      std::uint32_t code = 0;
      for (std::uint32_t b = 0; b < bits; ++b) {
        code |= (words[kv_bit_word(bits, f, b)] >> kv_bit(bits, f, i, b) & 1) << b;
      }
      const KvPlace at = kv_place(keys, dim, 4 * unit + f, lane, i);
      codes[at.token * token_stride + at.channel * channel_stride] =
          static_cast<std::uint8_t>(code);
    }
  }
}

}  // namespace turboquant::cuda
