#include <cfloat>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/scan_args.cuh"
#include "kernels/cuda/select.cuh"

namespace turboquant::cuda {
namespace {

constexpr int kBins = 2048;
constexpr int kDigit = 11;
constexpr int kGroups = 32;  // of a block's threads

template <int kThreads>
struct Shared {
  std::uint32_t histogram[kBins];
  std::uint64_t best[kMostNeighbours];
  std::uint32_t warp_sums[kThreads / 32];
  std::uint64_t lowest, highest;
  std::uint64_t least[kGroups];
  std::uint64_t bound;
  std::uint32_t valid, bin, below, of_bin, kept;
};

// The candidates of a query: held in registers where they are few enough, else read anew each time.
template <int kThreads>
class Candidates {
 public:
  __device__ Candidates(const std::uint64_t* keys, std::uint32_t count)
      : keys_(keys), count_(count), held_(count <= kHeld * kThreads) {
    if (!held_) return;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const std::uint32_t at = threadIdx.x + i * kThreads;
      values_[i] = at < count ? keys[at] : kNoKey;
    }
  }

  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    if (held_) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (values_[i] != kNoKey) f(values_[i]);
      }
    } else {
#pragma unroll 4
      for (std::uint32_t i = threadIdx.x; i < count_; i += kThreads) {
        const std::uint64_t key = keys_[i];
        if (key != kNoKey) f(key);
      }
    }
  }

 private:
  static constexpr int kHeld = kThreads == 1024 ? 8 : 16;
  const std::uint64_t* keys_;
  std::uint32_t count_;
  bool held_;
  std::uint64_t values_[kHeld];
};

// Finds the last key of the k smallest, or an upper bound that no other key is below.
// At least k keys are there. prefix: bits above `shift` that all keys share.
template <int kThreads>
__device__ __forceinline__ std::uint64_t last_of_best(Shared<kThreads>& s,
                                                      const Candidates<kThreads>& candidates,
                                                      std::uint32_t k) {
  std::uint32_t need = k;
  const std::uint64_t differing = s.lowest ^ s.highest;
  int top = differing == 0 ? 0 : 64 - __clzll(static_cast<long long>(differing));
  std::uint64_t prefix = top == 64 ? 0 : s.lowest >> top << top;
  while (top > 0) {
    const int shift = max(0, top - kDigit);
    for (int i = threadIdx.x; i < kBins; i += kThreads) s.histogram[i] = 0;
    __syncthreads();
    candidates.each([&](std::uint64_t key) {
      if (top < 64 && (key ^ prefix) >> top != 0) return;
      atomicAdd(&s.histogram[(key >> shift) & ((1u << (top - shift)) - 1)], 1u);
    });
    __syncthreads();
    // Each thread sums neighbouring bins, then all of them are added up.
    constexpr int kEach = kBins / kThreads;
    std::uint32_t own = 0;
    for (int i = 0; i < kEach; ++i) own += s.histogram[threadIdx.x * kEach + i];
    std::uint32_t before = own;
    for (int offset = 1; offset < 32; offset *= 2) {
      const std::uint32_t other = __shfl_up_sync(0xffffffffu, before, offset);
      if (threadIdx.x % 32 >= static_cast<unsigned>(offset)) before += other;
    }
    if (threadIdx.x % 32 == 31) s.warp_sums[threadIdx.x / 32] = before;
    __syncthreads();
    before -= own;
    for (unsigned w = 0; w < threadIdx.x / 32; ++w) before += s.warp_sums[w];
    if (before < need && need <= before + own) {
      int bin = threadIdx.x * kEach;
      while (before + s.histogram[bin] < need) before += s.histogram[bin++];
      s.bin = bin;
      s.below = before;
      s.of_bin = s.histogram[bin];
    }
    __syncthreads();
    need -= s.below;
    prefix |= static_cast<std::uint64_t>(s.bin) << shift;
    top = shift;
    const bool whole = s.of_bin == need;
    __syncthreads();
    if (whole) break;
  }
  return prefix | ((std::uint64_t{1} << top) - 1);
}

template <int kThreads>
__device__ void sort_best(Shared<kThreads>& s, std::uint32_t size) {
  for (std::uint32_t length = 2; length <= size; length *= 2) {
    for (std::uint32_t step = length / 2; step > 0; step /= 2) {
      for (std::uint32_t i = threadIdx.x; i < size / 2; i += kThreads) {
        const std::uint32_t low = 2 * i - (i & (step - 1));
        const std::uint32_t high = low + step;
        const bool up = (low & length) == 0;
        const std::uint64_t a = s.best[low];
        const std::uint64_t b = s.best[high];
        if ((a > b) == up) {
          s.best[low] = b;
          s.best[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// At most kGroups best, if there are so many: the keys up to the k-th least of the groups' least
// ones are few, as a rule, and the k best are among them. They lie in s.best; returns how many, or
// 0 where this is no way to find them. Begins with a barrier.
template <int kThreads>
__device__ __forceinline__ std::uint32_t few_of_best(Shared<kThreads>& s,
                                                     const Candidates<kThreads>& candidates,
                                                     std::uint32_t k) {
  constexpr int kOfGroup = kThreads / kGroups;
  std::uint64_t least = kNoKey;
  candidates.each([&](std::uint64_t key) { least = min(least, key); });
#pragma unroll
  for (int half = kOfGroup / 2; half > 0; half /= 2) {
    least = min(least, __shfl_xor_sync(0xffffffffu, least, half));
  }
  if (threadIdx.x % kOfGroup == 0) s.least[threadIdx.x / kOfGroup] = least;
  __syncthreads();
  if (threadIdx.x < kGroups) {
    const std::uint64_t own = s.least[threadIdx.x];
    std::uint32_t before = 0;
#pragma unroll 8
    for (unsigned i = 0; i < kGroups; ++i) {
      const std::uint64_t other = s.least[i];
      before += other < own || (other == own && i < threadIdx.x) ? 1 : 0;
    }
    if (before == k - 1) s.bound = own;
  }
  __syncthreads();
  const std::uint64_t bound = s.bound;
  if (bound == kNoKey) return 0;
  candidates.each([&](std::uint64_t key) {
    if (key > bound) return;
    const std::uint32_t at = atomicAdd(&s.kept, 1u);
    if (at < kMostNeighbours) s.best[at] = key;
  });
  __syncthreads();
  const std::uint32_t kept = s.kept;
  return kept <= kMostNeighbours ? kept : 0;
}

// f(key, how many keys are smaller) for the k best of few_of_best.
template <int kThreads, class F>
__device__ __forceinline__ void each_ranked(const Shared<kThreads>& s, std::uint32_t kept,
                                            std::uint32_t k, const F& f) {
  for (std::uint32_t i = threadIdx.x; i < kept; i += kThreads) {
    const std::uint64_t key = s.best[i];
    std::uint32_t before = 0;
#pragma unroll 4
    for (std::uint32_t j = 0; j < kept; ++j) before += s.best[j] < key ? 1 : 0;
    if (before < k) f(key, before);
  }
}

// The last block tells the host.
__device__ __forceinline__ void report_done(const SelectArgs& a) {
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x != 0 || atomicAdd(&a.flags->done, 1u) + 1 != gridDim.x) return;
  __threadfence();
  volatile SearchFlags& flags = *a.flags;
  volatile SearchReport& report = *a.report;
  report.bad = flags.bad;
  report.overflow = flags.overflow;
  flags.bad = ~0ull;
  flags.overflow = 0;
  flags.done = 0;
  __threadfence_system();
  report.number = a.number;
}

template <int kThreads, bool kLast>
__global__ void __launch_bounds__(kThreads)
    select_kernel(const __grid_constant__ SelectArgs a, float* scores, std::int64_t* rows) {
  __shared__ Shared<kThreads> s;
  let_next_start();
  if (threadIdx.x == 0) {
    s.lowest = kNoKey;
    s.highest = 0;
    s.valid = 0;
    s.kept = 0;
  }
  wait_for_preceding();
  const std::uint32_t q = blockIdx.x;
  std::uint64_t* keys = a.keys + static_cast<std::size_t>(q) * a.capacity;
  std::uint32_t count = a.positional != 0 ? a.positional : a.counts[q];
  if (count > a.capacity) {
    if (threadIdx.x == 0) a.flags->overflow = 1;
    count = a.capacity;
  }
  const auto write = [&](std::uint32_t i, std::uint64_t key) {
    const std::size_t at = static_cast<std::size_t>(q) * a.k + i;
    const bool found = key != kNoKey;
    scores[at] = found ? key_score(a.l2, key) : (a.l2 ? FLT_MAX : -FLT_MAX);
    rows[at] = found ? static_cast<std::int64_t>(key & 0xffffffffu) : -1;
  };
  const Candidates<kThreads> candidates(keys, count);
  __syncthreads();
  if (a.k <= kGroups) {
    const std::uint32_t kept = few_of_best(s, candidates, a.k);
    if (kept != 0) {
      each_ranked(s, kept, a.k, [&](std::uint64_t key, std::uint32_t before) {
        if constexpr (kLast) {
          write(before, key);
        } else {
          keys[before] = key;
          if (before + 1 == a.k) a.limits[q] = key + 1;
        }
      });
      if constexpr (kLast) {
        report_done(a);
      } else if (threadIdx.x == 0) {
        a.counts[q] = a.k;
      }
      return;
    }
    __syncthreads();
    if (threadIdx.x == 0) s.kept = 0;
  }
  std::uint64_t lowest = kNoKey;
  std::uint64_t highest = 0;
  std::uint32_t valid = 0;
  candidates.each([&](std::uint64_t key) {
    lowest = min(lowest, key);
    highest = max(highest, key);
    ++valid;
  });
  for (int half = 16; half > 0; half /= 2) {
    lowest = min(lowest, __shfl_xor_sync(0xffffffffu, lowest, half));
    highest = max(highest, __shfl_xor_sync(0xffffffffu, highest, half));
    valid += __shfl_xor_sync(0xffffffffu, valid, half);
  }
  if (threadIdx.x % 32 == 0) {
    atomicMin(reinterpret_cast<unsigned long long*>(&s.lowest), lowest);
    atomicMax(reinterpret_cast<unsigned long long*>(&s.highest), highest);
    atomicAdd(&s.valid, valid);
  }
  __syncthreads();
  const std::uint32_t k = min(a.k, s.valid);
  std::uint64_t last = kNoKey - 1;
  if (s.valid > k) {
    last = last_of_best(s, candidates, k);
  } else if (s.valid == a.k) {
    last = s.highest;
  }
  candidates.each([&](std::uint64_t key) {
    if (key <= last) s.best[atomicAdd(&s.kept, 1u)] = key;
  });
  __syncthreads();
  if constexpr (!kLast) {
    for (std::uint32_t i = threadIdx.x; i < k; i += kThreads) keys[i] = s.best[i];
    if (threadIdx.x == 0) {
      a.counts[q] = k;
      a.limits[q] = k == a.k ? last + 1 : kNoKey;
    }
  } else {
    std::uint32_t size = 1;
    while (size < k) size *= 2;
    for (std::uint32_t i = k + threadIdx.x; i < size; i += kThreads) s.best[i] = kNoKey;
    __syncthreads();
    sort_best(s, size);
    for (std::uint32_t i = threadIdx.x; i < a.k; i += kThreads) {
      write(i, i < k ? s.best[i] : kNoKey);
    }
    report_done(a);
  }
}

template <bool kLast>
void launch_select(const SelectArgs& args, float* scores, std::int64_t* rows, cudaStream_t stream) {
  // Many threads where few blocks would leave the device idle.
  const bool few = args.n_queries <= 256;
  cuda::launch(few ? select_kernel<1024, kLast> : select_kernel<256, kLast>,
               "launch of select_kernel", dim3(args.n_queries), few ? 1024 : 256, 0, stream,
               args.overlapping, args, scores, rows);
}

}  // namespace

void select_best(const SelectArgs& args, cudaStream_t stream) {
  launch_select<false>(args, nullptr, nullptr, stream);
}

void write_best(const SelectArgs& args, float* scores, std::int64_t* rows, cudaStream_t stream) {
  launch_select<true>(args, scores, rows, stream);
}

}  // namespace turboquant::cuda
