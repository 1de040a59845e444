#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/codec_view.cuh"
#include "kernels/cuda/encode_trellis.h"

// Viterbi's algorithm, a warp a vector. The 256 states lie in the lanes' registers, eight a lane,
// by a number of eight bits, places 0 to 2 the register and 3 to 7 the lane. A step drops the
// oldest bit of a state and takes in a new one: here the new bit takes the place of the oldest, and
// nothing else moves. So step t pairs the states that differ in place t % 8, and bit k of a state
// is in place (t - k) % 8.
namespace turboquant::cuda {
namespace {

constexpr int kStatesOfLane = 8;
constexpr int kMostCost = 32767;
constexpr unsigned kAll = 0xffffffffu;

static_assert(kernels::kMemory == 8);
static_assert(kernels::kHighTaps == 0x103);
template <int kBits>
constexpr unsigned kLowTaps = kernels::low_taps(kBits);

struct TrellisArgs {
  RowLayout layout;
  int steps;
  float factor;
  int levels[kernels::kMaxTrellisLevels];
  int targets[kernels::kMaxTrellisLevels];
  double sqrt_d;
  RotatedPointers rotated;
  size_t n;
  RowPointers rows;
  std::uint32_t* choices;  // [n][steps / 4, rounded up][32] a byte a step, a bit a state
  std::uint16_t* rests;    // [n][steps, rounded up to 32] of the labels, four bits each
  int shared_of_warp;
};

// Where bit k of a state is after step t.
__host__ __device__ constexpr int place_of_bit(int t, int k) { return (t - k) & 7; }

// What bits 1 to 7 of the state at `number` after step t give to its label.
template <int kBits>
__host__ __device__ constexpr int label_of(int t, int number) {
  const unsigned taps = kLowTaps<kBits>;
  int low = 0;
  for (int k = 1; k < 8; ++k) {
    if ((taps >> k & 1) != 0) low ^= number >> place_of_bit(t, k);
  }
  return (low & 1) | (number >> place_of_bit(t, 1) & 1) << 1;
}

// Where step t has its coded bit on the device. bytes: of the plane.
struct StepPlace {
  int byte, field;
};

template <int kBits>
__device__ __forceinline__ StepPlace place_of_step(const RowLayout& layout, int bytes, int t) {
  if (kBits == 3 && t >= 8 * bytes) return {t - 7 * bytes, layout.stream_field()};
  return {t % bytes, t / bytes};
}

// Costs of the labels of a coordinate in 16 bits each, and the rests they are had with.
struct LabelCosts {
  std::uint32_t low, high;
  std::uint32_t rests;
};

template <int kBits>
__device__ __forceinline__ LabelCosts label_costs(const TrellisArgs& a, float y) {
  const float limited = fmaxf(-32767.0f, fminf(32767.0f, y * a.factor));
  const int x = __float2int_rn(limited);
  std::uint32_t costs[4];
  std::uint32_t rests = 0;
#pragma unroll
  for (int label = 0; label < 4; ++label) {
    int best = 0;
    int which = 0;
#pragma unroll
    for (int rest = 0; rest < 1 << (kBits - 1); ++rest) {
      const int e = max(-32768, min(32767, x - a.targets[4 * rest + label]));
      const int cost = (e * e + (1 << 14)) >> 15;
      if (rest == 0 || cost < best) {
        best = cost;
        which = rest;
      }
    }
    costs[label] = static_cast<std::uint32_t>(best);
    rests |= static_cast<std::uint32_t>(which) << (4 * label);
  }
  return {costs[0] | costs[1] << 16, costs[2] | costs[3] << 16, rests};
}

// One step, t % 8 = kPhase. Returns the lane's choices: a bit for each of its states after the
// step, set where it comes from the one that had the oldest bit.
template <int kBits, int kPhase>
__device__ __forceinline__ std::uint32_t step(int (&sums)[kStatesOfLane], int lane,
                                              std::uint32_t low, std::uint32_t high, int& floor) {
  const int of_lane = label_of<kBits>(kPhase, lane << 3);
  // Costs by label, less what the lane's bits give to it.
  const std::uint32_t first = (of_lane & 2) != 0 ? high : low;
  const std::uint32_t second = (of_lane & 2) != 0 ? low : high;
  const int turn = (of_lane & 1) * 16;
  const int cost[4] = {static_cast<int>(first >> turn & 0xffff) - floor,
                       static_cast<int>(first >> (16 - turn) & 0xffff) - floor,
                       static_cast<int>(second >> turn & 0xffff) - floor,
                       static_cast<int>(second >> (16 - turn) & 0xffff) - floor};
  std::uint32_t choices = 0;
  if constexpr (kPhase < 3) {
#pragma unroll
    for (int r = 0; r < kStatesOfLane; ++r) {
      if ((r >> kPhase & 1) != 0) continue;
      constexpr int kPaired = 1 << kPhase;
      const int label = label_of<kBits>(kPhase, r);
      const int old = sums[r];
      const int oldest = sums[r + kPaired];
      // The new bit and the oldest one turn the same bit of a label.
      const int a = old + cost[label];
      const int b = oldest + cost[label ^ 2];
      const int c = old + cost[label ^ 2];
      const int d = oldest + cost[label];
      if (b < a) choices |= 1u << r;
      if (d < c) choices |= 1u << (r + kPaired);
      sums[r] = min(min(a, b), kMostCost);
      sums[r + kPaired] = min(min(c, d), kMostCost);
    }
  } else {
    constexpr int kOther = 1 << (kPhase - 3);
    const int bit = (lane & kOther) != 0 ? 1 : 0;
#pragma unroll
    for (int r = 0; r < kStatesOfLane; ++r) {
      const int label = label_of<kBits>(kPhase, r);
      const int own = sums[r] + cost[label];
      const int other = __shfl_xor_sync(kAll, sums[r], kOther) + cost[label ^ 2];
      // Of equals the one without the oldest bit; a lane with it is the oldest itself.
      if (other < own + bit) choices |= 1u << r;
      sums[r] = min(min(own, other), kMostCost);
    }
    if (bit != 0) choices ^= 0xffu;
  }
  int least = sums[0];
#pragma unroll
  for (int r = 1; r < kStatesOfLane; ++r) least = min(least, sums[r]);
  floor = __reduce_min_sync(kAll, least);
  return choices;
}

// The bits of `number` after step t, in the order of a state.
__device__ int state_of(int t, int number) {
  int state = 0;
  for (int k = 0; k < 8; ++k) state |= (number >> place_of_bit(t, k) & 1) << k;
  return state;
}

__device__ __forceinline__ void put_bits(std::uint32_t* words, int byte, int shift,
                                         std::uint32_t value) {
  atomicOr(words + byte / 4, value << (byte % 4 * 8 + shift));
}

template <int kBits>
__global__ void __launch_bounds__(128) trellis_kernel(const __grid_constant__ TrellisArgs a) {
  extern __shared__ __align__(16) char shared[];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const size_t vector = blockIdx.x * static_cast<size_t>(blockDim.x / 32) + warp;
  if (vector >= a.n) return;
  const RowLayout& layout = a.layout;
  const int d = layout.dimension;
  constexpr int kWidth = kernels::coded_width(kBits);
  const int bytes = layout.plane_bytes();
  const float* y = a.rotated.y + vector * d;
  std::uint32_t* const choices = a.choices + vector * ((a.steps + 3) / 4 * 32);
  std::uint16_t* const rests = a.rests + vector * ((a.steps + 31) / 32 * 32);
  auto* const row = reinterpret_cast<std::uint32_t*>(shared + warp * a.shared_of_warp);
  auto* const levels = reinterpret_cast<std::int8_t*>(row) + layout.stride;
  for (int i = lane; i < layout.stride / 4; i += 32) row[i] = 0;

  int sums[kStatesOfLane] = {};
  int floor = 0;
  for (int first = 0; first < a.steps; first += 32) {
    const auto at = place_of_step<kBits>(layout, bytes, min(first + lane, a.steps - 1));
    const int i = plane_coordinate(layout, kBits, at.byte, at.field);
    const LabelCosts costs = i < d ? label_costs<kBits>(a, y[i]) : LabelCosts{};
    rests[first + lane] = static_cast<std::uint16_t>(costs.rests);
    for (int of_eight = 0; of_eight < 32 && first + of_eight < a.steps; of_eight += 8) {
      std::uint32_t made[2] = {};
      const int left = a.steps - first - of_eight;
      const auto go = [&](auto phase) {
        constexpr int kPhase = decltype(phase)::value;
        if (kPhase >= left) return;
        const std::uint32_t low = __shfl_sync(kAll, costs.low, of_eight + kPhase);
        const std::uint32_t high = __shfl_sync(kAll, costs.high, of_eight + kPhase);
        made[kPhase / 4] |= step<kBits, kPhase>(sums, lane, low, high, floor) << (kPhase % 4 * 8);
      };
      go(std::integral_constant<int, 0>{});
      go(std::integral_constant<int, 1>{});
      go(std::integral_constant<int, 2>{});
      go(std::integral_constant<int, 3>{});
      go(std::integral_constant<int, 4>{});
      go(std::integral_constant<int, 5>{});
      go(std::integral_constant<int, 6>{});
      go(std::integral_constant<int, 7>{});
      std::uint32_t* to = choices + (first + of_eight) / 4 * 32 + lane;
      to[0] = made[0];
      if (left > 4) to[32] = made[1];
    }
  }
  // The smallest of the states of least sum, and back from there; all lanes go the same way.
  unsigned best = ~0u;
#pragma unroll
  for (int r = 0; r < kStatesOfLane; ++r) {
    const int number = lane << 3 | r;
    const int state = state_of(a.steps - 1, number);
    best = min(best, static_cast<unsigned>(sums[r]) << 16 | static_cast<unsigned>(state) << 8 |
                         static_cast<unsigned>(number));
  }
  int number = static_cast<int>(__reduce_min_sync(kAll, best) & 255);
  __syncwarp();
  for (int first = (a.steps - 1) / 32 * 32; first >= 0; first -= 32) {
    std::uint32_t words[8];
#pragma unroll
    for (int w = 0; w < 8; ++w) {
      words[w] = first + 4 * w < a.steps ? choices[(first / 4 + w) * 32 + lane] : 0;
    }
    int window = 0;  // of the lane's step: its label, then the coded bit
#pragma unroll
    for (int of_chunk = 31; of_chunk >= 0; --of_chunk) {
      if (first + of_chunk >= a.steps) continue;
      const int place = of_chunk & 7;
      const std::uint32_t word = __shfl_sync(kAll, words[of_chunk / 4], number >> 3);
      const int oldest = word >> (of_chunk % 4 * 8 + (number & 7)) & 1;
      const int coded = number >> place & 1;
      if (lane == of_chunk)
        window = (label_of<kBits>(of_chunk, number) ^ (coded ^ oldest) << 1) | coded << 2;
      number = (number & ~(1 << place)) | oldest << place;
    }
    const int t = first + lane;
    if (t >= a.steps) continue;
    const int label = window & 3;
    const auto coded = static_cast<std::uint32_t>(window >> 2);
    const std::uint32_t rest = rests[t] >> (4 * label) & 15;
    const auto at = place_of_step<kBits>(layout, bytes, t);
    const int byte = RowLayout::kTrellisPlane + at.byte;
    if constexpr (kBits == 3) {
      put_bits(row, byte, at.field, coded);
      put_bits(row, byte + layout.top * (1 + at.field % 2), at.field / 2 * 2, rest);
    } else {
      put_bits(row, byte, kWidth * at.field, coded << (kWidth - 1) | rest);
    }
    const int i = plane_coordinate(layout, kBits, at.byte, at.field);
    if (i < d) levels[i] = static_cast<std::int8_t>(a.levels[4 * rest + label]);
  }
  __syncwarp();
  if (lane == 0) {
    // As rows from the host have it: the end of the plane, a field further up, and the first state.
    auto* const before = reinterpret_cast<std::uint8_t*>(row) + RowLayout::kTrellisPlane;
    const int state = state_of(-1, number);
    for (int k = 1; k <= 8; ++k) {
      const unsigned end = before[bytes - k];
      before[-k] =
          static_cast<std::uint8_t>(end << kWidth | (state >> (k - 1) & 1) << (kWidth - 1));
    }
  }
  __syncwarp();
  auto* const to = reinterpret_cast<uint4*>(a.rows.codes + vector * layout.stride);
  for (int i = lane; i < layout.stride / 16; i += 32) to[i] = reinterpret_cast<uint4*>(row)[i];
  // <y, z> as KernelTable::dot adds.
  float sum = 0;
  if (lane < 16) {
#pragma unroll 4
    for (int i = lane; i < d; i += 16) sum += y[i] * static_cast<float>(levels[i]);
  }
  for (int half = 8; half > 0; half /= 2) sum += __shfl_down_sync(kAll, sum, half, 16);
  if (lane == 0) {
    const double norm = a.rotated.norms[vector];
    a.rows.scale[vector] =
        norm == 0 || sum <= 0 ? 0 : saturate(norm * a.sqrt_d / static_cast<double>(sum));
  }
}

}  // namespace

TrellisEncoder::TrellisEncoder(const RowLayout& layout, const kernels::TrellisTable& table)
    : layout_(layout), table_(table) {}

std::size_t TrellisEncoder::steps() const {
  return kernels::trellis_steps(static_cast<std::size_t>(layout_.dimension), layout_.bits);
}

std::size_t TrellisEncoder::work_bytes(std::size_t n) const {
  return n * ((steps() + 3) / 4 * 128 + (steps() + 31) / 32 * 64);
}

std::size_t TrellisEncoder::most_vectors() const {
  // Enough to fill a device, of long ones as many as have room.
  constexpr std::size_t kMost = 8448;
  constexpr std::size_t kWorkBytes = std::size_t{512} << 20;
  return std::max<std::size_t>(1, std::min(kMost, kWorkBytes / work_bytes(1)));
}

void TrellisEncoder::encode(const RotatedPointers& rotated, std::size_t n, const RowPointers& rows,
                            void* work, int device, StreamPointer stream) const {
  TrellisArgs a{};
  a.layout = layout_;
  a.steps = static_cast<int>(steps());
  a.factor = table_.factor;
  for (std::size_t r = 0; r < kernels::kMaxTrellisLevels; ++r) {
    a.levels[r] = table_.levels[r];
    a.targets[r] = table_.targets[r];
  }
  a.sqrt_d = std::sqrt(static_cast<double>(layout_.dimension));
  a.rotated = rotated;
  a.n = n;
  a.rows = rows;
  a.choices = static_cast<std::uint32_t*>(work);
  a.rests = reinterpret_cast<std::uint16_t*>(a.choices + n * ((steps() + 3) / 4 * 32));
  a.shared_of_warp = (layout_.stride + layout_.dimension + 15) / 16 * 16;
  const auto kernel = layout_.bits == 1   ? trellis_kernel<1>
                      : layout_.bits == 2 ? trellis_kernel<2>
                      : layout_.bits == 3 ? trellis_kernel<3>
                                          : trellis_kernel<4>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), device);
  const unsigned warps = a.shared_of_warp > 16384 ? 1 : 4;
  kernel<<<static_cast<unsigned>((n + warps - 1) / warps), 32 * warps,
           static_cast<size_t>(a.shared_of_warp) * warps, static_cast<cudaStream_t>(stream)>>>(a);
  TQ_CUDA_LAUNCHED("trellis_kernel");
}

}  // namespace turboquant::cuda
