// The index of the Python module: any FAISS index tree, behind a lock, called without the GIL.
//
// Searching threads share the index; what changes it waits for them and they for it. The GIL is
// released before the lock is taken, so a thread that waits for one never holds the other.
#pragma once

#include <faiss/Index.h>
#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "python/src/arrays.h"
#include "python/src/fair_lock.h"
#include "python/src/selector.h"
#include "turboquant/faiss_io.h"

namespace turboquant::python {

namespace nb = nanobind;

class PyIndex {
 public:
  explicit PyIndex(std::unique_ptr<faiss::Index> index) : index_(std::move(index)) {}
  virtual ~PyIndex() = default;

  /// The Python class that fits: IndexTurboQuant for a flat index, else Index.
  static std::unique_ptr<PyIndex> wrap(std::unique_ptr<faiss::Index> index);

  void train(nb::handle x);
  void add(nb::handle x);
  void add_with_ids(nb::handle x, nb::handle ids);
  nb::tuple search(nb::handle queries, std::int64_t k, nb::handle selector);
  nb::tuple range_search(nb::handle queries, float radius, nb::handle selector);
  nb::object reconstruct(nb::handle ids);
  std::size_t remove_ids(nb::handle selector);
  void reset();

  void set_parameter(const std::string& name, double value);
  std::int64_t nprobe();
  std::int64_t size();
  int dimension() const { return index_->d; }
  faiss::MetricType metric() const { return index_->metric_type; }
  bool is_trained();

  void write(const std::string& path, bool pack);
  nb::bytes to_bytes(bool pack);
  std::unique_ptr<PyIndex> clone();

 protected:
  /// f(index) with the lock of readers or of writers and without the GIL.
  template <class F>
  auto reading(F&& f) {
    const nb::gil_scoped_release no_gil;
    const std::shared_lock<FairLock> lock(lock_);
    return f(static_cast<const faiss::Index&>(*index_));
  }
  template <class F>
  auto writing(F&& f) {
    const nb::gil_scoped_release no_gil;
    const std::unique_lock<FairLock> lock(lock_);
    return f(*index_);
  }
  const faiss::Index& unlocked() const { return *index_; }

 private:
  std::size_t query_block(const faiss::Index& index, std::size_t n) const;

  std::unique_ptr<faiss::Index> index_;
  FairLock lock_;
};

/// A flat index of TurboQuant codes.
class PyIndexTurboQuant : public PyIndex {
 public:
  using PyIndex::PyIndex;
  PyIndexTurboQuant(int d, int bits, nb::handle metric, const std::string& estimator,
                    std::uint64_t seed, bool centre);

  float prune_confidence();
  void set_prune_confidence(float confidence);
  const IndexTurboQuant& flat() const { return static_cast<const IndexTurboQuant&>(unlocked()); }
  /// f(index) with the lock of readers and without the GIL.
  template <class F>
  auto read_flat(F&& f) {
    return reading(
        [&](const faiss::Index& index) { return f(static_cast<const IndexTurboQuant&>(index)); });
  }
  nb::object codes();
};

/// Has FAISS look for Ctrl-C in its own long computations.
void install_faiss_interrupts();

void bind_index(nb::module_& m);

}  // namespace turboquant::python
