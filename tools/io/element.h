// The element types of vector files and their conversion to what we compute with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace turboquant::io {

/// Little endian, as stored.
enum class Element : std::uint8_t { kF2, kF4, kF8, kI1, kU1, kI4, kU4, kI8, kU8 };

/// Bytes of one element.
std::size_t element_size(Element element);
bool is_float(Element element);
/// "f4" and so on: the names that numpy uses, without the byte order.
std::string element_name(Element element);
std::optional<Element> parse_element(const std::string& name);

/// out[n] from n stored elements at in (any alignment). Integers above 2^24 and f8 are rounded.
void to_floats(Element element, const void* in, std::size_t n, float* out);

/// out[n] from n stored integers. Returns the position of the first that int64 cannot hold, or n.
/// The element must not be a float type.
std::size_t to_integers(Element element, const void* in, std::size_t n, std::int64_t* out);

/// n stored elements at out from in[n]; the element must be a float type.
void from_floats(Element element, const float* in, std::size_t n, void* out);

/// n stored integers at out from in[n]; returns the position of the first that does not fit, or n.
std::size_t from_integers(Element element, const std::int64_t* in, std::size_t n, void* out);

}  // namespace turboquant::io
