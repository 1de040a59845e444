// Matrix products of a warp, asynchronous copies, and codes to operands.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace turboquant::cuda {

/// What level bytes of a side are: level + 61 at 4 bits, else the level.
inline constexpr int kLevelOffset = 61;

struct Quad {
  int x, y, z, w;
};
__device__ __forceinline__ int part(const Quad& quad, int i) {
  return i == 0 ? quad.x : i == 1 ? quad.y : i == 2 ? quad.z : quad.w;
}

// a: 16 rows x 32 of level bytes; b: 32 x 8, int8 queries or unsigned digits of weights.
template <bool kSignedA, bool kSignedB>
__device__ __forceinline__ Quad mma_int8(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Quad c) {
  Quad d;
#define TQ_MMA(types)                                                                     \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." types                                      \
      ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                    \
      : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)                                        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c.x), "r"(c.y), \
        "r"(c.z), "r"(c.w))
  if constexpr (kSignedA && kSignedB) {
    TQ_MMA("s8.s8");
  } else if constexpr (kSignedA) {
    TQ_MMA("s8.u8");
  } else if constexpr (kSignedB) {
    TQ_MMA("u8.s8");
  } else {
    TQ_MMA("u8.u8");
  }
#undef TQ_MMA
  return d;
}

// c += a (16 x 16 halves) b (16 x 8 halves).
__device__ __forceinline__ void mma_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// __byte_perm would clear the selectors' fourth bits.
__device__ __forceinline__ uint32_t permute(uint32_t low, uint32_t high, uint32_t selectors) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selectors));
  return result;
}

// The transpose of an 8 x 8 matrix of 16-bit elements; lane (g, t) has columns 2t and 2t + 1 of
// row g.
__device__ __forceinline__ uint32_t transpose(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

// A half of a word or its complement by the multiplier, since the units that do logic are the busy
// ones. Bits above 16 are anything.
template <int kHalf, bool kComplement>
__device__ __forceinline__ uint32_t half_word(uint32_t word) {
  if constexpr (kHalf == 0 && !kComplement) return word;
  uint32_t result;
  constexpr uint32_t kFactors = (kComplement ? 0xff : 0x01) << (8 * kHalf);
  asm("dp2a.lo.u32.s32 %0, %1, %2, %3;"
      : "=r"(result)
      : "r"(word), "r"(kFactors), "r"(kComplement ? ~0u : 0u));
  return result;
}

// Codes of fragments to bytes, four at a time. A byte permutation takes hexadecimal digits as
// selectors: 0 to 7 choose, and 8 to 15 give the chosen byte's sign, which is 0 for level + 61, so
// that two of them, the second with the digits' complement, together look up 16 levels.
template <int kBits>
class LevelBytes {
 public:
  __device__ __forceinline__ explicit LevelBytes(const uint32_t (&from)[4]) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof words_ / 4); ++i) words_[i] = from[i];
  }

  __device__ __forceinline__ void eight(uint32_t digits, uint32_t& first, uint32_t& second) const {
    first = four<0>(digits);
    second = four<1>(digits);
  }

 private:
  template <int kHalf>
  __device__ __forceinline__ uint32_t four(uint32_t digits) const {
    const uint32_t half = half_word<kHalf, false>(digits);
    if constexpr (kBits == 4) {
      const uint32_t lower = permute(words_[0], words_[1], half);
      const uint32_t upper = permute(words_[2], words_[3], half_word<kHalf, true>(digits));
      return lower | upper;
    } else if constexpr (kBits == 3) {
      return permute(words_[0], words_[1], half);
    } else {
      return permute(words_[0], 0, half);
    }
  }

  uint32_t words_[kBits == 4 ? 4 : (kBits == 3 ? 2 : 1)];
};

// The digits of the four fragments of a unit.
template <int kBits>
__device__ __forceinline__ void unit_digits(const uint32_t* words, uint32_t (&digits)[4]) {
  if constexpr (kBits == 4) {
#pragma unroll
    for (int f = 0; f < 4; ++f) digits[f] = words[f];
  } else if constexpr (kBits == 3) {
#pragma unroll
    for (int f = 0; f < 3; ++f) digits[f] = words[f] & 0x77777777u;
    digits[3] = (words[0] >> 3 & 0x11111111u) | (words[1] >> 2 & 0x22222222u) |
                (words[2] >> 1 & 0x44444444u);
  } else {
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      digits[2 * w] = words[w] & 0x33333333u;
      digits[2 * w + 1] = words[w] >> 2 & 0x33333333u;
    }
  }
}

// The digits of 16 fragments from their 4 units in shared memory.
template <int kBits>
__device__ __forceinline__ void load_digits(const unsigned char* group, uint32_t lane,
                                            uint32_t (&digits)[16]) {
  uint32_t words[4 * kBits];
#pragma unroll
  for (int c = 0; c < kBits; ++c) {
    const uint4 four = *reinterpret_cast<const uint4*>(group + c * 512 + lane * 16);
    words[4 * c] = four.x;
    words[4 * c + 1] = four.y;
    words[4 * c + 2] = four.z;
    words[4 * c + 3] = four.w;
  }
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    uint32_t of_unit[4];
    unit_digits<kBits>(words + u * kBits, of_unit);
#pragma unroll
    for (int f = 0; f < 4; ++f) digits[4 * u + f] = of_unit[f];
  }
}

// Scales of kTokens neighbours, from a multiple of kTokens on.
template <int kTokens>
__device__ __forceinline__ void load_scales(const unsigned char* from, float (&scales)[kTokens]) {
  struct alignas(2 * kTokens) Halves {
    __half2 pairs[kTokens / 2];
  };
  const Halves halves = *reinterpret_cast<const Halves*>(from);
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const float2 two = __half22float2(halves.pairs[i]);
    scales[2 * i] = two.x;
    scales[2 * i + 1] = two.y;
  }
}

// 8 or 16 bytes that nobody reads soon.
template <typename T>
__device__ __forceinline__ void store_streaming(void* to, const T& value) {
  if constexpr (sizeof(T) == 16) {
    __stcs(static_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&value));
  } else {
    static_assert(sizeof(T) == 8);
    __stcs(static_cast<uint2*>(to), *reinterpret_cast<const uint2*>(&value));
  }
}

// To the L2 cache: a line, or from compute capability 9.0 on `bytes`, a multiple of 16.
__device__ __forceinline__ void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}
__device__ __forceinline__ void prefetch_bulk([[maybe_unused]] const void* from,
                                              [[maybe_unused]] uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
#endif
}

// A ring of kSlots pieces of shared memory of one warp that copies fill in order. From compute
// capability 9.0 on the copy engine does it, one instruction a piece; before, all lanes.
template <int kSlots>
class CopyRing {
 public:
  // barriers: kSlots of this warp's.
  __device__ __forceinline__ CopyRing(uint64_t* barriers, uint32_t lane)
      : barriers_(address(barriers)), lane_(lane) {
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers_ + 8 * i) : "memory");
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncwarp();
#endif
  }

  // Piece h goes to slot h % kSlots, which all lanes have finished with. Sizes are multiples of 16.
  __device__ __forceinline__ void copy(uint32_t h, void* to, const void* from, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    if (lane_ != 0) return;
    const uint32_t barrier = barriers_ + 8 * (h % kSlots);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(address(to)),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
#else
#pragma unroll 3
    for (uint32_t i = 16 * lane_; i < bytes; i += 512) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to) + i),
                   "l"(static_cast<const unsigned char*>(from) + i)
                   : "memory");
    }
#endif
  }

  // Behind every copy() or its absence, so that pieces can be counted.
  __device__ __forceinline__ void commit() {
#if __CUDA_ARCH__ < 900
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  // Until piece h, which is the oldest of kSlots, is there for all lanes.
  __device__ __forceinline__ void wait(uint32_t h) {
#if __CUDA_ARCH__ >= 900
    const uint32_t barrier = barriers_ + 8 * (h % kSlots);
    const uint32_t phase = h / kSlots % 2;
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
          "selp.u32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(barrier), "r"(phase)
          : "memory");
    }
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kSlots - 1) : "memory");
#endif
    __syncwarp();
  }

 private:
  __device__ static __forceinline__ uint32_t address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  }

  const uint32_t barriers_;
  const uint32_t lane_;
};

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Stages of span 1, 2, ... over the kEach * 32 values of a warp, lane l holding the l-th kEach.
// The order of kernels::KernelTable::fwht, so the same bits.
template <int kEach>
__device__ __forceinline__ void fwht_warp(float (&y)[kEach], uint32_t lane) {
#pragma unroll
  for (int span = 1; span < kEach; span *= 2) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if ((i & span) != 0) continue;
      const float a = y[i];
      const float b = y[i + span];
      y[i] = a + b;
      y[i + span] = a - b;
    }
  }
#pragma unroll
  for (uint32_t span = 1; span < 32; span *= 2) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float other = __shfl_xor_sync(~0u, y[i], span);
      y[i] = (lane & span) != 0 ? other - y[i] : y[i] + other;
    }
  }
}

// y = R y of quantizer/rotation.h for powers of two: two rounds of signs and fwht.
template <int kEach>
__device__ __forceinline__ void rotate_warp(float (&y)[kEach], const float (&factors)[2][kEach],
                                            uint32_t lane) {
#pragma unroll
  for (int round = 0; round < 2; ++round) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) y[i] *= factors[round][i];
    fwht_warp<kEach>(y, lane);
  }
}

}  // namespace turboquant::cuda
