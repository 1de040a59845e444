#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/codec.h"
#include "kernels/cuda/encode_rows.h"
#include "kernels/cuda/encode_trellis.h"
#include "kernels/cuda/vector_worker.cuh"

namespace turboquant::cuda {
namespace {

// A vector as it is before the rotation.
struct Taken {
  double norm_squared;
  double rest_squared;  // without the centre
  float of_centre;      // <c, x>; 0 without a centre
  bool finite;          // all of it
};

// Loads a vector, normalizes it and takes the centre out, as the options say. Ends with a barrier.
template <bool kWarp>
__device__ Taken take(const Worker<kWarp>& w, const float* x) {
  w.load(x);
  Taken taken{w.norm_squared(), 0, 0, true};
  if (w.v.normalize) {
    w.scale(taken.norm_squared > 0 ? 1 / sqrt(taken.norm_squared) : 0);
    __syncthreads();
    taken.norm_squared = w.norm_squared();
  }
  taken.rest_squared = taken.norm_squared;
  if (w.v.centre != nullptr) {
    taken.of_centre = w.lane_sum(w.v.centre);
    w.subtract_centre();
    taken.rest_squared = w.norm_squared();
  }
  taken.finite = isfinite(taken.norm_squared) && isfinite(taken.rest_squared);
  return taken;
}

// work(vector, real, taken) for the vectors of the grid's blocks, taken; those that are not real,
// from n to padded_n, are others again. work ends before a barrier.
template <bool kWarp, typename Work>
__device__ __forceinline__ void each_taken(const Worker<kWarp>& w, const float* x, size_t n,
                                           size_t padded_n, const Work& work) {
  using W = Worker<kWarp>;
  for (size_t first = blockIdx.x * static_cast<size_t>(W::kVectors); first < padded_n;
       first += gridDim.x * static_cast<size_t>(W::kVectors)) {
    const size_t vector = first + W::slot();
    const bool real = vector < n;
    work(vector, real, take<kWarp>(w, x + (real ? vector : n - 1) * w.d()));
    __syncthreads();
  }
}

// What take() left, of that length, becomes a rotated vector of length sqrt(d), or stays zero. Ends
// with a barrier.
template <bool kWarp>
__device__ __forceinline__ void rotate_unit(const Worker<kWarp>& w, double norm) {
  if (norm == 0) {  // warps of a block can differ here: what follows synchronizes the team alone
    w.clear();
  } else {
    w.scale(w.v.sqrt_d / norm);
    rotate<kWarp>(w.y(), w.v.rotation);
  }
  __syncthreads();
}

// The factors of a row that do not depend on its code, by one thread.
__device__ __forceinline__ void write_factors(const Taken& taken, const RowPointers& rows,
                                              size_t row, unsigned long long first_row,
                                              unsigned long long* bad_row) {
  if (!taken.finite) atomicMin(bad_row, first_row + row);
  if (rows.centre != nullptr) rows.centre[row] = saturate(static_cast<double>(taken.of_centre));
  if (rows.norm != nullptr) rows.norm[row] = saturate(taken.norm_squared);
}

// kBlocks: of a multiprocessor; short rows gain from many, long ones from registers.
template <bool kWarp, bool kShared, int kBlocks>
__global__ void __launch_bounds__(kWarp ? 128 : 512, kBlocks)
    encode_kernel(const __grid_constant__ CodecView v, const float* x, size_t n, RowPointers rows,
                  unsigned long long first_row, unsigned long long* bad_row, char* scratch) {
  __shared__ Desk<kWarp> desk;
  const Worker<kWarp> w(v, working_memory<kShared>(scratch, v), desk);
  w.clear_tail();
  each_taken<kWarp>(w, x, n, n, [&](size_t row, bool real, const Taken& taken) {
    const double norm = sqrt(taken.rest_squared);
    rotate_unit<kWarp>(w, norm);
    float scale = 0;
    float residual = 0;
    if (v.two_parts) {
      w.template quantize<true>();
      const double gamma_squared = w.norm_squared();
      w.project();
      w.template quantize_by<1, false>(v.quantizer_bits);
      __syncthreads();
      const float magnitudes = w.lane_sum(nullptr);
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
      const float product = w.lane_sum(nullptr);
      if (norm != 0) {
        scale = v.mse ? saturate(norm * v.step_exact / v.sqrt_d)
                      : saturate(norm * v.sqrt_d / static_cast<double>(product));
      }
    }
    if (!real) return;
    w.pack(rows.codes + row * v.layout.stride);
    if (Team<kWarp>::thread() == 0) {
      rows.scale[row] = scale;
      if (rows.residual != nullptr) rows.residual[row] = residual;
      write_factors(taken, rows, row, first_row, bad_row);
    }
  });
}

// Rotated vectors, what their lengths were and the factors that do not depend on codes.
template <bool kWarp, bool kShared>
__global__ void __launch_bounds__(kWarp ? 128 : 512)
    rotate_kernel(const __grid_constant__ CodecView v, const float* x, size_t n,
                  RotatedPointers rotated, RowPointers rows, unsigned long long first_row,
                  unsigned long long* bad_row, char* scratch) {
  __shared__ Desk<kWarp> desk;
  const Worker<kWarp> w(v, working_memory<kShared>(scratch, v), desk);
  each_taken<kWarp>(w, x, n, n, [&](size_t row, bool real, const Taken& taken) {
    const double norm = sqrt(taken.rest_squared);
    rotate_unit<kWarp>(w, norm);
    if (!real) return;
    const float* y = w.y();
    w.each([&](int i) { rotated.y[row * w.d() + i] = y[pad(i)]; });
    if (Team<kWarp>::thread() == 0) {
      rotated.norms[row] = norm;
      write_factors(taken, rows, row, first_row, bad_row);
    }
  });
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

// The values of a query in the order of decoded codes.
template <bool kWarp, int kBits>
__device__ void write_operands(const RowLayout& layout, const std::int8_t* values, size_t query,
                               std::uint8_t* operands) {
  using T = Team<kWarp>;
  constexpr int kQuads = quads_of(kBits);
  auto* to =
      reinterpret_cast<std::uint32_t*>(operands) +
      (query / 8 * static_cast<size_t>(layout.groups) * kQuads * 32 + query % 8 * kLanesOfRow) * 4;
  for (int i = T::thread(); i < layout.groups * kQuads * kLanesOfRow * 4; i += T::size()) {
    const int reg = i % 4;
    const int lane = i / 4 % kLanesOfRow;
    const int quad = i / 4 / kLanesOfRow % kQuads;
    const int group = i / 4 / kLanesOfRow / kQuads;
    std::uint32_t packed = 0;
#pragma unroll
    for (int byte = 0; byte < 4; ++byte) {
      const int chunk = group * kLanesOfRow + lane;
      const int c = kBits > 4 ? trellis_coordinate_of(layout, kBits, chunk, 4 * quad + reg, byte)
                              : coordinate_of(kBits, chunk, 4 * quad + reg, byte);
      const int value = c < layout.dimension ? values[c] : 0;
      packed |= static_cast<std::uint32_t>(value & 255) << (8 * byte);
    }
    to[((group * kQuads + quad) * 32 + lane) * 4 + reg] = packed;
  }
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
  switch (w.v.layout.code) {
    case 1:
      write_operands<kWarp, 1>(w.v.layout, values, query, operands);
      break;
    case 2:
      write_operands<kWarp, 2>(w.v.layout, values, query, operands);
      break;
    case 3:
      write_operands<kWarp, 3>(w.v.layout, values, query, operands);
      break;
    case 4:
      write_operands<kWarp, 4>(w.v.layout, values, query, operands);
      break;
    case trellis_code(1):
      write_operands<kWarp, trellis_code(1)>(w.v.layout, values, query, operands);
      break;
    case trellis_code(2):
      write_operands<kWarp, trellis_code(2)>(w.v.layout, values, query, operands);
      break;
    case trellis_code(3):
      write_operands<kWarp, trellis_code(3)>(w.v.layout, values, query, operands);
      break;
    default:
      write_operands<kWarp, trellis_code(4)>(w.v.layout, values, query, operands);
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
  let_next_start();
  if constexpr (!kWarp) prefetch_signs(v.rotation);
  __shared__ Desk<kWarp> desk;
  const Worker<kWarp> w(v, working_memory<kShared>(scratch, v), desk);
  each_taken<kWarp>(w, x, n, padded_n, [&](size_t query, bool real, const Taken& taken) {
    const double norm = sqrt(taken.rest_squared);
    const float offset =
        v.centre == nullptr
            ? 0
            : saturate(static_cast<double>(taken.of_centre) - v.centre_norm_squared);
    w.scale(norm > 0 ? 1 / norm : 0);
    if (!kWarp && v.rotation.window >= 32) {
      rotate_between_lanes(w.y(), v.rotation);
    } else {
      rotate<kWarp>(w.y(), v.rotation);
    }
    round_query<kWarp>(w, !real, norm, v.offsets[0], query, queries.operands, queries.scales,
                       queries.bias);
    if (v.two_parts) {
      __syncthreads();
      w.project();
      round_query<kWarp>(w, !real, norm, v.offsets[1], query, queries.sign_operands,
                         queries.sign_scales, queries.sign_bias);
    }
    if (Team<kWarp>::thread() == 0) {
      queries.norm[query] = saturate(taken.norm_squared);
      queries.offset[query] = offset;
      if (real && !taken.finite) atomicMin(bad_query, first_query + query);
    }
  });
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
  std::optional<TrellisEncoder> trellis;
  const RowEncoder* rows = nullptr;  // for many rows, where there is one
  Buffer lane_signs;                 // of rows
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
  v.layout = RowLayout(static_cast<int>(d), tables.bits, tables.trellis != nullptr);
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
    v.cells[c] = {HUGE_VALF, rank * kRankStep};
    if (static_cast<int>(rank) + 1 < half && tables.quantizer.thresholds[rank] < end_of_cell(c)) {
      v.cells[c].threshold = tables.quantizer.thresholds[rank++];
    }
  }
  for (int m = 0; m < half; ++m) v.magnitudes[m] = tables.quantizer.levels[half + m];
  v.step = static_cast<float>(tables.step);
  v.step_exact = tables.step;
  v.sqrt_d = std::sqrt(static_cast<double>(d));
  v.offsets[0] = unsigned_levels(v.layout.code) ? tables.levels.offset : 0;
  v.offsets[1] = unsigned_levels(v.layout.code) ? tables.signs.offset : 0;
  v.pitch = (pad(v.layout.blocks * 64) + 4) / 4 * 4;
  static_assert(pad(64) % 4 == 0);
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
    allow_shared_memory(reinterpret_cast<const void*>(&encode_kernel<true, true, 7>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&encode_kernel<true, true, 5>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&encode_kernel<false, true, 1>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&rotate_kernel<true, true>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&rotate_kernel<false, true>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&prepare_kernel<true, true>), device);
    allow_shared_memory(reinterpret_cast<const void*>(&prepare_kernel<false, true>), device);
  }
  if (tables.trellis != nullptr) s.trellis.emplace(v.layout, *tables.trellis);
  s.rows = row_encoder(tables);
  if (s.rows != nullptr) {
    const std::vector<std::uint32_t> signs = lane_signs(*s.rows, tables.rotation);
    s.lane_signs = upload(device, signs.data(), signs.size() * 4);
    prepare_launches(*s.rows, device);
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
  if (s.trellis.has_value()) return encode_trellis(x, n, rows, first_row, bad_row, stream);
  if (s.rows != nullptr && n > static_cast<size_t>(2 * s.multiprocessors) &&
      reinterpret_cast<std::uintptr_t>(x) % 16 == 0) {
    return encode_rows(*s.rows, s.view, s.lane_signs.as<std::uint32_t>(), x, n, rows, first_row,
                       bad_row, stream);
  }
  const Shape shape = shape_of(s, n);
  const bool short_rows = s.view.rotation.window < 512;
  const auto kernel = shape.warp && short_rows ? encode_kernel<true, true, 7>
                      : shape.warp             ? encode_kernel<true, true, 5>
                      : s.shared               ? encode_kernel<false, true, 1>
                                               : encode_kernel<false, false, 1>;
  kernel<<<shape.blocks, shape.threads, shape.shared, static_cast<cudaStream_t>(stream)>>>(
      s.view, x, n, rows, first_row, bad_row, s.scratch.as<char>());
  TQ_CUDA_LAUNCHED("encode_kernel");
}

void Codec::encode_trellis(const float* x, std::size_t n, const RowPointers& rows,
                           std::size_t first_row, unsigned long long* bad_row,
                           StreamPointer stream) const {
  const State& s = *state_;
  const auto d = static_cast<std::size_t>(s.view.layout.dimension);
  const std::size_t part = std::min(n, s.trellis->most_vectors());
  const Buffer y(s.device, part * d * sizeof(float));
  const Buffer norms(s.device, part * sizeof(double));
  const Buffer work(s.device, s.trellis->work_bytes(part));
  const RotatedPointers rotated{y.as<float>(), norms.as<double>()};
  for (std::size_t i = 0; i < n; i += part) {
    const std::size_t count = std::min(part, n - i);
    const Shape shape = shape_of(s, count);
    const auto kernel = shape.warp ? rotate_kernel<true, true>
                        : s.shared ? rotate_kernel<false, true>
                                   : rotate_kernel<false, false>;
    const RowPointers to = rows.at(s.view.layout, i);
    kernel<<<shape.blocks, shape.threads, shape.shared, static_cast<cudaStream_t>(stream)>>>(
        s.view, x + i * d, count, rotated, to, first_row + i, bad_row, s.scratch.as<char>());
    TQ_CUDA_LAUNCHED("rotate_kernel");
    s.trellis->encode(rotated, count, to, work.get(), s.device, stream);
  }
  synchronize(stream);
}

void Codec::prepare(const float* x, std::size_t n, const QueryPointers& queries,
                    std::size_t first_query, unsigned long long* bad_query,
                    StreamPointer stream) const {
  if (n == 0) return;
  const State& s = *state_;
  const DeviceGuard guard(s.device);
  Shape shape = shape_of(s, (n + 7) / 8 * 8);
  if (!shape.warp) shape.threads = 512;
  const auto kernel = shape.warp ? prepare_kernel<true, true>
                      : s.shared ? prepare_kernel<false, true>
                                 : prepare_kernel<false, false>;
  const size_t padded = (n + 7) / 8 * 8;
  kernel<<<shape.blocks, shape.threads, shape.shared, static_cast<cudaStream_t>(stream)>>>(
      s.view, x, n, padded, queries, first_query, bad_query, s.scratch.as<char>());
  TQ_CUDA_LAUNCHED("prepare_kernel");
}

}  // namespace turboquant::cuda
