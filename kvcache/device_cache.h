// A cache whose tokens are in the memory of a CUDA device. docs/kv_cuda.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "kernels/cuda/buffer.h"
#include "kernels/cuda/kv.h"
#include "kvcache/attention.h"
#include "kvcache/cache.h"

namespace turboquant::kv {

/// The pool has no pages left, or the device no memory. Nothing has changed.
class NoMemory : public std::bad_alloc {
 public:
  explicit NoMemory(std::string what) : what_(std::make_shared<std::string>(std::move(what))) {}
  const char* what() const noexcept override { return what_->c_str(); }

 private:
  std::shared_ptr<std::string> what_;
};

/// Device memory; what CUDA says of too little of it is NoMemory here.
cuda::Buffer device_buffer(int device, std::size_t bytes);

struct DeviceOptions {
  int device = 0;
  std::size_t sequence_tokens = 0;  ///< most tokens of a sequence
  std::size_t pool_tokens = 0;      ///< of all sequences' pages; 0: what all may need
};

struct DeviceAttention {
  cuda::KvElement element = cuda::KvElement::kFloat;  ///< of q and out
  const void* q = nullptr;
  void* out = nullptr;
  float* lse = nullptr;
  std::uint16_t* scores = nullptr;  ///< instead of out: halves [queries][query heads][stride]
  std::size_t score_stride = 0;
};

/// As Cache, with arrays in device memory and in stream order. Calls that change a sequence other
/// than by append wait for the device.
class DeviceCache {
 public:
  DeviceCache(CacheOptions options, const DeviceOptions& device);

  const CacheOptions& options() const { return host_.options(); }
  int device() const { return device_.device; }

  std::size_t create_sequence();
  std::size_t copy_sequence(std::size_t sequence);
  void free_sequence(std::size_t sequence);
  void truncate(std::size_t sequence, std::size_t tokens);
  std::size_t length(std::size_t layer, std::size_t sequence) const;

  /// n tokens for each of the sequences: keys [sequences][n][kv_heads][key_dim].
  void append(std::size_t layer, const std::vector<std::size_t>& sequences, std::size_t n,
              cuda::KvElement element, const void* keys, const void* values,
              cuda::StreamPointer stream);
  /// Pages for `tokens` more tokens of every layer, so that replayed graphs can append them.
  void reserve(std::size_t sequence, std::size_t tokens);
  /// Waits for the device and learns what replayed graphs have appended.
  void refresh();

  void attend(std::size_t layer, const AttentionBatch& batch, const AttentionOptions& options,
              const DeviceAttention& attention, cuda::StreamPointer stream);

  // To and from the memory of the host, in the format of the host's cache.
  void dequantize(std::size_t layer, std::size_t sequence, float* keys, float* values);
  std::vector<std::uint8_t> serialize(std::size_t sequence, bool pack = false);
  std::size_t restore(const std::uint8_t* bytes, std::size_t n);

  MemoryUse memory() const;

 private:
  // What the device knows of a layer of a sequence, kept beside it.
  struct Shadow {
    cuda::KvState state{};
    std::vector<std::uint32_t> tiles;  // numbers, reserved ones too
    std::vector<std::uint32_t> spans;
  };
  struct LayerMemory {
    cuda::KvLayer view;
    cuda::Buffer pool, table, spans, states, raw;
    std::vector<std::uint32_t> users;  // of a tile
    std::vector<std::uint32_t> free;
  };
  using Shadows = std::vector<Shadow>;

  Shadows& shadows(std::size_t sequence);
  Shadow& shadow(std::size_t layer, std::size_t sequence);
  std::size_t place(Shadows made);
  void make_layer(std::size_t layer);
  void take_tiles(std::size_t layer, std::size_t sequence, std::size_t tiles,
                  cuda::StreamPointer stream);
  std::size_t tiles_after(std::size_t layer, const Shadow& shadow, std::size_t n) const;
  void check_room(std::size_t layer, const std::vector<std::size_t>& sequences,
                  std::size_t n) const;
  void advance(std::size_t layer, Shadow& shadow, std::size_t n) const;
  void drop_tiles(std::size_t layer, Shadow& shadow, std::size_t keep);
  void push(std::size_t layer, std::size_t sequence);
  void run(std::size_t layer, const cuda::KvAttend& attend, cuda::StreamPointer stream);
  std::size_t raw_bytes() const;               // of a sequence
  std::size_t download(std::size_t sequence);  // to host_; the number there
  void upload(const Sequence& from, std::size_t sequence);

  Cache host_;  // formats, and a place for sequences on their way
  DeviceOptions device_;
  cuda::Buffer factors_;
  cuda::Buffer workspace_;
  std::vector<LayerMemory> layers_;
  std::vector<std::unique_ptr<Shadows>> sequences_;
  mutable std::recursive_mutex mutex_;
};

}  // namespace turboquant::kv
