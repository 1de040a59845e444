// std::vector whose data start at a cache line, as the kernels ask for, and lie in huge pages where
// they are large and the system has such pages to give.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace turboquant {

template <typename T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <typename U>
  AlignedAllocator(const AlignedAllocator<U>& /*other*/) {}
  T* allocate(std::size_t n) {
    const std::size_t bytes = n * sizeof(T);
    void* p = ::operator new(bytes, alignment(n));
#ifdef __linux__
    if (bytes >= kHugePage) madvise(p, bytes, MADV_HUGEPAGE);  // a hint: it may fail
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t n) { ::operator delete(p, alignment(n)); }
  bool operator==(const AlignedAllocator& /*other*/) const { return true; }
  bool operator!=(const AlignedAllocator& /*other*/) const { return false; }

 private:
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  static std::align_val_t alignment(std::size_t n) {
    return std::align_val_t{n * sizeof(T) >= kHugePage ? kHugePage : 64};
  }
};

template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace turboquant
