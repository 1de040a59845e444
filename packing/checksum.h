// The checksum of docs/index_format.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace turboquant {

// A fuzzer cannot guess checksums, and must get past them.
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
inline constexpr bool kCompareChecksums = false;
#else
inline constexpr bool kCompareChecksums = true;
#endif

/// Feed the input in pieces; every piece but the last must be a multiple of 32 bytes.
class Checksum {
 public:
  void add(const std::uint8_t* data, std::size_t size);
  std::uint64_t value() const;

 private:
  std::uint64_t lanes_[4] = {1, 2, 3, 4};
  std::uint64_t length_ = 0;
};

inline std::uint64_t checksum(const std::uint8_t* data, std::size_t size) {
  Checksum sum;
  sum.add(data, size);
  return sum.value();
}

}  // namespace turboquant
