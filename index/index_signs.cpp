#include "turboquant/index_signs.h"

#include <mutex>

#include "quantizer/sign_plane.h"

namespace turboquant {

struct IndexSigns::State {
  std::mutex mutex;
  std::unique_ptr<SignPlane> plane;
};

IndexSigns::IndexSigns() : state_(std::make_unique<State>()) {}
IndexSigns::~IndexSigns() = default;
IndexSigns::IndexSigns(const IndexSigns& /*other*/) : IndexSigns() {}
IndexSigns& IndexSigns::operator=(const IndexSigns& other) {
  if (this != &other) drop();
  return *this;
}

const SignPlane& IndexSigns::get(const Quantizer& codec, const std::uint8_t* codes,
                                 std::size_t n) const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  // Nobody else uses a plane that lacks rows: all searches since the last change of the index come
  // through here first.
  if (state_->plane != nullptr && state_->plane->rows() > n) state_->plane.reset();
  if (state_->plane == nullptr)
    state_->plane = std::make_unique<SignPlane>(
        codec, codec.options().with_norm ? Metric::kL2 : Metric::kInnerProduct);
  state_->plane->extend(codes, n);
  return *state_->plane;
}

void IndexSigns::drop() { state_->plane.reset(); }

std::size_t IndexSigns::bytes() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->plane == nullptr ? 0 : state_->plane->bytes();
}

}  // namespace turboquant
