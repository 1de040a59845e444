// Append to and attention over a compressed KV cache in device memory. Plain C++: no CUDA header is
// needed. Everything is launched on a stream and returns at once; nothing allocates, so a stream
// that is being captured into a graph will do. docs/kv_cuda.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/kv_layout.h"

namespace turboquant::cuda {

/// One layer of one sequence, in device memory. Tokens in order of position: sinks, tiles, tail.
struct KvState {
  std::uint32_t length;  ///< of all of them
  std::uint32_t sinks;
  std::uint32_t tiles;
  std::uint32_t tail;
  std::uint32_t head;      ///< where the tail starts in its ring
  std::uint32_t reserved;  ///< tiles that the table has numbers for
  std::uint32_t refused;   ///< tokens that an append found no tile for, and dropped
  std::uint32_t unused;
};

enum class KvElement : std::uint32_t { kFloat = 0, kHalf = 1, kBfloat16 = 2 };

inline constexpr int kKvStretches = 9;

/// Codes and levels of one side, by value to kernels.
struct KvSide {
  std::uint32_t bits = 0;
  float unit = 0;               ///< a stored scale times this is the scale
  std::uint32_t words[4] = {};  ///< levels of codes as bytes, see kv_set_levels
  std::int8_t levels[16] = {};
  double unit_exactly = 0;                 ///< of which unit is the float
  float thresholds[kKvStretches][8] = {};  ///< of the multiples that an encoder tries
};

/// Fills what follows from the levels. Bytes of codes 0 to 7, then 15 to 8; at 4 bits level + 61.
void kv_set_levels(KvSide& side);

/// One layer of all sequences.
struct KvLayer {
  KvTileFormat format{};
  std::uint32_t kv_heads = 0;
  std::uint32_t group = 0;  ///< query heads of a kv head
  std::uint32_t page_tokens = 0;
  std::uint32_t sink_tokens = 0;
  std::uint32_t tail_tokens = 0;
  bool centre = false;
  KvSide keys;
  KvSide values;
  const float* factors = nullptr;  ///< [2][dim], of the rotation
  std::uint8_t* pool = nullptr;    ///< [tiles][kv_heads][format.bytes()]
  std::uint32_t* table = nullptr;  ///< [sequences][table_stride]: numbers of tiles
  std::uint32_t* spans = nullptr;  ///< [sequences][table_stride]: first position * 128 + tokens
  std::uint32_t table_stride = 0;
  KvState* states = nullptr;     ///< [sequences]
  std::uint16_t* raw = nullptr;  ///< [sequences][slots()][2][kv_heads][dim], keys before values

  TQ_KV_BOTH std::uint32_t ring() const { return tail_tokens + page_tokens; }
  TQ_KV_BOTH std::uint32_t slots() const { return sink_tokens + ring(); }
};

inline constexpr std::uint32_t kKvBatch = 128;  ///< sequences of one launch

struct KvAppend {
  std::uint32_t sequences = 0;
  std::uint32_t sequence[kKvBatch] = {};
  std::uint32_t tokens = 0;  ///< of each sequence
  KvElement element = KvElement::kFloat;
  const void* keys = nullptr;  ///< [sequences][tokens][kv_heads][dim]
  const void* values = nullptr;
};

/// Adds tokens to each sequence; how many tiles that makes follows from the states.
void kv_append(const KvLayer& layer, const KvAppend& append, StreamPointer stream);

struct KvAttend {
  std::uint32_t sequences = 0;
  std::uint32_t sequence[kKvBatch] = {};
  std::uint32_t queries = 1;  ///< of each sequence
  std::uint32_t after = 0;    ///< tokens behind the last query; the sequence's last ones ask if 0
  KvElement element = KvElement::kFloat;  ///< of q and out
  const void* q = nullptr;                ///< [sequences][queries][query heads][dim]
  void* out = nullptr;
  float* lse = nullptr;         ///< [sequences][queries][query heads], or null
  const float* mask = nullptr;  ///< [sequences][queries][mask_stride], or null
  std::uint32_t mask_stride = 0;
  const float* sinks = nullptr;  ///< [query heads], or null
  float scale = 0;
  float softcap = 0;
  std::uint32_t window = 0;
  bool causal = true;
  std::uint32_t most_tokens = 0;  ///< the longest sequence that may come
  float* workspace = nullptr;     ///< kv_workspace_bytes
  // Scores alone: [sequences][queries][query heads][score_stride] halves instead of out.
  std::uint16_t* scores = nullptr;
  std::uint32_t score_stride = 0;
};

std::size_t kv_workspace_bytes(const KvLayer& layer, const KvAttend& attend, int device);
void kv_attend(const KvLayer& layer, const KvAttend& attend, int device, StreamPointer stream);

/// Waits for everything on the current device.
void synchronize_device();

/// Whether a stream is being captured into a graph, so that nothing on it runs now.
bool capturing(StreamPointer stream);

}  // namespace turboquant::cuda
