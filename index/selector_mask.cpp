#include "index/selector_mask.h"

#include <algorithm>
#include <functional>

#include "turboquant/faiss_compat.h"

namespace turboquant {
namespace {

using Words = std::vector<std::uint64_t>;

class MaskBuilder {
 public:
  explicit MaskBuilder(std::size_t n) : n_(n) {}

  Words build(const faiss::IDSelector& selector) const {
    if (const auto* s = dynamic_cast<const faiss::IDSelectorRange*>(&selector)) return range(*s);
    if (const auto* s = dynamic_cast<const faiss::IDSelectorBitmap*>(&selector)) return bitmap(*s);
    if (const auto* s = dynamic_cast<const faiss::IDSelectorArray*>(&selector)) {
      return listed(s->ids, s->ids + s->n);
    }
    if (const auto* s = dynamic_cast<const faiss::IDSelectorBatch*>(&selector)) {
      return listed(s->set.begin(), s->set.end());
    }
    if (dynamic_cast<const faiss::IDSelectorAll*>(&selector) != nullptr) return all();
    if (const auto* s = dynamic_cast<const faiss::IDSelectorNot*>(&selector)) {
      return combine(all(), build(*s->sel), std::bit_xor<>());
    }
#ifdef TURBOQUANT_FAISS_HAS_SELECTOR_LOGIC
    if (const auto* s = dynamic_cast<const faiss::IDSelectorAnd*>(&selector)) {
      return combine(build(*s->lhs), build(*s->rhs), std::bit_and<>());
    }
    if (const auto* s = dynamic_cast<const faiss::IDSelectorOr*>(&selector)) {
      return combine(build(*s->lhs), build(*s->rhs), std::bit_or<>());
    }
    if (const auto* s = dynamic_cast<const faiss::IDSelectorXOr*>(&selector)) {
      return combine(build(*s->lhs), build(*s->rhs), std::bit_xor<>());
    }
#endif
    return asked(selector);
  }

 private:
  Words none() const { return Words((n_ + 63) / 64, 0); }

  static void set(Words& words, std::size_t row) {
    words[row / 64] |= std::uint64_t{1} << (row % 64);
  }

  Words all() const { return rows(0, n_); }

  // Rows in [begin, end).
  Words rows(std::size_t begin, std::size_t end) const {
    Words words = none();
    while (begin < end && begin % 64 != 0) set(words, begin++);
    for (; begin + 64 <= end; begin += 64) words[begin / 64] = ~std::uint64_t{0};
    while (begin < end) set(words, begin++);
    return words;
  }

  Words range(const faiss::IDSelectorRange& selector) const {
    const auto clamp = [this](std::int64_t id) {
      return static_cast<std::size_t>(
          std::clamp<std::int64_t>(id, 0, static_cast<std::int64_t>(n_)));
    };
    return rows(clamp(selector.imin), clamp(selector.imax));
  }

  Words bitmap(const faiss::IDSelectorBitmap& selector) const {
    Words words = none();
    const std::size_t bytes = std::min(selector.n, (n_ + 7) / 8);
    for (std::size_t i = 0; i < bytes; ++i) {
      words[i / 8] |= static_cast<std::uint64_t>(selector.bitmap[i]) << (8 * (i % 8));
    }
    if (n_ % 64 != 0) words.back() &= (std::uint64_t{1} << (n_ % 64)) - 1;
    return words;
  }

  template <class Iterator>
  Words listed(Iterator first, Iterator last) const {
    Words words = none();
    for (; first != last; ++first) {
      if (*first >= 0 && static_cast<std::uint64_t>(*first) < n_) {
        set(words, static_cast<std::size_t>(*first));
      }
    }
    return words;
  }

  template <class Operation>
  static Words combine(Words a, const Words& b, Operation operation) {
    std::transform(a.begin(), a.end(), b.begin(), a.begin(), operation);
    return a;
  }

  // A user's own class. In one thread: it need not be safe for several.
  Words asked(const faiss::IDSelector& selector) const {
    Words words = none();
    for (std::size_t row = 0; row < n_; ++row) {
      if (selector.is_member(static_cast<std::int64_t>(row))) set(words, row);
    }
    return words;
  }

  std::size_t n_;
};

}  // namespace

std::vector<std::uint64_t> selector_mask(const faiss::IDSelector& selector, std::size_t n) {
  return MaskBuilder(n).build(selector);
}

}  // namespace turboquant
