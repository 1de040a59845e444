#include "turboquant/gpu_index_turboquant.h"

#include <faiss/impl/IDSelector.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "index/checks.h"
#include "index/gpu_rows.h"
#include "index/selector_mask.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/search.h"

namespace turboquant {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{64} << 20;
constexpr std::size_t kReached = 4096;  // results that the device writes to memory of the host

/// Runs f; errors of CUDA and of the quantizer become exceptions of FAISS.
template <class F>
decltype(auto) translate_cuda_errors(F&& f) {
  try {
    return translate_errors(std::forward<F>(f));
  } catch (const cuda::OutOfMemory& error) {
    throw GpuOutOfMemory(error.what(), error.code());
  } catch (const cuda::Error& error) {
    throw GpuError(error.what(), error.code());
  }
}

/// Bytes of host or device as memory of the device: a copy in `storage` where they are the host's.
template <typename T>
const T* on_device(int device, const T* data, std::size_t n, cuda::Buffer& storage,
                   cuda::StreamPointer stream) {
  if (cuda::device_of(data) == device) return data;
  storage.reserve(device, n * sizeof(T));
  cuda::copy(storage.get(), data, n * sizeof(T), stream);
  return storage.as<T>();
}

/// Where the device writes a result: where it is wanted if that is its own memory, else memory of
/// the host that it reaches, or its own if that is too small.
template <typename T>
class Result {
 public:
  Result(int device, T* wanted, std::size_t n, T* reached, std::size_t most, cuda::Buffer& storage)
      : wanted_(wanted), n_(n), reached_(reached) {
    if (cuda::device_of(wanted) == device) {
      at_ = wanted;
    } else if (n <= most) {
      at_ = reached;
    } else {
      storage.reserve(device, n * sizeof(T));
      at_ = storage.as<T>();
    }
  }
  T* at() const { return at_; }

  /// Once it is written. True when the stream has to be waited for.
  bool deliver(cuda::StreamPointer stream) const {
    if (at_ == wanted_) return false;
    if (at_ == reached_) {
      std::copy_n(at_, n_, wanted_);
      return false;
    }
    cuda::copy(wanted_, at_, n_ * sizeof(T), stream);
    return true;
  }

 private:
  T* wanted_;
  std::size_t n_;
  T* reached_;
  T* at_;
};

}  // namespace

int gpu_device_count() { return cuda::device_count(); }

struct GpuIndexTurboQuant::State {
  State(int dimension, const IndexOptions& wanted, faiss::MetricType metric, int wanted_device)
      : options(wanted),
        quantizer(make_codec(dimension, wanted, metric)),
        device(wanted_device),
        codec(device, codec_tables(quantizer.impl(), wanted.normalize)),
        rows(device, quantizer.impl()),
        searcher(device),
        reached(kReached * (sizeof(std::int64_t) + sizeof(float))) {}

  std::size_t dimension() const { return quantizer.dimension(); }

  /// Encodes x[n][d] to rows; `first` rows come before them in messages.
  void encode(std::size_t n, const float* x, const cuda::RowPointers& to, std::size_t first) const {
    const cuda::Buffer bad(device, 8);
    cuda::fill(bad.get(), 0xff, 8, stream);
    const bool on_device = cuda::device_of(x) == device;
    const std::size_t part =
        on_device ? n : std::min(n, std::max<std::size_t>(1, kStagingBytes / (4 * dimension())));
    cuda::Buffer staging;
    if (!on_device) staging = cuda::Buffer(device, part * dimension() * 4);
    for (std::size_t i = 0; i < n; i += part) {
      const std::size_t count = std::min(part, n - i);
      const float* from = x + i * dimension();
      if (!on_device) {
        cuda::copy(staging.get(), from, count * dimension() * 4, stream);
        from = staging.as<float>();
      }
      codec.encode(from, count, to.at(codec.layout(), i), first + i, bad.as<unsigned long long>(),
                   stream);
    }
    unsigned long long bad_row = 0;
    cuda::copy(&bad_row, bad.get(), 8, stream);
    cuda::synchronize(stream);
    if (bad_row != std::numeric_limits<unsigned long long>::max()) {
      fail((options.normalize ? "vector " : "row ") + std::to_string(bad_row) +
           " holds NaN or infinity");
    }
  }

  /// Rows of the device to bytes of the host.
  void download(const cuda::RowPointers& from, std::size_t n, std::uint8_t* bytes) const {
    const std::size_t size = quantizer.code_size();
    const std::size_t part = std::min(n, std::max<std::size_t>(1, kStagingBytes / size));
    const cuda::Buffer staging(device, part * size);
    for (std::size_t i = 0; i < n; i += part) {
      const std::size_t count = std::min(part, n - i);
      cuda::write_rows(codec.layout(), from.at(codec.layout(), i), count, size,
                       staging.as<std::uint8_t>(), stream);
      cuda::copy(bytes + i * size, staging.get(), count * size, stream);
      cuda::synchronize(stream);
    }
  }

  void upload(const std::uint8_t* bytes, std::size_t n, const cuda::RowPointers& to) const {
    const std::size_t size = quantizer.code_size();
    const std::size_t part = std::min(n, std::max<std::size_t>(1, kStagingBytes / size));
    const cuda::Buffer staging(device, part * size);
    for (std::size_t i = 0; i < n; i += part) {
      const std::size_t count = std::min(part, n - i);
      cuda::copy(staging.get(), bytes + i * size, count * size, stream);
      cuda::read_rows(codec.layout(), staging.as<std::uint8_t>(), count, size,
                      to.at(codec.layout(), i), stream);
    }
    cuda::synchronize(stream);
  }

  IndexOptions options;
  Quantizer quantizer;
  int device;
  cuda::StreamPointer stream = nullptr;
  bool has_centre = false;
  cuda::Codec codec;
  GpuRows rows;
  std::mutex searching;  // the searcher, the stream and these serve one call at a time
  cuda::Searcher searcher;
  cuda::Buffer queries, scores, ids, mask;
  cuda::PinnedBuffer reached;  // ids, then scores
};

GpuIndexTurboQuant::GpuIndexTurboQuant(int dimension, const IndexOptions& options,
                                       faiss::MetricType metric, int device)
    : faiss::Index(dimension, metric) {
  if (options.residual) fail("what another index left over cannot be on a device");
  translate_cuda_errors(
      [&] { state_ = std::make_unique<State>(dimension, options, metric, device); });
  is_trained = true;
}

GpuIndexTurboQuant::~GpuIndexTurboQuant() = default;

const IndexOptions& GpuIndexTurboQuant::options() const { return state_->options; }
const Quantizer& GpuIndexTurboQuant::codec() const { return state_->quantizer; }
int GpuIndexTurboQuant::device() const { return state_->device; }
void GpuIndexTurboQuant::set_stream(void* stream) { state_->stream = stream; }

void GpuIndexTurboQuant::train(std::int64_t n, const float* x) {
  State& s = *state_;
  if (!s.options.centre || ntotal > 0 || n <= 0) return;
  IndexTurboQuant on_host(d, s.options, metric_type);
  std::vector<float> copied;
  translate_cuda_errors([&] {
    if (cuda::device_of(x) < 0) return;
    const cuda::DeviceGuard guard(s.device);
    copied.resize(static_cast<std::size_t>(n) * s.dimension());
    cuda::copy(copied.data(), x, copied.size() * 4, s.stream);
    cuda::synchronize(s.stream);
  });
  on_host.train(n, copied.empty() ? x : copied.data());
  set_centre(on_host.centre().data());
}

std::vector<float> GpuIndexTurboQuant::centre() const {
  return state_->has_centre ? state_->quantizer.options().centre : std::vector<float>();
}

void GpuIndexTurboQuant::set_centre(const float* centre) {
  State& s = *state_;
  if (!s.options.centre) fail("the index " + index_name(s.options) + " has no centre");
  if (ntotal > 0) fail("the centre of an index that holds vectors cannot change");
  QuantizerOptions centred = s.quantizer.options();
  centred.centre.assign(centre, centre + s.dimension());
  translate_cuda_errors([&] {
    Quantizer quantizer(centred);
    cuda::Codec codec(s.device, codec_tables(quantizer.impl(), s.options.normalize));
    s.codec = std::move(codec);
    s.quantizer = quantizer;
  });
  s.has_centre = true;
}

void GpuIndexTurboQuant::reserve(std::int64_t n) {
  if (n < 0) fail("cannot reserve " + std::to_string(n) + " rows");
  State& s = *state_;
  translate_cuda_errors([&] {
    const cuda::DeviceGuard guard(s.device);
    s.rows.reserve(static_cast<std::size_t>(n), s.stream);
  });
}

std::size_t GpuIndexTurboQuant::device_bytes() const {
  return state_->rows.capacity() * GpuRows::row_bytes(state_->quantizer.impl());
}

void GpuIndexTurboQuant::add(std::int64_t n, const float* x) {
  if (n < 0) fail("cannot add " + std::to_string(n) + " vectors");
  if (n == 0) return;
  State& s = *state_;
  const auto total = static_cast<std::size_t>(ntotal) + static_cast<std::size_t>(n);
  if (total > std::numeric_limits<std::uint32_t>::max()) {
    fail("an index on a device takes at most 4294967295 rows, not " + std::to_string(total));
  }
  if (s.options.centre && !s.has_centre) train(n, x);
  translate_cuda_errors([&] {
    const cuda::DeviceGuard guard(s.device);
    s.rows.grow(total, s.stream);
    s.encode(static_cast<std::size_t>(n), x, s.rows.at(s.rows.size()), 0);
    s.rows.resize(total);
  });
  ntotal += n;
}

void GpuIndexTurboQuant::search(std::int64_t n, const float* x, std::int64_t k, float* distances,
                                std::int64_t* labels, const faiss::SearchParameters* params) const {
  if (n < 0) fail("cannot search " + std::to_string(n) + " queries");
  if (k < 1 || k > kMostResults) {
    fail("k must be 1 to " + std::to_string(kMostResults) + " on a device, not " +
         std::to_string(k));
  }
  if (n == 0) return;
  State& s = *state_;
  const auto nq = static_cast<std::size_t>(n);
  const auto slots = nq * static_cast<std::size_t>(k);
  std::vector<std::uint64_t> mask;
  if (params != nullptr && params->sel != nullptr) {
    mask = selector_mask(*params->sel, s.rows.size());
  }
  translate_cuda_errors([&] {
    const std::lock_guard<std::mutex> lock(s.searching);
    const cuda::DeviceGuard guard(s.device);
    if (!mask.empty()) {
      s.mask.reserve(s.device, mask.size() * 8);
      cuda::copy(s.mask.get(), mask.data(), mask.size() * 8, s.stream);
    }
    cuda::SearchTask task;
    task.codec = &s.codec;
    task.levels = s.quantizer.impl().levels;
    task.signs = s.quantizer.impl().signs;
    task.trellis = s.quantizer.impl().trellis;
    task.two_parts = s.quantizer.impl().two_parts();
    task.l2 = metric_type == faiss::METRIC_L2;
    task.rows = s.rows.at(0);
    task.n = s.rows.size();
    task.mask = mask.empty() ? nullptr : s.mask.as<std::uint32_t>();
    task.queries = on_device(s.device, x, nq * s.dimension(), s.queries, s.stream);
    task.n_queries = nq;
    task.k = static_cast<std::size_t>(k);
    auto* reached = s.reached.as<std::int64_t>();
    const Result<std::int64_t> ids(s.device, labels, slots, reached, kReached, s.ids);
    const Result<float> scores(s.device, distances, slots,
                               reinterpret_cast<float*>(reached + kReached), kReached, s.scores);
    task.scores = scores.at();
    task.ids = ids.at();
    const std::size_t bad = s.searcher.search(task, s.stream);
    if (bad != cuda::Searcher::kNoQuery) {
      fail("query " + std::to_string(bad) + " holds NaN or infinity");
    }
    const bool scores_follow = scores.deliver(s.stream);
    const bool ids_follow = ids.deliver(s.stream);
    if (scores_follow || ids_follow) cuda::synchronize(s.stream);
  });
}

void GpuIndexTurboQuant::reset() {
  state_->rows.clear();
  ntotal = 0;
}

std::size_t GpuIndexTurboQuant::remove_ids(const faiss::IDSelector& selector) {
  State& s = *state_;
  const std::size_t n = s.rows.size();
  const std::vector<std::uint64_t> removed = selector_mask(selector, n);
  std::vector<std::uint32_t> kept;
  for (std::size_t i = 0; i < n; ++i) {
    if ((removed[i / 64] >> (i % 64) & 1) == 0) kept.push_back(static_cast<std::uint32_t>(i));
  }
  if (kept.size() == n) return 0;
  translate_cuda_errors([&] {
    const cuda::DeviceGuard guard(s.device);
    s.rows.keep(kept, s.stream);
  });
  ntotal = static_cast<std::int64_t>(kept.size());
  return n - kept.size();
}

void GpuIndexTurboQuant::reconstruct(std::int64_t key, float* x) const {
  if (key < 0 || key >= ntotal) fail("there is no row " + std::to_string(key));
  std::vector<std::uint8_t> bytes(state_->quantizer.code_size());
  copy_codes(key, 1, bytes.data());
  state_->quantizer.dequantize(bytes.data(), 1, x);
}

std::size_t GpuIndexTurboQuant::sa_code_size() const { return state_->quantizer.code_size(); }

void GpuIndexTurboQuant::sa_encode(std::int64_t n, const float* x, std::uint8_t* bytes) const {
  State& s = *state_;
  if (n < 0) fail("cannot encode " + std::to_string(n) + " vectors");
  if (s.options.centre && !s.has_centre) {
    fail("the index has no centre yet: train it or add vectors");
  }
  if (n == 0) return;
  translate_cuda_errors([&] {
    const std::lock_guard<std::mutex> lock(s.searching);
    const cuda::DeviceGuard guard(s.device);
    GpuRows rows(s.device, s.quantizer.impl());
    rows.reserve(static_cast<std::size_t>(n), s.stream);
    s.encode(static_cast<std::size_t>(n), x, rows.at(0), 0);
    s.download(rows.at(0), static_cast<std::size_t>(n), bytes);
  });
}

void GpuIndexTurboQuant::sa_decode(std::int64_t n, const std::uint8_t* bytes, float* x) const {
  if (n < 0) fail("cannot decode " + std::to_string(n) + " vectors");
  if (n > 0) state_->quantizer.dequantize(bytes, static_cast<std::size_t>(n), x);
}

void GpuIndexTurboQuant::copy_codes(std::int64_t first, std::int64_t n, std::uint8_t* bytes) const {
  if (first < 0 || n < 0 || first > ntotal - n) {
    fail("there are no rows " + std::to_string(first) + " to " + std::to_string(first + n - 1));
  }
  if (n == 0) return;
  State& s = *state_;
  translate_cuda_errors([&] {
    const std::lock_guard<std::mutex> lock(s.searching);
    const cuda::DeviceGuard guard(s.device);
    s.download(s.rows.at(static_cast<std::size_t>(first)), static_cast<std::size_t>(n), bytes);
  });
}

void GpuIndexTurboQuant::add_codes(std::int64_t n, const std::uint8_t* bytes) {
  if (n < 0) fail("cannot add " + std::to_string(n) + " vectors");
  if (n == 0) return;
  State& s = *state_;
  if (s.options.centre && !s.has_centre) fail("the index has no centre yet: set it first");
  const auto total = static_cast<std::size_t>(ntotal) + static_cast<std::size_t>(n);
  if (total > std::numeric_limits<std::uint32_t>::max()) {
    fail("an index on a device takes at most 4294967295 rows, not " + std::to_string(total));
  }
  translate_cuda_errors([&] {
    const cuda::DeviceGuard guard(s.device);
    s.rows.grow(total, s.stream);
    s.upload(bytes, static_cast<std::size_t>(n), s.rows.at(s.rows.size()));
    s.rows.resize(total);
  });
  ntotal += n;
}

std::unique_ptr<GpuIndexTurboQuant> index_cpu_to_gpu(int device, const IndexTurboQuant& index) {
  auto copied =
      std::make_unique<GpuIndexTurboQuant>(index.d, index.options(), index.metric_type, device);
  const std::vector<float> centre = index.centre();
  if (!centre.empty()) copied->set_centre(centre.data());
  copied->add_codes(index.ntotal, index.codes.data());
  copied->verbose = index.verbose;
  return copied;
}

std::unique_ptr<IndexTurboQuant> index_gpu_to_cpu(const GpuIndexTurboQuant& index) {
  auto copied = std::make_unique<IndexTurboQuant>(index.d, index.options(), index.metric_type);
  const std::vector<float> centre = index.centre();
  if (!centre.empty()) copied->set_centre(centre.data());
  copied->codes.resize(static_cast<std::size_t>(index.ntotal) * copied->code_size);
  index.copy_codes(0, index.ntotal, copied->codes.data());
  copied->ntotal = index.ntotal;
  copied->verbose = index.verbose;
  return copied;
}

namespace {

/// The k best of one query, of the parts seen so far.
class Merged {
 public:
  Merged(bool l2, std::int64_t k, float* scores, std::int64_t* ids)
      : l2_(l2), k_(static_cast<std::size_t>(k)), scores_(scores), ids_(ids) {}

  /// What a part found, best first; its rows count from first_row.
  void add(const float* scores, const std::int64_t* ids, std::int64_t first_row) {
    std::vector<std::pair<float, std::int64_t>> best;
    std::size_t ours = 0;
    std::size_t theirs = 0;
    const auto left = [this](const std::int64_t* of, std::size_t i) {
      return i < k_ && of[i] >= 0;
    };
    while (best.size() < k_ && (left(ids_, ours) || left(ids, theirs))) {
      // Rows of earlier parts come first among equals.
      const bool take_ours =
          left(ids_, ours) && (!left(ids, theirs) || !better(scores[theirs], scores_[ours]));
      if (take_ours) {
        best.emplace_back(scores_[ours], ids_[ours]);
        ++ours;
      } else {
        best.emplace_back(scores[theirs], ids[theirs] + first_row);
        ++theirs;
      }
    }
    for (std::size_t i = 0; i < best.size(); ++i) {
      scores_[i] = best[i].first;
      ids_[i] = best[i].second;
    }
  }

 private:
  bool better(float a, float b) const { return l2_ ? a < b : a > b; }

  bool l2_;
  std::size_t k_;
  float* scores_;
  std::int64_t* ids_;
};

}  // namespace

void search_in_parts(int device, const IndexTurboQuant& index, std::int64_t n, const float* x,
                     std::int64_t k, float* distances, std::int64_t* labels,
                     const faiss::SearchParameters* params, std::size_t device_bytes) {
  GpuIndexTurboQuant part(index.d, index.options(), index.metric_type, device);
  const std::vector<float> centre = index.centre();
  if (!centre.empty()) part.set_centre(centre.data());
  // The first part, which is empty, checks the arguments and fills the results with no row.
  part.search(n, x, k, distances, labels);
  if (n == 0) return;
  const auto total = static_cast<std::size_t>(index.ntotal);
  const std::size_t size = index.code_size;
  const std::size_t row_bytes = translate_cuda_errors([&] {
    if (device_bytes == 0) device_bytes = cuda::free_memory(device) / 2;
    return GpuRows::row_bytes(index.codec().impl());
  });
  const std::size_t most = std::max<std::size_t>(64, device_bytes / row_bytes / 64 * 64);
  std::vector<std::uint64_t> mask;
  if (params != nullptr && params->sel != nullptr) mask = selector_mask(*params->sel, total);
  std::vector<float> scores(static_cast<std::size_t>(n * k));
  std::vector<std::int64_t> ids(scores.size());
  part.reserve(static_cast<std::int64_t>(std::min(most, total)));
  for (std::size_t first = 0; first < total; first += most) {
    const std::size_t count = std::min(most, total - first);
    part.remove_ids(faiss::IDSelectorRange(0, part.ntotal));
    part.add_codes(static_cast<std::int64_t>(count), index.codes.data() + first * size);
    // Of whole words: parts begin at multiples of 64 rows.
    const faiss::IDSelectorBitmap selector(
        (count + 7) / 8, reinterpret_cast<const std::uint8_t*>(mask.data() + first / 64));
    faiss::SearchParameters selected;
    selected.sel = const_cast<faiss::IDSelectorBitmap*>(&selector);
    part.search(n, x, k, scores.data(), ids.data(), mask.empty() ? nullptr : &selected);
    for (std::int64_t q = 0; q < n; ++q) {
      Merged(index.metric_type == faiss::METRIC_L2, k, distances + q * k, labels + q * k)
          .add(scores.data() + q * k, ids.data() + q * k, static_cast<std::int64_t>(first));
    }
  }
}

}  // namespace turboquant
