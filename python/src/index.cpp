#include "python/src/index.h"

#include <faiss/AutoTune.h>
#include <faiss/IVFlib.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/io.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "index/mapped_index.h"
#include "python/src/interrupt.h"
#include "python/src/names.h"
#include "python/src/threads.h"
#include "turboquant/index_two_level.h"

namespace turboquant::python {
namespace {

// The first rows still decide about the centre.
bool wants_centre(const IndexTurboQuant& index) {
  return index.options().centre && index.centre().empty();
}

// Codes of a flat index, alone or behind ids: each query and each row is then computed by itself,
// and a call gives the same bits in blocks as at once. Other trees (graphs, BLAS) get one call.
bool is_rowwise(const faiss::Index& index) {
  if (const auto* map = dynamic_cast<const faiss::IndexIDMap*>(&index)) {
    return is_rowwise(*map->index);
  }
  if (const auto* flat = dynamic_cast<const IndexTurboQuant*>(&index)) return !wants_centre(*flat);
  return dynamic_cast<const MappedIndex*>(&index) != nullptr;
}

// FAISS's try_extract_index_ivf, which before 1.8 does not look into refinements.
const faiss::IndexIVF* inverted_file(const faiss::Index& index) {
  if (const auto* chain = dynamic_cast<const faiss::IndexPreTransform*>(&index)) {
    return inverted_file(*chain->index);
  }
  if (const auto* map = dynamic_cast<const faiss::IndexIDMap*>(&index)) {
    return inverted_file(*map->index);
  }
  if (const auto* refine = dynamic_cast<const faiss::IndexRefine*>(&index)) {
    return inverted_file(*refine->base_index);
  }
  return faiss::ivflib::try_extract_index_ivf(&index);
}
faiss::IndexIVF* inverted_file(faiss::Index& index) {
  return const_cast<faiss::IndexIVF*>(inverted_file(std::as_const(index)));
}

bool has_ids(const faiss::Index& index) {
  return dynamic_cast<const faiss::IndexIDMap*>(&index) != nullptr ||
         faiss::ivflib::try_extract_index_ivf(&index) != nullptr;
}

// About 10 ms of encoding or more.
std::size_t add_block(std::size_t dimension) {
  return std::max<std::size_t>(64, (std::size_t{1} << 22) / dimension);
}

// f(); what it says of a row of a block is said again of the row of the whole.
template <class F>
void naming_rows(Rows& rows, std::size_t first, F&& f) {
  try {
    f();
  } catch (const std::exception&) {
    if (first > 0) rows.require_finite();
    throw;
  }
}

void check_ids(const Ids& ids, std::size_t rows) {
  if (ids.size() != rows) {
    throw std::invalid_argument("there are " + std::to_string(rows) + " vectors but " +
                                std::to_string(ids.size()) + " ids");
  }
}

/// Search parameters of the kind that the index wants, with a selector.
class Parameters {
 public:
  Parameters(const faiss::Index& index, const Selector* selector) {
    if (selector == nullptr) return;
    auto* sel = const_cast<faiss::IDSelector*>(&selector->get());
    if (const auto* ivf = inverted_file(index)) {
      ivf_.sel = sel;
      ivf_.nprobe = ivf->nprobe;
      ivf_.max_codes = ivf->max_codes;
      params_ = &ivf_;
    } else {
      flat_.sel = sel;
      params_ = &flat_;
    }
  }
  const faiss::SearchParameters* get() const { return params_; }

 private:
  faiss::SearchParameters flat_;
  faiss::IVFSearchParameters ivf_;
  const faiss::SearchParameters* params_ = nullptr;
};

class SignalCheck : public faiss::InterruptCallback {
 public:
  bool want_interrupt() override {
    const nb::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  }
};

std::size_t dimension_of(const faiss::Index& index) { return static_cast<std::size_t>(index.d); }

}  // namespace

void install_faiss_interrupts() {
  faiss::InterruptCallback::instance = std::make_unique<SignalCheck>();
}

std::unique_ptr<PyIndex> PyIndex::wrap(std::unique_ptr<faiss::Index> index) {
  if (dynamic_cast<const IndexTurboQuant*>(index.get()) != nullptr) {
    return std::make_unique<PyIndexTurboQuant>(std::move(index));
  }
  return std::make_unique<PyIndex>(std::move(index));
}

void PyIndex::train(nb::handle x) {
  Rows rows(x, dimension_of(*index_), "training vectors");
  writing([&](faiss::Index& index) {
    use_threads();
    index.train(static_cast<std::int64_t>(rows.count()), rows.block(0, rows.count()));
  });
}

void PyIndex::add(nb::handle x) {
  Rows rows(x, dimension_of(*index_), "vectors");
  const std::size_t n = rows.count();
  if (n == 0) return;
  if (auto* flat = dynamic_cast<IndexTurboQuant*>(index_.get())) {
    // Encoding needs no lock: searches wait only while the codes are appended.
    const nb::gil_scoped_release no_gil;
    use_threads();
    {
      const std::unique_lock<FairLock> lock(lock_);
      if (wants_centre(*flat)) {
        naming_rows(rows, 0, [&] { flat->train(static_cast<std::int64_t>(n), rows.block(0, n)); });
      }
    }
    const std::size_t code_size = flat->code_size;
    std::vector<std::uint8_t> codes(n * code_size);
    in_blocks(n, add_block(dimension_of(*flat)), [&](std::size_t first, std::size_t count) {
      naming_rows(rows, first, [&] {
        flat->sa_encode(static_cast<std::int64_t>(count), rows.block(first, count),
                        codes.data() + first * code_size);
      });
    });
    const std::unique_lock<FairLock> lock(lock_);
    if (flat->ntotal == 0) {
      flat->codes = decltype(flat->codes)(std::move(codes));
    } else {
      const std::size_t used = static_cast<std::size_t>(flat->ntotal) * code_size;
      flat->codes.resize(used + codes.size());
      std::memcpy(flat->codes.data() + used, codes.data(), codes.size());
    }
    flat->ntotal += static_cast<std::int64_t>(n);
    return;
  }
  writing([&](faiss::Index& index) {
    use_threads();
    rows.require_finite();
    index.add(static_cast<std::int64_t>(n), rows.block(0, n));
  });
}

void PyIndex::add_with_ids(nb::handle x, nb::handle ids_object) {
  Rows rows(x, dimension_of(*index_), "vectors");
  const Ids ids = to_ids(ids_object, "ids");
  check_ids(ids, rows.count());
  writing([&](faiss::Index& index) {
    use_threads();
    rows.require_finite();
    const std::size_t block =
        is_rowwise(index) ? add_block(dimension_of(index)) : std::max<std::size_t>(rows.count(), 1);
    in_blocks(rows.count(), block, [&](std::size_t first, std::size_t count) {
      index.add_with_ids(static_cast<std::int64_t>(count), rows.block(first, count),
                         ids.data() + first);
    });
  });
}

// Blocks of about a quarter of a second; at least 64 queries, which share the decoding of codes.
std::size_t PyIndex::query_block(const faiss::Index& index, std::size_t n) const {
  if (!is_rowwise(index)) return std::max<std::size_t>(n, 1);
  const double per_query = static_cast<double>(index.ntotal + 1) * index.d;
  const double queries = std::min(2e10 / per_query, 1e6);
  return std::max<std::size_t>(64, static_cast<std::size_t>(queries) / 64 * 64);
}

nb::tuple PyIndex::search(nb::handle queries, std::int64_t k, nb::handle selector_object) {
  Rows rows(queries, dimension_of(*index_), "queries");
  if (k < 1) throw std::invalid_argument("k must be 1 or more, not " + std::to_string(k));
  std::unique_ptr<Selector> made;
  const Selector* selector = Selector::from(selector_object, made);
  const std::size_t n = rows.count();
  const auto width = static_cast<std::size_t>(k);
  if (n > 0 && width > (std::size_t{1} << 40) / n) {
    throw std::invalid_argument("k is too large: " + std::to_string(k));
  }
  std::unique_ptr<float[]> scores(new float[n * width]);
  std::unique_ptr<std::int64_t[]> ids(new std::int64_t[n * width]);
  reading([&](const faiss::Index& index) {
    use_threads();
    const Parameters params(index, selector);
    in_blocks(n, query_block(index, n), [&](std::size_t first, std::size_t count) {
      naming_rows(rows, first, [&] {
        index.search(static_cast<std::int64_t>(count), rows.block(first, count), k,
                     scores.get() + first * width, ids.get() + first * width, params.get());
      });
    });
  });
  return nb::make_tuple(to_numpy(std::move(scores), n, width, rows.is_single()),
                        to_numpy(std::move(ids), n, width, rows.is_single()));
}

nb::tuple PyIndex::range_search(nb::handle queries, float radius, nb::handle selector_object) {
  Rows rows(queries, dimension_of(*index_), "queries");
  std::unique_ptr<Selector> made;
  const Selector* selector = Selector::from(selector_object, made);
  const std::size_t n = rows.count();
  std::vector<float> scores;
  std::vector<std::int64_t> ids;
  std::unique_ptr<std::int64_t[]> limits(new std::int64_t[n + 1]);
  limits[0] = 0;
  reading([&](const faiss::Index& index) {
    use_threads();
    const Parameters params(index, selector);
    in_blocks(n, query_block(index, n), [&](std::size_t first, std::size_t count) {
      faiss::RangeSearchResult result(count);
      naming_rows(rows, first, [&] {
        index.range_search(static_cast<std::int64_t>(count), rows.block(first, count), radius,
                           &result, params.get());
      });
      const auto before = static_cast<std::int64_t>(scores.size());
      for (std::size_t i = 1; i <= count; ++i) {
        limits[first + i] = before + static_cast<std::int64_t>(result.lims[i]);
      }
      scores.insert(scores.end(), result.distances, result.distances + result.lims[count]);
      ids.insert(ids.end(), result.labels, result.labels + result.lims[count]);
    });
  });
  std::unique_ptr<float[]> out_scores(new float[scores.size()]);
  std::unique_ptr<std::int64_t[]> out_ids(new std::int64_t[ids.size()]);
  std::copy(scores.begin(), scores.end(), out_scores.get());
  std::copy(ids.begin(), ids.end(), out_ids.get());
  return nb::make_tuple(to_numpy(std::move(limits), 1, n + 1, true),
                        to_numpy(std::move(out_scores), 1, scores.size(), true),
                        to_numpy(std::move(out_ids), 1, ids.size(), true));
}

nb::object PyIndex::reconstruct(nb::handle ids_object) {
  const bool single = nb::isinstance<nb::int_>(ids_object);
  const Ids ids = to_ids(single ? nb::handle(nb::make_tuple(ids_object)) : ids_object, "ids");
  const std::size_t d = dimension_of(*index_);
  std::unique_ptr<float[]> x(new float[ids.size() * d]);
  const auto copy = [&](const faiss::Index& index) {
    use_threads();
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::int64_t id = ids.data()[i];
      const std::string missing = "id " + std::to_string(id) + " is not in the index";
      if (!has_ids(index) && (id < 0 || id >= index.ntotal)) {
        throw nb::index_error(missing.c_str());
      }
      try {
        index.reconstruct(id, x.get() + i * d);
      } catch (const faiss::FaissException& error) {
        if (error.msg.find("not found") == std::string::npos) throw;
        throw nb::index_error(missing.c_str());
      }
    }
  };
  const bool must_map = reading([](const faiss::Index& index) {
    const auto* ivf = inverted_file(index);
    return ivf != nullptr && ivf->direct_map.no();
  });
  if (must_map) {
    writing([](faiss::Index& index) {  // inverted lists do not say which id is where
      inverted_file(index)->set_direct_map_type(faiss::DirectMap::Hashtable);
    });
  }
  reading(copy);
  return to_numpy(std::move(x), ids.size(), d, single);
}

std::size_t PyIndex::remove_ids(nb::handle selector_object) {
  std::unique_ptr<Selector> made;
  const Selector* selector = Selector::from(selector_object, made);
  if (selector == nullptr) throw nb::type_error("remove_ids needs ids, not None");
  return writing([&](faiss::Index& index) {
    // FAISS cannot remove by every selector while it has a map of ids; reconstruct makes it anew.
    if (auto* ivf = inverted_file(index)) {
      ivf->set_direct_map_type(faiss::DirectMap::NoMap);
    }
    return index.remove_ids(selector->get());
  });
}

void PyIndex::reset() {
  writing([](faiss::Index& index) { index.reset(); });
}

void PyIndex::set_parameter(const std::string& name, double value) {
  writing([&](faiss::Index& index) {
    if (name == "k_factor_rf" && set_k_factor(index, static_cast<float>(value))) return;
    faiss::ParameterSpace().set_index_parameter(&index, name, value);
  });
}

std::int64_t PyIndex::nprobe() {
  return reading([](const faiss::Index& index) -> std::int64_t {
    const auto* ivf = inverted_file(index);
    if (ivf == nullptr) throw nb::attribute_error("nprobe: the index has no inverted lists");
    return static_cast<std::int64_t>(ivf->nprobe);
  });
}

std::int64_t PyIndex::size() {
  return reading([](const faiss::Index& index) { return index.ntotal; });
}

bool PyIndex::is_trained() {
  return reading([](const faiss::Index& index) { return index.is_trained; });
}

void PyIndex::write(const std::string& path, bool pack) {
  reading([&](const faiss::Index& index) { write_index(index, path, {pack}); });
}

nb::bytes PyIndex::to_bytes(bool pack) {
  faiss::VectorIOWriter writer;
  reading([&](const faiss::Index& index) { write_index(index, &writer, {pack}); });
  return nb::bytes(writer.data.data(), writer.data.size());
}

std::unique_ptr<PyIndex> PyIndex::clone() {
  return reading([](const faiss::Index& index) { return wrap(clone_index(index)); });
}

PyIndexTurboQuant::PyIndexTurboQuant(int d, int bits, nb::handle metric,
                                     const std::string& estimator, std::uint64_t seed, bool centre)
    : PyIndex([&] {
        IndexOptions options;
        options.bits = bits;
        options.seed = seed;
        options.centre = centre;
        parse_estimator(estimator, options.estimator, options.projection);
        const MetricName parsed = parse_metric(metric);
        options.normalize = parsed.normalize;
        return std::make_unique<IndexTurboQuant>(d, options, parsed.metric);
      }()) {}

float PyIndexTurboQuant::prune_confidence() {
  return reading([](const faiss::Index& index) {
    return static_cast<const IndexTurboQuant&>(index).prune_confidence;
  });
}

void PyIndexTurboQuant::set_prune_confidence(float confidence) {
  if (confidence != 0 && !(confidence > 0.5f && confidence < 1)) {
    throw std::invalid_argument("prune_confidence must be 0 or between 0.5 and 1, not " +
                                std::to_string(confidence));
  }
  writing([&](faiss::Index& index) {
    static_cast<IndexTurboQuant&>(index).prune_confidence = confidence;
  });
}

nb::object PyIndexTurboQuant::codes() {
  std::size_t rows = 0;
  const std::size_t width = flat().code_size;
  auto copy = reading([&](const faiss::Index& index) {
    const auto& codes = static_cast<const IndexTurboQuant&>(index).codes;
    rows = static_cast<std::size_t>(index.ntotal);
    std::unique_ptr<std::uint8_t[]> bytes(new std::uint8_t[rows * width]);
    if (rows > 0) std::memcpy(bytes.get(), codes.data(), rows * width);
    return bytes;
  });
  return to_numpy(std::move(copy), rows, width, false);
}

}  // namespace turboquant::python
