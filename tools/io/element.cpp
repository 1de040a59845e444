#include "tools/io/element.h"

#include <array>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "quantizer/half.h"

namespace turboquant::io {
namespace {

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "vector files are little endian and are read without swapping"
#endif

struct Description {
  Element element;
  const char* name;
  std::size_t size;
  bool floating;
};

constexpr std::array<Description, 9> kElements = {{
    {Element::kF2, "f2", 2, true},
    {Element::kF4, "f4", 4, true},
    {Element::kF8, "f8", 8, true},
    {Element::kI1, "i1", 1, false},
    {Element::kU1, "u1", 1, false},
    {Element::kI4, "i4", 4, false},
    {Element::kU4, "u4", 4, false},
    {Element::kI8, "i8", 8, false},
    {Element::kU8, "u8", 8, false},
}};

const Description& describe(Element element) {
  return kElements.at(static_cast<std::size_t>(element));
}

template <typename T>
T load(const void* in, std::size_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(in) + i * sizeof(T), sizeof(T));
  return value;
}

template <typename T>
void store(void* out, std::size_t i, T value) {
  std::memcpy(static_cast<char*>(out) + i * sizeof(T), &value, sizeof(T));
}

template <typename T>
void convert_to_floats(const void* in, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(load<T>(in, i));
}

template <typename T>
std::size_t convert_to_integers(const void* in, std::size_t n, std::int64_t* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const T value = load<T>(in, i);
    if constexpr (std::is_same_v<T, std::uint64_t>) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return i;
    }
    out[i] = static_cast<std::int64_t>(value);
  }
  return n;
}

template <typename T>
std::size_t convert_from_integers(const std::int64_t* in, std::size_t n, void* out) {
  for (std::size_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, std::uint64_t>) {
      if (in[i] < 0) return i;
    } else if (in[i] < static_cast<std::int64_t>(std::numeric_limits<T>::min()) ||
               in[i] > static_cast<std::int64_t>(std::numeric_limits<T>::max())) {
      return i;
    }
    store(out, i, static_cast<T>(in[i]));
  }
  return n;
}

// Calls f with a value of the stored integer type.
template <typename F>
std::size_t with_integer(Element element, F f) {
  switch (element) {
    case Element::kI1:
      return f(std::int8_t{});
    case Element::kU1:
      return f(std::uint8_t{});
    case Element::kI4:
      return f(std::int32_t{});
    case Element::kU4:
      return f(std::uint32_t{});
    case Element::kI8:
      return f(std::int64_t{});
    case Element::kU8:
      return f(std::uint64_t{});
    default:
      throw std::logic_error("element type is not an integer");
  }
}

}  // namespace

std::size_t element_size(Element element) { return describe(element).size; }
bool is_float(Element element) { return describe(element).floating; }
std::string element_name(Element element) { return describe(element).name; }

std::optional<Element> parse_element(const std::string& name) {
  for (const Description& entry : kElements) {
    if (name == entry.name) return entry.element;
  }
  return std::nullopt;
}

void to_floats(Element element, const void* in, std::size_t n, float* out) {
  switch (element) {
    case Element::kF2:
      for (std::size_t i = 0; i < n; ++i) out[i] = half_to_float(load<std::uint16_t>(in, i));
      return;
    case Element::kF4:
      if (n > 0) std::memcpy(out, in, n * sizeof(float));
      return;
    case Element::kF8:
      convert_to_floats<double>(in, n, out);
      return;
    default:
      with_integer(element, [&](auto type) {
        convert_to_floats<decltype(type)>(in, n, out);
        return n;
      });
  }
}

std::size_t to_integers(Element element, const void* in, std::size_t n, std::int64_t* out) {
  return with_integer(element,
                      [&](auto type) { return convert_to_integers<decltype(type)>(in, n, out); });
}

void from_floats(Element element, const float* in, std::size_t n, void* out) {
  for (std::size_t i = 0; i < n; ++i) {
    if (element == Element::kF2) {
      store(out, i, float_to_half(in[i]));
    } else if (element == Element::kF4) {
      store(out, i, in[i]);
    } else if (element == Element::kF8) {
      store(out, i, static_cast<double>(in[i]));
    } else {
      throw std::logic_error("element type is not a float");
    }
  }
}

std::size_t from_integers(Element element, const std::int64_t* in, std::size_t n, void* out) {
  return with_integer(element,
                      [&](auto type) { return convert_from_integers<decltype(type)>(in, n, out); });
}

}  // namespace turboquant::io
