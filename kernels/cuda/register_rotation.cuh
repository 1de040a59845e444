// The rotation of docs/code_format.md in registers: a warp has a vector, of two or three planes of
// 2^kLog elements, and each half of it one of the two neighbouring planes that a round transforms.
// Lanes exchange half of what they have where a stage pairs elements of different lanes.
//
// Of the kLog bits of an element's number in its plane, four say in which lane of the half it is,
// in layout a the bits [a, a + 4), and the others in which register, low bits first. A round begins
// in layout a and ends in layout a - 1: the stages before the lanes' bits are between registers,
// and each of the next four first lets a register bit and a lane bit change places, with half of
// the values sent. The last stage is between the planes.
//
// What a lane subtracts from what changes with the lane, so that after a round some elements are
// negative: a function of place alone (turned()), which the signs of the next round make good.
#pragma once

#include <cstdint>

#include "kernels/cuda/transform.cuh"

namespace turboquant::cuda {

constexpr int kLanesOfPlane = 16;

// Whether a round leaves what is in register e of a lane, in layout a, with the opposite sign.
__host__ __device__ constexpr bool turned(int lane, int e, int a) {
  const int both = lane & lane >> 1;
  const int odd = (both ^ both >> 1 ^ both >> 2) & 1;
  return (odd ^ ((e >> a & 1) & (lane >> 3 & 1))) != 0;
}

// The place in its plane of register e of a lane, in layout a.
__host__ __device__ constexpr int place_of(int lane, int e, int a) {
  return (e & ((1 << a) - 1)) | lane << a | (e >> a) << (a + 4);
}

#ifdef __CUDACC__
// Sums and differences of registers kSpan apart.
template <int kSpan, int kN>
__device__ __forceinline__ void add_and_subtract(float (&v)[kN]) {
#pragma unroll
  for (int e = 0; e < kN; ++e) {
    if ((e & kSpan) != 0) continue;
    const float a = v[e];
    const float b = v[e + kSpan];
    v[e] = a + b;
    v[e + kSpan] = a - b;
  }
}

// The same, of which a lane keeps the sums or the differences and exchanges the others with the
// lane that `other` tells. sign: -1 where it keeps differences, else 1.
template <int kSpan, int kN>
__device__ __forceinline__ void add_and_exchange(float (&v)[kN], float sign, int other) {
#pragma unroll
  for (int e = 0; e < kN; ++e) {
    if ((e & kSpan) != 0) continue;
    const float a = v[e];
    const float b = v[e + kSpan];
    v[e] = __fmaf_rn(b, sign, a);
    v[e + kSpan] = __shfl_xor_sync(0xffffffffu, __fmaf_rn(b, -sign, a), other);
  }
}

// The stage between the planes of the two halves of a warp. sign: -1 in the half of the second.
template <int kN>
__device__ __forceinline__ void add_and_subtract_planes(float (&v)[kN], float sign) {
#pragma unroll
  for (int e = 0; e < kN; ++e) {
    v[e] = __fmaf_rn(v[e], sign, __shfl_xor_sync(0xffffffffu, v[e], kLanesOfPlane));
  }
}

template <int kFrom, int kTo, int kN>
__device__ __forceinline__ void stages(float (&v)[kN]) {
  if constexpr (kFrom < kTo) {
    add_and_subtract<(1 << kFrom)>(v);
    stages<kFrom + 1, kTo>(v);
  }
}

// v becomes sign * size * v. minus: bit e says of register e which.
template <int kN>
__device__ __forceinline__ void apply_signs(float (&v)[kN], std::uint32_t minus, float size) {
  static_assert(kN <= 32);
#pragma unroll
  for (int e = 0; e < kN; ++e) {
    v[e] = __int_as_float(__float_as_int(v[e] * size) ^ (minus << (31 - e) & 0x80000000u));
  }
}

// The same without the size.
template <int kN>
__device__ __forceinline__ void negate(float (&v)[kN], std::uint32_t minus) {
  static_assert(kN <= 32);
#pragma unroll
  for (int e = 0; e < kN; ++e) v[e] = (minus >> e & 1) != 0 ? -v[e] : v[e];
}

// All stages of a round within a plane of 16 kN elements; from layout kA to kA - 1. signs: -1 where
// the lane has the bit, else 1.
template <int kA, int kN>
__device__ __forceinline__ void transform_plane(float (&v)[kN], const float (&signs)[4]) {
  constexpr int kSpan = 1 << (kA - 1);
  stages<0, kA - 1>(v);
#pragma unroll
  for (int bit = 0; bit < 4; ++bit) add_and_exchange<kSpan>(v, signs[bit], 1 << bit);
  add_and_subtract<kSpan>(v);
  constexpr int kBits = kN == 4 ? 2 : kN == 8 ? 3 : kN == 16 ? 4 : 5;
  static_assert(1 << kBits == kN);
  stages<kA, kBits>(v);
}

// A plane between memory, padded as pad() says, and registers. pad() of numbers that share no bit
// is the sum of theirs: places of a lane are a constant apart.
template <int kA, int kN>
__device__ __forceinline__ void load_plane(const float* y, int first, int lane, float (&v)[kN]) {
  const float* at = y + pad(first) + pad(lane << kA);
#pragma unroll
  for (int e = 0; e < kN;) {
    const float* from = at + pad(place_of(0, e, kA));
    if constexpr (kA >= 2) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      v[e] = four.x;
      v[e + 1] = four.y;
      v[e + 2] = four.z;
      v[e + 3] = four.w;
      e += 4;
    } else {
      static_assert(kA == 1);
      const float2 two = *reinterpret_cast<const float2*>(from);
      v[e] = two.x;
      v[e + 1] = two.y;
      e += 2;
    }
  }
}

// shift: how much further the second half of the plane lies.
template <int kA, int kN>
__device__ __forceinline__ void store_plane(float* y, int first, int lane, const float (&v)[kN],
                                            int shift = 0) {
  float* at = y + pad(first) + pad(lane << kA);
#pragma unroll
  for (int e = 0; e < kN;) {
    float* to = at + pad(place_of(0, e, kA)) + (e < kN / 2 ? 0 : shift);
    if constexpr (kA >= 2) {
      *reinterpret_cast<float4*>(to) = make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]);
      e += 4;
    } else {
      static_assert(kA == 1);
      *reinterpret_cast<float2*>(to) = make_float2(v[e], v[e + 1]);
      e += 2;
    }
  }
}
#endif

}  // namespace turboquant::cuda
