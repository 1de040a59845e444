// Bytes that are coded by how often each occurs: zstd frames (RFC 8878), of which Huffman's code of
// the literals does the work. The only place that knows zstd.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace turboquant::packing {

/// No stream holds more than so many times its own bytes, so that what a reader allocates is
/// justified by what it was given.
inline constexpr std::size_t kMostExpansion = 16;

/// False when the library was built without zstd: then streams are stored as they are, and reading
/// one that is coded fails.
bool can_code();

/// Appends to `out` a stream: its size (uint32), then that many bytes, which are bytes[n] as they
/// are when the size is n, and else a zstd frame. n < 2^31.
void append_stream(const std::uint8_t* bytes, std::size_t n, std::vector<std::uint8_t>& out);

/// Takes the next stream, which must hold n bytes, from *at, `*left` bytes; moves both.
/// False when there is none or it is damaged; `to` is then unspecified.
bool take_stream(const std::uint8_t** at, std::size_t* left, std::uint8_t* to, std::size_t n);

}  // namespace turboquant::packing
