#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/codec.h"
#include "kernels/cuda/transform.cuh"

namespace turboquant::cuda {
namespace {

constexpr int kWarpVectors = 4;  // that a block takes where a warp takes a vector
constexpr int kWarpDimension = 2047;

// Magnitudes fall into cells a quarter wide, with at most one threshold in each: whether they reach
// it decides between two neighbouring ranks.
struct Cell {
  float threshold;     // infinity where there is none
  std::uint32_t rank;  // below the threshold
};
constexpr int kCells = 16;

__device__ __forceinline__ int cell_of(float a) {
  // To the nearest multiple of a quarter: only which cell it is has to be the same for all.
  return __float_as_int(__fmaf_rn(fminf(a, 3.0f), 4.0f, 8388608.0f)) & (kCells - 1);
}

// Everything of CodecTables that kernels read.
struct CodecView {
  RowLayout layout;
  RotationView rotation;
  RotationView projection;
  const float* gaussian;
  const float* centre;
  float centre_norm_squared;
  bool two_parts;
  bool mse;
  bool with_norm;
  bool normalize;
  int quantizer_bits;
  Cell cells[kCells];
  float magnitudes[8];  // positive levels
  float step;
  double step_exact;
  double sqrt_d;
  std::int32_t offsets[2];  // bias per unit of a query's sum: levels, signs
  // A vector's part of the working memory, in bytes: floats, codes, a second vector of floats.
  int pitch;  // floats
  int bytes_of_vector;
};

__device__ float saturate(double value) {
  if (value < -FLT_MAX) return -FLT_MAX;
  return value > FLT_MAX ? FLT_MAX : static_cast<float>(value);
}

// The vectors of a block at work: each has floats at y, bytes at codes.
template <bool kWarp>
class Worker {
 public:
  static constexpr int kVectors = kWarp ? kWarpVectors : 1;
  using T = Team<kWarp>;

  __device__ Worker(const CodecView& view, char* memory, Cell* cells, float* magnitudes)
      : v(view), memory_(memory), cells_(cells), magnitudes_(magnitudes) {
    if (threadIdx.x < kCells) cells[threadIdx.x] = view.cells[threadIdx.x];
    if (threadIdx.x < 8) magnitudes[threadIdx.x] = view.magnitudes[threadIdx.x];
    // load() has a barrier before they are used.
  }

  __device__ float* y(int vector) const {
    return reinterpret_cast<float*>(memory_ + static_cast<size_t>(vector) * v.bytes_of_vector);
  }
  __device__ float* y() const { return y(slot()); }
  __device__ float* second() const { return y() + v.pitch; }
  __device__ std::uint8_t* codes() const {
    return reinterpret_cast<std::uint8_t*>(y() + (v.gaussian != nullptr ? 2 : 1) * v.pitch);
  }
  __device__ static int slot() { return kWarp ? threadIdx.x / 32 : 0; }
  __device__ int d() const { return v.layout.dimension; }

  template <class F>
  __device__ void each(const F& f) const {
    for (int i = T::thread(); i < d(); i += T::size()) f(i);
  }

  __device__ void load(const float* x) const {
    float* to = y();
    if (d() % 4 == 0 && reinterpret_cast<std::uintptr_t>(x) % 16 == 0) {
      for (int i = T::thread(); i < d() / 4; i += T::size()) {
        const float4 four = __ldcs(reinterpret_cast<const float4*>(x) + i);
        float* at = to + pad(4 * i);
        at[0] = four.x;
        at[1] = four.y;
        at[2] = four.z;
        at[3] = four.w;
      }
    } else {
      each([&](int i) { to[pad(i)] = x[i]; });
    }
    __syncthreads();
  }

  __device__ double norm_squared(double* shared) const {
    norms_squared<kVectors>(y(0), v.bytes_of_vector / 4, d(), shared);
    const double result = shared[slot()];
    __syncthreads();
    return result;
  }

  __device__ float lane_sum(const float* by, float* shared) const {
    lane_sums<kVectors>(y(0), v.bytes_of_vector / 4, d(), by, shared);
    const float result = shared[slot()];
    __syncthreads();
    return result;
  }

  __device__ void scale(double factor) const {
    float* to = y();
    each([&](int i) { to[pad(i)] = static_cast<float>(to[pad(i)] * factor); });
    T::sync();
  }

  __device__ void clear() const {
    float* to = y();
    each([&](int i) { to[pad(i)] = 0; });
    T::sync();
  }

  __device__ void subtract_centre() const {
    float* to = y();
    each([&](int i) { to[pad(i)] -= v.centre[i]; });
    __syncthreads();
  }

  // y = G y. Ends with a barrier of the block.
  __device__ void project() const {
    if (v.gaussian == nullptr) {
      rotate<kWarp>(y(), v.projection);
      __syncthreads();
      return;
    }
    // Sixteen threads a row of G.
    const float* in = y();
    float* out = second();
    const int lane = T::thread() % 16;
    for (int first = 0; first < d(); first += T::size() / 16) {
      const int r = first + T::thread() / 16;
      float sum = 0;
      if (r < d()) {
        const float* row = v.gaussian + static_cast<size_t>(r) * d();
        for (int i = lane; i < d(); i += 16) sum += row[i] * in[pad(i)];
      }
      for (int half = 8; half > 0; half /= 2) sum += __shfl_down_sync(0xffffffffu, sum, half, 16);
      if (lane == 0 && r < d()) out[pad(r)] = sum;
    }
    T::sync();
    float* to = y();
    each([&](int i) { to[pad(i)] = out[pad(i)]; });
    __syncthreads();
  }

  // Codes of y; y[i] becomes its product with its level or, with kResidual, what the level leaves.
  // shift: what the code is moved up by, over what codes holds (0: it is replaced).
  template <int kBits, bool kResidual>
  __device__ void quantize_by(int shift) const {
    float* to = y();
    std::uint8_t* code = codes();
    each([&](int i) {
      const float value = to[pad(i)];
      const float a = fabsf(value);
      int rank = 0;
      float magnitude = 1;
      if constexpr (kBits > 1) {
        const Cell cell = cells_[cell_of(a)];
        rank = static_cast<int>(cell.rank) + (cell.threshold <= a ? 1 : 0);
        magnitude = magnitudes_[rank];
      }
      constexpr int kHalf = 1 << (kBits - 1);
      const int c = value >= 0 ? kHalf + rank : kHalf - 1 - rank;
      code[i] = static_cast<std::uint8_t>(shift == 0 ? c : code[i] | c << shift);
      if constexpr (kResidual) {
        to[pad(i)] = value - v.step * (value >= 0 ? magnitude : -magnitude);
      } else {
        to[pad(i)] = a * magnitude;
      }
    });
  }

  template <bool kResidual>
  __device__ void quantize() const {
    switch (v.quantizer_bits) {
      case 0:
        each([&](int i) { codes()[i] = 0; });
        break;
      case 1:
        quantize_by<1, kResidual>(0);
        break;
      case 2:
        quantize_by<2, kResidual>(0);
        break;
      case 3:
        quantize_by<3, kResidual>(0);
        break;
      default:
        quantize_by<4, kResidual>(0);
    }
    __syncthreads();
  }

  // 4 fields of kWidth bits of each of four coordinates that lie kStep apart, bits [bit, ...) of a
  // code.
  template <int kWidth>
  __device__ std::uint32_t plane_word(const std::uint8_t* code, int bit) const {
    constexpr int kStep = 8 * kWidth;
    constexpr std::uint32_t kMask = ((1u << kWidth) - 1) * 0x01010101u;
    std::uint32_t word = 0;
#pragma unroll
    for (int f = 0; f < 8 / kWidth; ++f) {
      const std::uint32_t four = *reinterpret_cast<const std::uint32_t*>(code + f * kStep);
      word |= (four >> bit & kMask) << (kWidth * f);
    }
    return word;
  }

  template <int kWidth>
  __device__ void pack_plane(std::uint8_t* out, int bit) const {
    constexpr int kWords = 2 * kWidth;  // of a block
    for (int w = T::thread(); w < v.layout.blocks * kWords; w += T::size()) {
      const std::uint8_t* code = codes() + w / kWords * 64 + w % kWords * 4;
      reinterpret_cast<std::uint32_t*>(out)[w] = plane_word<kWidth>(code, bit);
    }
  }

  __device__ void pack(std::uint8_t* row) const {
    switch (v.layout.bits) {
      case 1:
        pack_plane<1>(row, 0);
        break;
      case 2:
        pack_plane<2>(row, 0);
        break;
      case 3:
        pack_plane<2>(row, 0);
        pack_plane<1>(row + v.layout.top, 2);
        break;
      default:
        pack_plane<4>(row, 0);
    }
  }

  // Codes past d, which packing reads.
  __device__ void clear_tail() const {
    for (int i = d() + T::thread(); i < v.layout.blocks * 64; i += T::size()) codes()[i] = 0;
  }

  const CodecView& v;

 private:
  char* memory_;
  const Cell* cells_;
  const float* magnitudes_;
};

template <bool kShared>
__device__ char* working_memory(char* scratch, size_t bytes) {
  extern __shared__ __align__(16) char shared[];
  if constexpr (kShared) return shared;
  return scratch + blockIdx.x * bytes;
}

template <bool kWarp, bool kShared>
__global__ void __launch_bounds__(kWarp ? 128 : 512, kWarp ? 7 : 1)
    encode_kernel(const __grid_constant__ CodecView v, const float* x, size_t n, RowPointers rows,
                  unsigned long long first_row, unsigned long long* bad_row, char* scratch) {
  using W = Worker<kWarp>;
  __shared__ double norms[W::kVectors];
  __shared__ float sums[W::kVectors];
  __shared__ Cell cells[kCells];
  __shared__ float magnitudes_of_ranks[8];
  const W w(v, working_memory<kShared>(scratch, static_cast<size_t>(v.bytes_of_vector)), cells,
            magnitudes_of_ranks);
  w.clear_tail();
  for (size_t first = blockIdx.x * static_cast<size_t>(W::kVectors); first < n;
       first += gridDim.x * static_cast<size_t>(W::kVectors)) {
    const size_t row = first + W::slot();
    const bool real = row < n;
    w.load(x + (real ? row : n - 1) * w.d());
    double norm_squared = w.norm_squared(norms);
    if (v.normalize) {
      w.scale(norm_squared > 0 ? 1 / sqrt(norm_squared) : 0);
      __syncthreads();
      norm_squared = w.norm_squared(norms);
    }
    double rest_squared = norm_squared;
    float of_centre = 0;
    if (v.centre != nullptr) {
      of_centre = w.lane_sum(v.centre, sums);
      w.subtract_centre();
      rest_squared = w.norm_squared(norms);
    }
    const bool finite = isfinite(norm_squared) && isfinite(rest_squared);
    const double norm = sqrt(rest_squared);
    if (norm == 0) {  // warps of a block can differ here: what follows synchronizes the team alone
      w.clear();
    } else {
      w.scale(v.sqrt_d / norm);
      rotate<kWarp>(w.y(), v.rotation);
    }
    __syncthreads();
    float scale = 0;
    float residual = 0;
    if (v.two_parts) {
      w.template quantize<true>();
      const double gamma_squared = w.norm_squared(norms);
      w.project();
      w.template quantize_by<1, false>(v.quantizer_bits);
      __syncthreads();
      const float magnitudes = w.lane_sum(nullptr, sums);
      const double unit = norm / v.sqrt_d;
      scale = saturate(unit * v.step_exact);
      if (norm > 0 && magnitudes > 0) {
        const double correction =
            v.gaussian != nullptr
                ? sqrt(3.14159265358979323846 / 2 * gamma_squared) / static_cast<double>(w.d())
                : gamma_squared / static_cast<double>(magnitudes);
        residual = saturate(unit * correction);
      }
    } else {
      w.template quantize<false>();
      const float product = w.lane_sum(nullptr, sums);
      if (norm != 0) {
        scale = v.mse ? saturate(norm * v.step_exact / v.sqrt_d)
                      : saturate(norm * v.sqrt_d / static_cast<double>(product));
      }
    }
    if (real) {
      w.pack(rows.codes + row * v.layout.stride);
      if (Team<kWarp>::thread() == 0) {
        if (!finite) atomicMin(bad_row, first_row + row);
        rows.scale[row] = scale;
        if (rows.residual != nullptr) rows.residual[row] = residual;
        if (rows.centre != nullptr) rows.centre[row] = saturate(static_cast<double>(of_centre));
        if (rows.norm != nullptr) rows.norm[row] = saturate(norm_squared);
      }
    }
    __syncthreads();
  }
}

// The team's largest value and sum.
template <bool kWarp, typename Value, typename Combine>
__device__ Value reduce(Value value, Value* shared, const Combine& combine) {
  for (int half = 16; half > 0; half /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, half));
  }
  if constexpr (!kWarp) {
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared[0];
    for (unsigned i = 1; i < blockDim.x / 32; ++i) value = combine(value, shared[i]);
    __syncthreads();
  }
  return value;
}

// Rounds y to int8 and writes what a scan multiplies.
template <bool kWarp>
__device__ void round_query(const Worker<kWarp>& w, bool empty, double norm, std::int32_t offset,
                            size_t query, std::uint8_t* operands, float* scales,
                            std::int32_t* bias) {
  using T = Team<kWarp>;
  __shared__ float reduced_floats[32];
  __shared__ int reduced_sums[32];
  const float* y = w.y();
  float largest = 0;
  w.each([&](int i) { largest = fmaxf(largest, fabsf(y[pad(i)])); });
  largest = reduce<kWarp>(largest, reduced_floats, [](float a, float b) { return fmaxf(a, b); });
  const bool zero = empty || norm == 0 || largest == 0;
  const float factor = zero ? 0 : 127 / largest;
  auto* values = reinterpret_cast<std::int8_t*>(w.codes());
  int sum = 0;
  w.each([&](int i) {
    const int value = zero ? 0 : __float2int_rn(y[pad(i)] * factor);
    values[i] = static_cast<std::int8_t>(value);
    sum += value;
  });
  sum = reduce<kWarp>(sum, reduced_sums, [](int a, int b) { return a + b; });
  T::sync();
  const RowLayout& layout = w.v.layout;
  const int quads = layout.quads();
  const int words = layout.groups * quads * kLanesOfRow;
  auto* to = reinterpret_cast<uint4*>(operands) +
             query / 8 * static_cast<size_t>(layout.groups) * quads * 32 + query % 8 * kLanesOfRow;
  for (int i = T::thread(); i < words; i += T::size()) {
    const int lane = i % kLanesOfRow;
    const int quad = i / kLanesOfRow % quads;
    const int group = i / kLanesOfRow / quads;
    std::uint32_t packed[4];
#pragma unroll
    for (int reg = 0; reg < 4; ++reg) {
      packed[reg] = 0;
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
        const int c = coordinate_of(layout.bits, group * kLanesOfRow + lane, 4 * quad + reg, byte);
        const int value = c < layout.dimension ? values[c] : 0;
        packed[reg] |= static_cast<std::uint32_t>(value & 255) << (8 * byte);
      }
    }
    to[(group * quads + quad) * 32 + lane] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
  }
  if (T::thread() == 0) {
    scales[query] = zero ? 0 : saturate(norm * static_cast<double>(largest) / 127);
    bias[query] = -offset * sum;
  }
  T::sync();
}

template <bool kWarp, bool kShared>
__global__ void __launch_bounds__(kWarp ? 128 : 512)
    prepare_kernel(const __grid_constant__ CodecView v, const float* x, size_t n, size_t padded_n,
                   QueryPointers queries, unsigned long long first_query,
                   unsigned long long* bad_query, char* scratch) {
  using W = Worker<kWarp>;
  __shared__ double norms[W::kVectors];
  __shared__ float sums[W::kVectors];
  __shared__ Cell cells[kCells];
  __shared__ float magnitudes_of_ranks[8];
  const W w(v, working_memory<kShared>(scratch, static_cast<size_t>(v.bytes_of_vector)), cells,
            magnitudes_of_ranks);
  for (size_t first = blockIdx.x * static_cast<size_t>(W::kVectors); first < padded_n;
       first += gridDim.x * static_cast<size_t>(W::kVectors)) {
    const size_t query = first + W::slot();
    const bool real = query < n;
    w.load(x + (real ? query : n - 1) * w.d());
    double norm_squared = w.norm_squared(norms);
    if (v.normalize) {
      w.scale(norm_squared > 0 ? 1 / sqrt(norm_squared) : 0);
      __syncthreads();
      norm_squared = w.norm_squared(norms);
    }
    double norm = sqrt(norm_squared);
    double rest_squared = norm_squared;
    float offset = 0;
    if (v.centre != nullptr) {
      offset = saturate(static_cast<double>(w.lane_sum(v.centre, sums)) - v.centre_norm_squared);
      w.subtract_centre();
      rest_squared = w.norm_squared(norms);
      norm = sqrt(rest_squared);
    }
    w.scale(norm > 0 ? 1 / norm : 0);
    rotate<kWarp>(w.y(), v.rotation);
    round_query<kWarp>(w, !real, norm, v.offsets[0], query, queries.operands, queries.scales,
                       queries.bias);
    if (v.two_parts) {
      __syncthreads();
      w.project();
      round_query<kWarp>(w, !real, norm, v.offsets[1], query, queries.sign_operands,
                         queries.sign_scales, queries.sign_bias);
    }
    if (Team<kWarp>::thread() == 0) {
      queries.norm[query] = saturate(norm_squared);
      queries.offset[query] = offset;
      if (real && !(isfinite(norm_squared) && isfinite(rest_squared))) {
        atomicMin(bad_query, first_query + query);
      }
    }
    __syncthreads();
  }
}

}  // namespace

struct Codec::State {
  int device = 0;
  CodecView view{};
  Buffer rotation, projection, gaussian, centre;
  bool warp = true;  // takes a vector; else a block does
  bool shared = true;
  int threads = 0;
  size_t memory_of_block = 0;
  int multiprocessors = 0;
  int blocks_with_scratch = 0;
  Buffer scratch;  // where shared memory is too small
};

namespace {

Buffer upload(int device, const void* data, size_t bytes) {
  Buffer buffer(device, bytes);
  copy(buffer.get(), data, bytes, nullptr);
  return buffer;
}

RotationView upload(int device, const RotationTable& table, size_t dimension, Buffer& buffer) {
  RotationView view{};
  if (table.factors == nullptr) return view;
  const size_t words = (table.window + 31) / 32;
  std::vector<std::uint32_t> signs(table.rounds * words);
  for (size_t round = 0; round < table.rounds; ++round) {
    for (size_t i = 0; i < table.window; ++i) {
      const bool plus = table.factors[round * table.window + i] > 0;
      signs[round * words + i / 32] |= (plus ? 1u : 0u) << (i % 32);
    }
  }
  buffer = upload(device, signs.data(), signs.size() * 4);
  view.signs = buffer.as<std::uint32_t>();
  view.size = std::fabs(table.factors[0]);
  view.window = static_cast<int>(table.window);
  while ((1 << view.log_window) < view.window) ++view.log_window;
  view.rounds = static_cast<int>(table.rounds);
  view.shift = static_cast<int>(dimension - table.window);
  return view;
}

}  // namespace

Codec::Codec(int device, const CodecTables& tables) : state_(std::make_unique<State>()) {
  const DeviceGuard guard(device);
  State& s = *state_;
  CodecView& v = s.view;
  s.device = device;
  const size_t d = tables.dimension;
  v.layout = RowLayout(static_cast<int>(d), tables.bits);
  v.rotation = upload(device, tables.rotation, d, s.rotation);
  v.projection = upload(device, tables.projection, d, s.projection);
  if (tables.gaussian != nullptr) {
    s.gaussian = upload(device, tables.gaussian, d * d * sizeof(float));
    v.gaussian = s.gaussian.as<float>();
  }
  if (tables.centre != nullptr) {
    s.centre = upload(device, tables.centre, d * sizeof(float));
    v.centre = s.centre.as<float>();
  }
  v.centre_norm_squared = tables.centre_norm_squared;
  v.two_parts = tables.two_parts;
  v.mse = tables.mse;
  v.with_norm = tables.with_norm;
  v.normalize = tables.normalize;
  v.quantizer_bits = tables.quantizer_bits;
  const int half = tables.quantizer_bits > 0 ? 1 << (tables.quantizer_bits - 1) : 0;
  std::uint32_t rank = 0;
  for (int c = 0; c < kCells; ++c) {
    const float end = (static_cast<float>(c) + 0.5f) / 4;
    v.cells[c] = {HUGE_VALF, rank};
    if (static_cast<int>(rank) + 1 < half && tables.quantizer.thresholds[rank] <= end) {
      v.cells[c].threshold = tables.quantizer.thresholds[rank++];
    }
  }
  for (int m = 0; m < half; ++m) v.magnitudes[m] = tables.quantizer.levels[half + m];
  v.step = static_cast<float>(tables.step);
  v.step_exact = tables.step;
  v.sqrt_d = std::sqrt(static_cast<double>(d));
  // Only of 4 bits do scans take level + offset.
  v.offsets[0] = tables.bits == 4 ? tables.levels.offset : 0;
  v.offsets[1] = tables.bits == 4 ? tables.signs.offset : 0;
  v.pitch = (pad(v.layout.blocks * 64) + 4) / 4 * 4;
  v.bytes_of_vector = v.pitch * 4 * (v.gaussian != nullptr ? 2 : 1) + v.layout.blocks * 64;
  s.warp = d <= kWarpDimension;
  s.threads = s.warp ? 32 * kWarpVectors : std::min(512, std::max(128, v.rotation.window / 32));
  s.memory_of_block = static_cast<size_t>(v.bytes_of_vector) * (s.warp ? kWarpVectors : 1);
  const DeviceProperties& properties = device_properties(device);
  s.multiprocessors = properties.multiprocessors;
  s.shared = s.memory_of_block + 1024 <= properties.shared_bytes_of_block;
  if (!s.shared && s.warp) {
    s.warp = false;
    s.threads = 128;
    s.memory_of_block = static_cast<size_t>(v.bytes_of_vector);
    s.shared = s.memory_of_block + 1024 <= properties.shared_bytes_of_block;
  }
  if (!s.shared) {
    s.blocks_with_scratch = 2 * properties.multiprocessors;
    s.scratch = Buffer(device, s.memory_of_block * static_cast<size_t>(s.blocks_with_scratch));
  } else {
    allow_shared_memory(reinterpret_cast<const void*>(&encode_kernel<true, true>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&encode_kernel<false, true>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&prepare_kernel<true, true>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&prepare_kernel<false, true>), device);
  }
  TQ_CUDA(cudaDeviceSynchronize());  // the tables are there, whatever stream comes next
}

Codec::~Codec() = default;
Codec::Codec(Codec&&) noexcept = default;
Codec& Codec::operator=(Codec&&) noexcept = default;

int Codec::device() const { return state_->device; }
const RowLayout& Codec::layout() const { return state_->view.layout; }

namespace {

// How a kernel for n vectors is launched.
struct Shape {
  bool warp;
  unsigned blocks;
  unsigned threads;
  size_t shared;
};

Shape shape_of(const Codec::State& s, size_t n) {
  if (!s.shared) {
    const size_t most = static_cast<size_t>(s.blocks_with_scratch);
    return {false, static_cast<unsigned>(std::min(n, most)), static_cast<unsigned>(s.threads), 0};
  }
  if (s.warp && n > static_cast<size_t>(2 * s.multiprocessors)) {
    return {true, static_cast<unsigned>((n + kWarpVectors - 1) / kWarpVectors),
            static_cast<unsigned>(s.threads), s.memory_of_block};
  }
  // Few: each is done the sooner by a block of its own.
  return {false, static_cast<unsigned>(std::min(n, size_t{1} << 30)),
          static_cast<unsigned>(s.warp ? 128 : s.threads),
          static_cast<size_t>(s.view.bytes_of_vector)};
}

}  // namespace

void Codec::encode(const float* x, std::size_t n, const RowPointers& rows, std::size_t first_row,
                   unsigned long long* bad_row, StreamPointer stream) const {
  if (n == 0) return;
  const State& s = *state_;
  const DeviceGuard guard(s.device);
  const Shape shape = shape_of(s, n);
  const auto kernel = shape.warp ? encode_kernel<true, true>
                      : s.shared ? encode_kernel<false, true>
                                 : encode_kernel<false, false>;
  kernel<<<shape.blocks, shape.threads, shape.shared, static_cast<cudaStream_t>(stream)>>>(
      s.view, x, n, rows, first_row, bad_row, s.scratch.as<char>());
  TQ_CUDA_LAUNCHED("encode_kernel");
}

void Codec::prepare(const float* x, std::size_t n, const QueryPointers& queries,
                    std::size_t first_query, unsigned long long* bad_query,
                    StreamPointer stream) const {
  if (n == 0) return;
  const State& s = *state_;
  const DeviceGuard guard(s.device);
  const Shape shape = shape_of(s, (n + 7) / 8 * 8);
  const auto kernel = shape.warp ? prepare_kernel<true, true>
                      : s.shared ? prepare_kernel<false, true>
                                 : prepare_kernel<false, false>;
  const size_t padded = (n + 7) / 8 * 8;
  kernel<<<shape.blocks, shape.threads, shape.shared, static_cast<cudaStream_t>(stream)>>>(
      s.view, x, n, padded, queries, first_query, bad_query, s.scratch.as<char>());
  TQ_CUDA_LAUNCHED("prepare_kernel");
}

}  // namespace turboquant::cuda
