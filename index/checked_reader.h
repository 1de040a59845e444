// Reading untrusted bytes: every failure is a FaissException that says what is missing, and memory
// grows only as bytes arrive.
#pragma once

#include <faiss/impl/io.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "index/checks.h"

namespace turboquant {

/// A FAISS reader over bytes that belong to someone else.
class MemoryReader : public faiss::IOReader {
 public:
  MemoryReader(const std::uint8_t* data, std::size_t size);
  std::size_t operator()(void* ptr, std::size_t size, std::size_t nitems) override;
  std::size_t remaining() const { return size_; }
  const std::uint8_t* position() const { return data_; }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

/// The next bytes of a stream, at most n, without moving it. Nothing when it cannot seek.
std::vector<std::uint8_t> peek(faiss::IOReader* reader, std::size_t n);

/// Bytes left in a stream that knows: a regular file or memory.
std::optional<std::uint64_t> remaining_bytes(faiss::IOReader* reader);

class CheckedReader {
 public:
  explicit CheckedReader(faiss::IOReader* reader) : reader_(reader) {}

  faiss::IOReader* stream() const { return reader_; }

  /// Throws "<file> ends inside <what>".
  void read(void* to, std::size_t size, const char* what);

  template <class T>
  T value(const char* what) {
    static_assert(std::is_trivially_copyable_v<T>);
    T result;
    read(&result, sizeof(T), what);
    return result;
  }

  /// Fills `to` with `count` elements. When the stream knows its size, a count beyond it is refused
  /// before any memory is taken; otherwise the vector grows in steps.
  template <class Vector>
  void read_vector(Vector& to, std::uint64_t count, const char* what) {
    using T = std::remove_reference_t<decltype(*to.data())>;
    const std::optional<std::uint64_t> left = remaining_bytes(reader_);
    if (left.has_value() && count > *left / sizeof(T)) fail_short(what);
    constexpr std::uint64_t kUnknownStep = (std::uint64_t{16} << 20) / sizeof(T);
    const std::uint64_t step = left.has_value() ? count : kUnknownStep;
    to.resize(0);
    for (std::uint64_t done = 0; done < count;) {
      const std::uint64_t next = std::min(step, count - done);
      to.resize(static_cast<std::size_t>(done + next));
      read(to.data() + done, static_cast<std::size_t>(next) * sizeof(T), what);
      done += next;
    }
  }

  [[noreturn]] void fail_here(const std::string& message) const;

 private:
  [[noreturn]] void fail_short(const char* what) const;

  faiss::IOReader* reader_;
};

}  // namespace turboquant
