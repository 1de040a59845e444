// IDSelector of the Python module: owns what FAISS's selectors only point to.
#pragma once

#include <faiss/impl/IDSelector.h>
#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace turboquant::python {

namespace nb = nanobind;

class Selector {
 public:
  /// object: integers (ids), or booleans (element i says whether id i is selected).
  explicit Selector(nb::handle object);

  /// bits: uint8 [ceil(n / 8)]; bit i % 8 of byte i / 8 says whether id i is selected.
  static std::unique_ptr<Selector> from_bitmap(nb::handle bits);

  /// None gives null; a Selector is borrowed, anything else becomes one that `made` then owns.
  static const Selector* from(nb::handle object, std::unique_ptr<Selector>& made);

  const faiss::IDSelector& get() const { return *selector_; }
  bool contains(std::int64_t id) const { return selector_->is_member(id); }

 private:
  Selector() = default;
  void use_bitmap();

  std::vector<std::uint8_t> bitmap_;
  std::unique_ptr<faiss::IDSelector> selector_;
};

void bind_selector(nb::module_& m);

}  // namespace turboquant::python
