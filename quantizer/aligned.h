// std::vector whose data start at a cache line, as the kernels ask for.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace turboquant {

template <typename T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <typename U>
  AlignedAllocator(const AlignedAllocator<U>& /*other*/) {}
  T* allocate(std::size_t n) {
    return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64}));
  }
  void deallocate(T* p, std::size_t /*n*/) { ::operator delete (p, std::align_val_t{64}); }
  bool operator==(const AlignedAllocator& /*other*/) const { return true; }
  bool operator!=(const AlignedAllocator& /*other*/) const { return false; }
};

template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace turboquant
