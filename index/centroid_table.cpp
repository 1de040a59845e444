#include "index/centroid_table.h"

#include <faiss/IndexFlat.h>

#include <mutex>
#include <typeinfo>

#include "index/checks.h"
#include "packing/checksum.h"

namespace turboquant {
namespace {

constexpr std::size_t kMostLists = std::size_t{1} << 18;  // whose bounds a thread holds at once
constexpr std::size_t kParallelFloats = std::size_t{1} << 18;  // whose checksums repay threads

std::uint64_t checksum_of(const float* x, std::size_t d) {
  return checksum(reinterpret_cast<const std::uint8_t*>(x), d * sizeof(float));
}

bool needs_rotations(const IndexIVFTurboQuant& index) {
  return index.by_residual && index.metric_type == faiss::METRIC_L2;
}

}  // namespace

const float* flat_centroids(const IndexIVFTurboQuant& index) {
  if (index.quantizer == nullptr) return nullptr;
  const faiss::Index& coarse = *index.quantizer;
  if (typeid(coarse) != typeid(faiss::IndexFlat) && typeid(coarse) != typeid(faiss::IndexFlatL2) &&
      typeid(coarse) != typeid(faiss::IndexFlatIP)) {
    return nullptr;
  }
  if (coarse.metric_type != index.metric_type || coarse.d != index.d ||
      coarse.ntotal != static_cast<std::int64_t>(index.nlist)) {
    return nullptr;
  }
  const auto& flat = static_cast<const faiss::IndexFlat&>(coarse);
  // FAISS's reader trusts the sizes in a file, in some versions.
  const std::size_t bytes = index.nlist * static_cast<std::size_t>(index.d) * sizeof(float);
  return flat.codes.size() < bytes ? nullptr : flat.get_xb();
}

CentroidTable::CentroidTable(const IndexIVFTurboQuant& index)
    : codec_(index.codec()),
      quantizer_(index.quantizer),
      nlist_(index.nlist),
      rotates_(needs_rotations(index)),
      checksums_(nlist_) {
  const std::size_t d = codec_.dimension();
  const float* flat = nlist_ <= kMostLists ? flat_centroids(index) : nullptr;
  if (flat != nullptr) {
    nearest_ =
        std::make_unique<NearestPoints>(codec_.impl(), to_metric(index.metric_type), flat, nlist_);
  }
  if (rotates_) rotations_.assign(nlist_, UnitRotation(codec_.impl()));
  std::vector<float> centroid(d);
  for (std::size_t list = 0; list < nlist_; ++list) {
    const float* x = flat != nullptr ? flat + list * d : centroid.data();
    if (flat == nullptr) {
      index.quantizer->reconstruct(static_cast<std::int64_t>(list), centroid.data());
    }
    checksums_[list] = checksum_of(x, d);
    if (rotates_) rotations_[list].set(codec_.impl(), x);
  }
}

bool CentroidTable::fits(const IndexIVFTurboQuant& index) const {
  const bool flat = index.nlist <= kMostLists && flat_centroids(index) != nullptr;
  return !stale_ && quantizer_ == index.quantizer && nlist_ == index.nlist &&
         rotates_ == needs_rotations(index) && flat == (nearest_ != nullptr);
}

bool CentroidTable::same(std::size_t list, const float* centroid) const {
  return checksums_[list] == checksum_of(centroid, codec_.dimension());
}

const UnitRotation* CentroidTable::rotation(std::int64_t list, const float* centroid) const {
  const auto number = static_cast<std::size_t>(list);
  if (!rotates_ || number >= nlist_) return nullptr;
  if (same(number, centroid)) return &rotations_[number];
  stale_ = true;
  return nullptr;
}

const NearestPoints* CentroidTable::nearest(const float* centroids) const {
  if (nearest_ == nullptr) return nullptr;
  const std::size_t d = codec_.dimension();
  bool all = true;
#pragma omp parallel for schedule(static) reduction(&& : all) if (nlist_ * d > kParallelFloats)
  for (std::size_t list = 0; list < nlist_; ++list) {
    all = all && same(list, centroids + list * d);
  }
  if (all) return nearest_.get();
  stale_ = true;
  return nullptr;
}

std::size_t CentroidTable::bytes() const {
  std::size_t total = checksums_.size() * sizeof(checksums_[0]);
  total += rotations_.size() * (sizeof(UnitRotation) + codec_.impl().padded * sizeof(float));
  return total + (nearest_ != nullptr ? nearest_->bytes() : 0);
}

struct IndexCentroids::State {
  std::mutex mutex;
  std::shared_ptr<const CentroidTable> table;
};

IndexCentroids::IndexCentroids() : state_(std::make_unique<State>()) {}
IndexCentroids::~IndexCentroids() = default;
IndexCentroids::IndexCentroids(const IndexCentroids& /*other*/) : IndexCentroids() {}
IndexCentroids& IndexCentroids::operator=(const IndexCentroids& other) {
  if (this != &other) drop();
  return *this;
}

std::shared_ptr<const CentroidTable> IndexCentroids::get(const IndexIVFTurboQuant& index) const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->table == nullptr || !state_->table->fits(index)) {
    state_->table.reset();
    state_->table = std::make_shared<const CentroidTable>(index);
  }
  return state_->table;
}

void IndexCentroids::drop() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->table.reset();
}

std::size_t IndexCentroids::bytes() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->table == nullptr ? 0 : state_->table->bytes();
}

}  // namespace turboquant
