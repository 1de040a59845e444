// Encoding and search on a CUDA device. docs/benchmarks_gpu.md says how it is run and what it gave.
//
// search_bench ROWS DIMENSION [--batch N]... [CODE...]: random unit vectors, made on the device;
// inner product, ten nearest. CODE: bits, 1 to 4, with "t" behind a trellis code. Queries, results
// and vectors are in the device's memory. Times are of the whole call, by the host's clock, as
// medians; encoding by CUDA's events. Checks ids and score bits against the CPU's index.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "index/gpu_rows.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/codec.h"
#include "turboquant/gpu_index_turboquant.h"

namespace {

using turboquant::GpuIndexTurboQuant;
using turboquant::cuda::Buffer;

__device__ unsigned mix(unsigned long long z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<unsigned>((z ^ (z >> 31)) >> 16);
}

__device__ float normal(unsigned long long i) {
  const float u = (mix(2 * i * 0x9e3779b97f4a7c15ull + 1) + 0.5f) * 0x1p-32f;
  const float v = mix((2 * i + 1) * 0x9e3779b97f4a7c15ull + 1) * 0x1p-32f;
  return sqrtf(-2 * logf(u)) * cospif(2 * v);
}

// One block a row: a random unit vector.
__global__ void fill_rows(float* x, int d, unsigned long long first, unsigned long long seed) {
  __shared__ float sums[8];
  const unsigned long long row = first + blockIdx.x;
  float* out = x + static_cast<size_t>(blockIdx.x) * d;
  float sum = 0;
  for (int i = threadIdx.x; i < d; i += 256) {
    const float value = normal((seed << 44) + row * d + i);
    out[i] = value;
    sum += value * value;
  }
  for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (float part : sums) sum += part;
  for (int i = threadIdx.x; i < d; i += 256) out[i] *= rsqrtf(sum);
}

__global__ void read_all(const uint4* data, size_t n, unsigned* out) {
  unsigned sum = 0;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
#pragma unroll 8
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n; i += stride) {
    const uint4 v = __ldcs(data + i);
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *out = sum;
}

double median(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <class F>
double milliseconds_of_device(int repeats, const F& f) {
  cudaEvent_t begin;
  cudaEvent_t end;
  TQ_CUDA(cudaEventCreate(&begin));
  TQ_CUDA(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < repeats + 3; ++i) {
    TQ_CUDA(cudaEventRecord(begin));
    f();
    TQ_CUDA(cudaEventRecord(end));
    TQ_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    TQ_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  return median(times);
}

template <class F>
double milliseconds_of_host(int repeats, const F& f) {
  std::vector<double> times;
  for (int i = 0; i < repeats + 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    f();
    const auto end = std::chrono::steady_clock::now();
    if (i >= 3) times.push_back(std::chrono::duration<double, std::milli>(end - begin).count());
  }
  return median(times);
}

struct Code {
  turboquant::IndexOptions options;
  std::string name;
};

Code parse_code(const char* text) {
  Code code;
  code.name = std::string("TQ") + text;
  code.options = turboquant::parse_index_name(code.name);
  return code;
}

void encode_speed(int d, const Code& code, const Buffer& x, size_t rows) {
  const turboquant::IndexOptions& options = code.options;
  GpuIndexTurboQuant index(d, options, faiss::METRIC_INNER_PRODUCT);
  const auto& impl = index.codec().impl();
  const turboquant::cuda::Codec codec(0, turboquant::codec_tables(impl, false));
  turboquant::GpuRows out(0, impl);
  out.reserve(rows, nullptr);
  const Buffer bad(0, 8);
  const double ms = milliseconds_of_device(20, [&] {
    codec.encode(x.as<float>(), rows, out.at(0), 0, bad.as<unsigned long long>(), nullptr);
  });
  std::printf("encode %zu x %d, %s: %.3f ms, %.0f GB/s of floats\n", rows, d, code.name.c_str(), ms,
              static_cast<double>(rows) * d * 4 / ms * 1e-6);
}

void check_answers(const GpuIndexTurboQuant& index, const Buffer& queries, int nq, int k) {
  const auto cpu = turboquant::index_gpu_to_cpu(index);
  std::vector<float> asked(static_cast<size_t>(nq) * index.d);
  TQ_CUDA(cudaMemcpy(asked.data(), queries.get(), asked.size() * 4, cudaMemcpyDefault));
  std::vector<float> scores[2];
  std::vector<std::int64_t> ids[2];
  for (int i = 0; i < 2; ++i) {
    scores[i].resize(static_cast<size_t>(nq) * k);
    ids[i].resize(scores[i].size());
  }
  cpu->search(nq, asked.data(), k, scores[0].data(), ids[0].data());
  index.search(nq, asked.data(), k, scores[1].data(), ids[1].data());
  const bool same = ids[0] == ids[1] &&
                    std::memcmp(scores[0].data(), scores[1].data(), scores[0].size() * 4) == 0;
  std::printf("%d queries, k %d, beside the CPU's index: %s\n", nq, k,
              same ? "same ids and score bits" : "DIFFERENT");
  if (!same) std::exit(1);
}

void search_speed(int d, const Code& code, size_t n, Buffer& x, size_t part, double bandwidth,
                  const std::vector<int>& batches) {
  GpuIndexTurboQuant index(d, code.options, faiss::METRIC_INNER_PRODUCT);
  index.reserve(static_cast<std::int64_t>(n));
  for (size_t i = 0; i < n; i += part) {
    const size_t count = std::min(part, n - i);
    fill_rows<<<static_cast<unsigned>(count), 256>>>(x.as<float>(), d, i, 1);
    TQ_CUDA_LAUNCHED("fill_rows");
    index.add(static_cast<std::int64_t>(count), x.as<float>());
  }
  constexpr int kMost = 4096;
  constexpr int kK = 10;
  const Buffer queries(0, static_cast<size_t>(kMost) * d * 4);
  fill_rows<<<kMost, 256>>>(queries.as<float>(), d, 0, 2);
  TQ_CUDA_LAUNCHED("fill_rows");
  const Buffer scores(0, kMost * kK * 4);
  const Buffer ids(0, kMost * kK * 8);
  check_answers(index, queries, 3, kK);
  check_answers(index, queries, 300, kK);
  const double bytes =
      static_cast<double>(n) * (static_cast<double>(d) * code.options.bits / 8 + 4);
  for (const int nq : batches) {
    const double ms = milliseconds_of_host(nq > 500 ? 8 : 30, [&] {
      index.search(nq, queries.as<float>(), kK, scores.as<float>(), ids.as<std::int64_t>());
    });
    std::printf("search %zu x %d, %s, batch %4d: %8.3f ms, %9.0f queries/s", n, d,
                code.name.c_str(), nq, ms, nq / ms * 1e3);
    if (nq <= 16) {
      std::printf(", %.0f GB/s of codes, %.0f%% of what reading takes", bytes / ms * 1e-6,
                  bytes / ms * 1e-6 / bandwidth * 100);
    } else {
      std::printf(", %.0f TOPS", 2.0 * static_cast<double>(n) * d * nq / ms * 1e-9);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: search_bench ROWS DIMENSION [--batch N]... [CODE...]\n");
    return 2;
  }
  const auto n = static_cast<size_t>(std::atoll(argv[1]));
  const int d = std::atoi(argv[2]);
  std::vector<Code> codes;
  std::vector<int> batches;
  for (int i = 3; i < argc; ++i) {
    if (std::strcmp(argv[i], "--batch") == 0 && i + 1 < argc) {
      batches.push_back(std::min(4096, std::atoi(argv[++i])));
    } else {
      codes.push_back(parse_code(argv[i]));
    }
  }
  if (codes.empty()) codes = {parse_code("4"), parse_code("3"), parse_code("2"), parse_code("1")};
  if (batches.empty()) batches = {1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096};
  const auto& device = turboquant::cuda::device_properties(0);
  constexpr size_t kPart = 100000;
  Buffer x(0, kPart * d * 4);
  fill_rows<<<kPart, 256>>>(x.as<float>(), d, 0, 1);
  TQ_CUDA_LAUNCHED("fill_rows");
  const Buffer word(0, 4);
  const double read_ms = milliseconds_of_device(20, [&] {
    read_all<<<static_cast<unsigned>(device.multiprocessors) * 8, 256>>>(
        x.as<uint4>(), x.bytes() / 16, word.as<unsigned>());
  });
  const double bandwidth = static_cast<double>(x.bytes()) / read_ms * 1e-6;
  std::printf("%s, %d multiprocessors, reads %.0f GB/s\n", device.name.c_str(),
              device.multiprocessors, bandwidth);
  for (const Code& code : codes) encode_speed(d, code, x, kPart);
  for (const Code& code : codes) {
    if (n > 0) search_speed(d, code, n, x, kPart, bandwidth, batches);
  }
  return 0;
}
