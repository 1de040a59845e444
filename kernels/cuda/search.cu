#include <algorithm>
#include <chrono>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/scan_args.cuh"
#include "kernels/cuda/search.h"
#include "kernels/cuda/select.cuh"

namespace turboquant::cuda {
namespace {

static_assert(kMostResults == kMostNeighbours);

constexpr std::size_t kCandidateBytes = std::size_t{256} << 20;  // of a batch
constexpr std::size_t kFactorBytes = 40;                         // of QueryFactors

LevelBytes level_bytes(const std::int8_t* levels, std::size_t n, std::int32_t offset) {
  LevelBytes bytes{};
  for (std::size_t code = 0; code < n; ++code) {
    const auto level = static_cast<std::uint8_t>(levels[code] + offset);
    bytes.words[code / 4] |= static_cast<std::uint32_t>(level) << (code % 4 * 8);
  }
  return bytes;
}

LevelBytes level_bytes(const kernels::CodeTable& table, int code) {
  return level_bytes(table.levels, 16, unsigned_levels(code) ? table.offset : 0);
}

LevelBytes level_bytes(const kernels::TrellisTable& table, int code) {
  return level_bytes(table.lookup, 32, unsigned_levels(code) ? table.offset : 0);
}

const ScanKernel* kernels_of(int code) {
  using Kernels = const ScanKernel* (*)();
  static constexpr Kernels kKernels[] = {scan_kernels_1,  scan_kernels_2,  scan_kernels_3,
                                         scan_kernels_4,  scan_kernels_1t, scan_kernels_2t,
                                         scan_kernels_3t, scan_kernels_4t};
  return kKernels[code - 1]();
}

// What a block of a kernel needs; one with bulk, beside its stages.
std::size_t shared_bytes(const ScanKernel& kernel, const RowLayout& layout) {
  const auto tiles = static_cast<std::size_t>(kernel.query_tiles);
  const std::size_t operands =
      kernel.shared ? tiles * 8 * layout.operand_bytes() * (kernel.two_parts ? 2 : 1) : 0;
  return tiles * 8 * kFactorBytes + operands;
}

// How a block of a kernel is launched. No warps: there is no room for it.
struct BlockShape {
  std::size_t warps;
  std::size_t stages;  // with bulk: tiles that a warp has at work and on their way
  std::size_t shared;
};

BlockShape block_shape(const ScanKernel& kernel, const RowLayout& layout, std::size_t most_shared) {
  constexpr std::size_t kMostStages = 8;
  const auto warps = static_cast<std::size_t>(kernel.warps);
  const std::size_t taken = shared_bytes(kernel, layout);
  if (!kernel.bulk) return {taken > most_shared ? 0 : warps, 0, taken};
  // With what counts the bytes of a tile as they come.
  const std::size_t rows = 16 * static_cast<std::size_t>(kernel.row_tiles);
  const std::size_t tile = rows * static_cast<std::size_t>(layout.stride) + kPastTileBytes + 8;
  const std::size_t tiles = taken > most_shared ? 0 : (most_shared - taken) / tile;
  // Measured: where little is computed two tiles a warp are better than more warps.
  std::size_t even = std::min(warps, tiles / (kernel.query_tiles == 1 ? 2 : 1) / 2 * 2);
  if (even < 8) even = std::min<std::size_t>(8, tiles / 2 * 2);
  if (even < 4) return {0, 0, 0};
  const std::size_t stages = std::min(kMostStages, tiles / even);
  return {even, stages, taken + even * stages * tile};
}

// The kernel with the smallest tile that takes all queries, or the largest that fits.
const ScanKernel& choose(const DeviceProperties& device, const RowLayout& layout, bool two_parts,
                         std::size_t queries) {
  const ScanKernel* best = nullptr;
  for (const ScanKernel* k = kernels_of(layout.code); k->function != nullptr; ++k) {
    if (k->two_parts != two_parts) continue;
    if (block_shape(*k, layout, device.shared_bytes_of_block).warps == 0) continue;
    const bool all = static_cast<std::size_t>(k->query_tiles) * 8 >= queries;
    if (k->bulk && (device.compute_capability < 90 || !all)) continue;
    const bool enough = best != nullptr && best->shared &&
                        static_cast<std::size_t>(best->query_tiles) * 8 >= queries;
    if (!enough) best = k;
  }
  return *best;
}

}  // namespace

struct Searcher::Batch {
  std::size_t first;
  std::size_t n;
  std::size_t capacity;
  const ScanKernel* kernel;
  QueryPointers queries;
  std::uint32_t* counts;
  std::uint64_t* limits;
};

Searcher::Searcher(int device) : device_(device), report_(sizeof(SearchReport)) {
  *report_.as<SearchReport>() = SearchReport{};
}

std::size_t Searcher::search(const SearchTask& task, StreamPointer stream) {
  const DeviceGuard guard(device_);
  const RowLayout& layout = task.codec->layout();
  const DeviceProperties& device = device_properties(device_);
  const std::size_t capacity = candidate_capacity(task.n_queries, task.k);
  const std::size_t most = std::max<std::size_t>(8, kCandidateBytes / (capacity * 8) / 8 * 8);
  for (std::size_t first = 0; first < task.n_queries; first += most) {
    Batch batch{};
    batch.first = first;
    batch.n = std::min(most, task.n_queries - first);
    batch.capacity = capacity;
    batch.kernel = &choose(device, layout, task.two_parts, batch.n);
    const auto of_tile = static_cast<std::size_t>(batch.kernel->query_tiles) * 8;
    const std::size_t padded = (batch.n + of_tile - 1) / of_tile * of_tile;
    const std::size_t operand_bytes = padded * layout.operand_bytes();
    operands_.reserve(device_, operand_bytes * (task.two_parts ? 2 : 1));
    factors_.reserve(device_, padded * 6 * 4);
    keys_.reserve(device_, batch.n * capacity * 8);
    state_.reserve(device_, batch.n * 12 + 16);
    auto* factors = factors_.as<float>();
    batch.queries.operands = operands_.as<std::uint8_t>();
    batch.queries.sign_operands = batch.queries.operands + operand_bytes;
    batch.queries.scales = factors;
    batch.queries.sign_scales = factors + padded;
    batch.queries.norm = factors + 2 * padded;
    batch.queries.offset = factors + 3 * padded;
    batch.queries.bias = reinterpret_cast<std::int32_t*>(factors + 4 * padded);
    batch.queries.sign_bias = batch.queries.bias + padded;
    batch.limits = state_.as<std::uint64_t>();
    batch.counts = reinterpret_cast<std::uint32_t*>(batch.limits + batch.n);
    if (!run(task, batch, stream)) return report_.as<SearchReport>()->bad;
  }
  return kNoQuery;
}

// False when a query holds NaN or infinity.
bool Searcher::run(const SearchTask& task, const Batch& batch, StreamPointer stream) {
  const RowLayout& layout = task.codec->layout();
  if (!clean_) {
    // At first, and when an earlier search broke off: a search leaves them as they are to be.
    flags_.reserve(device_, sizeof(SearchFlags));
    const SearchFlags flags{};
    copy(flags_.get(), &flags, sizeof flags, stream);
  }
  clean_ = false;
  const std::size_t eights = (batch.n + 7) / 8 * 8;
  const auto of_tile = static_cast<std::size_t>(batch.kernel->query_tiles) * 8;
  if (batch.n % of_tile != 0 && of_tile > 8) {
    // Tiles of eight that hold no query at all.
    const std::size_t missing = (of_tile - eights % of_tile) % of_tile;
    fill(batch.queries.operands + eights * layout.operand_bytes(), 0,
         missing * layout.operand_bytes(), stream);
    if (task.two_parts) {
      fill(batch.queries.sign_operands + eights * layout.operand_bytes(), 0,
           missing * layout.operand_bytes(), stream);
    }
  }
  task.codec->prepare(task.queries + batch.first * static_cast<std::size_t>(layout.dimension),
                      batch.n, batch.queries, batch.first, &flags_.as<SearchFlags>()->bad, stream);
  rounds(task, batch, false, stream);
  wait(stream);
  const SearchReport& report = *report_.as<SearchReport>();
  if (report.bad == ~0ull && report.overflow != 0) {
    rounds(task, batch, true, stream);
    wait(stream);
  }
  clean_ = true;
  return report.bad == ~0ull;
}

// Until the report of the last launch of write_best is there. Watching memory of the host is faster
// than waiting for the stream; but only the stream tells of errors.
void Searcher::wait(StreamPointer stream) {
  constexpr auto kPatience = std::chrono::milliseconds(1);
  const auto there = [&] {
    return __atomic_load_n(&report_.as<SearchReport>()->number, __ATOMIC_ACQUIRE) == number_;
  };
  const auto begin = std::chrono::steady_clock::now();
  while (!there()) {
    for (int i = 0; i < 64 && !there(); ++i) {
    }
    if (std::chrono::steady_clock::now() - begin < kPatience) continue;
    synchronize(stream);
    if (!there()) throw Error("CUDA: a search ended without a report", cudaErrorUnknown, device_);
  }
}

std::size_t Searcher::resident_blocks(const void* kernel, std::size_t warps, std::size_t shared) {
  std::size_t& blocks = resident_[{kernel, shared}];
  if (blocks == 0) {
    allow_shared_memory(kernel, device_);
    int of_one = 0;
    TQ_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_one, kernel,
                                                          static_cast<int>(32 * warps), shared));
    blocks = static_cast<std::size_t>(std::max(of_one, 1)) *
             static_cast<std::size_t>(device_properties(device_).multiprocessors);
  }
  return blocks;
}

void Searcher::rounds(const SearchTask& task, const Batch& batch, bool safe, StreamPointer stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const ScanKernel& kernel = *batch.kernel;
  const RowLayout& layout = task.codec->layout();
  const std::size_t tile_rows = 16 * static_cast<std::size_t>(kernel.row_tiles);
  ScanArgs scan{};
  scan.layout = layout;
  scan.rows = task.rows;
  scan.n = static_cast<std::uint32_t>(task.n);
  scan.mask = task.mask;
  scan.queries = batch.queries;
  scan.n_queries = static_cast<std::uint32_t>(batch.n);
  scan.levels = task.trellis != nullptr ? level_bytes(*task.trellis, layout.code)
                                        : level_bytes(task.levels, layout.code);
  scan.signs = level_bytes(task.signs, layout.code);
  scan.l2 = task.l2;
  scan.limits = batch.limits;
  scan.keys = keys_.as<std::uint64_t>();
  scan.counts = batch.counts;
  scan.capacity = static_cast<std::uint32_t>(batch.capacity);
  SelectArgs select{};
  select.overlapping = device_properties(device_).compute_capability >= 90;
  select.keys = scan.keys;
  select.counts = batch.counts;
  select.limits = batch.limits;
  select.capacity = scan.capacity;
  select.n_queries = scan.n_queries;
  select.k = static_cast<std::uint32_t>(std::min(task.k, std::max<std::size_t>(task.n, 1)));
  select.flags = flags_.as<SearchFlags>();
  select.l2 = task.l2;

  const auto [warps, stages, shared] =
      block_shape(kernel, layout, device_properties(device_).shared_bytes_of_block);
  scan.stages = static_cast<std::uint32_t>(stages);
  const std::size_t slots =
      resident_blocks(reinterpret_cast<const void*>(kernel.function), warps, shared);
  const auto of_tile = static_cast<std::size_t>(kernel.query_tiles) * 8;
  const std::size_t query_blocks = (batch.n + of_tile - 1) / of_tile;
  const std::size_t parts = std::max<std::size_t>(1, slots / query_blocks);

  const bool overlapping = select.overlapping;
  const auto plan = safe ? plan_safe_rounds(task.n, tile_rows, select.k, batch.capacity)
                         : plan_rounds(task.n, tile_rows, select.k, batch.capacity);
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const Round& round = plan[i];
    scan.round = round;
    const std::size_t positions = round.tiles * tile_rows;
    if (round.positional) {
      const std::size_t last = round.tiles > 0 ? round.tile(round.tiles - 1) + std::size_t{1} : 0;
      if (task.mask != nullptr || last * tile_rows > task.n) {
        fill(keys_.get(), 0xff, batch.n * batch.capacity * 8, stream);
      }
      select.positional = static_cast<std::uint32_t>(positions);
      if (task.n == 0) fill(batch.counts, 0, batch.n * 4, stream);
    } else {
      select.positional = 0;
    }
    if (round.tiles > 0) {
      const std::size_t wanted = kernel.bulk ? round.tiles : (round.tiles + warps - 1) / warps;
      const dim3 grid(static_cast<unsigned>(std::min(parts, wanted)),
                      static_cast<unsigned>(query_blocks));
      launch(kernel.function, "launch of scan_kernel", grid, static_cast<unsigned>(32 * warps),
             shared, cuda_stream, overlapping, scan);
    }
    if (i + 1 < plan.size()) {
      select_best(select, cuda_stream);
    } else {
      // More results than rows were asked for: the slots that are left say so.
      select.k = static_cast<std::uint32_t>(task.k);
      select.report = report_.as<SearchReport>();
      select.number = ++number_;
      write_best(select, task.scores + batch.first * task.k, task.ids + batch.first * task.k,
                 cuda_stream);
    }
  }
}

}  // namespace turboquant::cuda
