// The sign bits of an index's codes, laid out for a first pass of searches; made when a search
// first asks for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "turboquant/quantizer.h"

namespace turboquant {

class SignPlane;

/// Copies start empty. get and bytes may be called from several threads at once; drop and
/// assignment need the object to themselves, as whatever changes the codes does.
class IndexSigns {
 public:
  IndexSigns();
  ~IndexSigns();
  IndexSigns(const IndexSigns& other);
  IndexSigns& operator=(const IndexSigns& other);

  /// The signs of codes[n][code_size]. Rows that it has seen before are not looked at again.
  const SignPlane& get(const Quantizer& codec, const std::uint8_t* codes, std::size_t n) const;

  /// Forgets everything.
  void drop();

  std::size_t bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace turboquant
