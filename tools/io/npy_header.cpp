#include "tools/io/npy_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "tools/io/errors.h"

namespace turboquant::io {
namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr std::size_t kMagicBytes = 6;
// NumPy's own headers stay far below; a longer one is not an array that we can use.
constexpr std::uint64_t kMaxDictionary = 1U << 16;

// The header is a Python dictionary of strings, booleans and tuples of integers. Values are kept
// as their source text; a trailing comma is allowed wherever Python allows it.
class DictionaryParser {
 public:
  DictionaryParser(const std::string& text, const std::string& file) : text_(text), file_(file) {}

  std::map<std::string, std::string> parse() {
    std::map<std::string, std::string> entries;
    expect('{');
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      if (!entries.emplace(key, value()).second) fail("names '" + key + "' twice");
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_blanks();
    if (position_ != text_.size()) fail("has text behind its dictionary");
    return entries;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw DataError(file_ + ": its header " + reason);
  }

  void skip_blanks() {
    while (position_ < text_.size() &&
           (text_[position_] == ' ' || text_[position_] == '\n' || text_[position_] == '\t')) {
      ++position_;
    }
  }

  bool accept(char c) {
    skip_blanks();
    if (position_ == text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) fail(std::string("lacks '") + c + "'");
  }

  std::string quoted() {
    skip_blanks();
    const char quote = position_ < text_.size() ? text_[position_] : '\0';
    if (quote != '\'' && quote != '"') fail("has no quoted string where one is needed");
    const std::size_t end = text_.find(quote, position_ + 1);
    if (end == std::string::npos) fail("has an unfinished string");
    std::string result = text_.substr(position_ + 1, end - position_ - 1);
    position_ = end + 1;
    return result;
  }

  std::string value() {
    skip_blanks();
    const char c = position_ < text_.size() ? text_[position_] : '\0';
    if (c == '\'' || c == '"') return quoted();
    if (c == '[') fail("describes records, not an array of numbers");
    const std::size_t end =
        c == '(' ? text_.find(')', position_) : text_.find_first_of(",}", position_);
    if (end == std::string::npos) fail("has an unfinished value");
    const std::size_t stop = c == '(' ? end + 1 : end;
    std::string result = text_.substr(position_, stop - position_);
    result.erase(std::remove(result.begin(), result.end(), ' '), result.end());
    position_ = stop;
    return result;
  }

  const std::string& text_;
  const std::string& file_;
  std::size_t position_ = 0;
};

Element parse_descr(const std::string& file, const std::string& descr) {
  if (descr.size() > 1) {
    const auto element = parse_element(descr.substr(1));
    if (element && descr[0] == '>' && element_size(*element) > 1) {
      throw DataError(file + ": holds big-endian numbers ('" + descr +
                      "'); save it as little endian, e.g. a.astype('<" + descr.substr(1) + "')");
    }
    if (element && (descr[0] == '<' || (descr[0] == '|' && element_size(*element) == 1))) {
      return *element;
    }
  }
  throw DataError(file + ": holds elements of type '" + descr +
                  "'; known are f2, f4, f8, i1, u1, i4, u4, i8 and u8");
}

// "(3,)" or "(3,4)"; "3L" was written by Python 2.
std::vector<std::uint64_t> parse_shape(const std::string& file, const std::string& text) {
  const auto bad = [&] { return DataError(file + ": its header has the shape '" + text + "'"); };
  if (text.size() < 2 || text.front() != '(' || text.back() != ')') throw bad();
  std::vector<std::uint64_t> axes;
  for (std::size_t i = 1; i + 1 < text.size();) {
    std::uint64_t axis = 0;
    const std::size_t start = i;
    for (; text[i] >= '0' && text[i] <= '9'; ++i) {
      if (__builtin_mul_overflow(axis, 10U, &axis) ||
          __builtin_add_overflow(axis, static_cast<unsigned>(text[i] - '0'), &axis)) {
        throw DataError(file + ": its header has an axis longer than 64 bits can count");
      }
    }
    if (i == start) throw bad();
    if (text[i] == 'L') ++i;
    axes.push_back(axis);
    if (text[i] == ',') {
      ++i;
    } else if (text[i] != ')' || i + 1 != text.size()) {
      throw bad();
    }
  }
  return axes;
}

const std::string& field(const std::string& file, const std::map<std::string, std::string>& entries,
                         const std::string& key) {
  const auto found = entries.find(key);
  if (found == entries.end()) throw DataError(file + ": its header lacks '" + key + "'");
  return found->second;
}

}  // namespace

NpyHeader read_npy_header(const ByteSource& source) {
  const std::string& file = source.name();
  std::array<std::uint8_t, 8> start{};
  source.read_at(0, start.size(), start.data(), "the start of a .npy file");
  if (std::memcmp(start.data(), kMagic, kMagicBytes) != 0) {
    throw DataError(file + ": not a .npy file (it does not start with \\x93NUMPY)");
  }
  const int version = start[6];
  if (version < 1 || version > 3) {
    throw DataError(file + ": .npy version " + std::to_string(version) + " is not 1, 2 or 3");
  }
  const std::size_t length_bytes = version == 1 ? 2 : 4;
  std::uint32_t length = 0;
  source.read_at(start.size(), length_bytes, &length, "the length of the header");
  if (length > kMaxDictionary) {
    throw DataError(file + ": a header of " + std::to_string(length) + " bytes is too long");
  }
  std::string text(length, '\0');
  source.read_at(start.size() + length_bytes, length, text.data(), "the header");

  const auto entries = DictionaryParser(text, file).parse();
  NpyHeader header;
  header.header_bytes = start.size() + length_bytes + length;
  header.element = parse_descr(file, field(file, entries, "descr"));
  const std::string& order = field(file, entries, "fortran_order");
  const auto axes = parse_shape(file, field(file, entries, "shape"));
  if (axes.empty() || axes.size() > 2) {
    throw DataError(file + ": an array of " + std::to_string(axes.size()) +
                    " axes; vectors need one or two");
  }
  if (order != "False" && order != "True") {
    throw DataError(file + ": its header has fortran_order '" + order + "'");
  }
  if (order == "True" && axes.size() == 2) {
    throw DataError(file + ": stored in Fortran order (column after column); save it in C order, " +
                    "e.g. numpy.ascontiguousarray(a)");
  }
  header.rows = axes[0];
  header.dimension = axes.size() == 2 ? axes[1] : 1;
  return header;
}

std::string make_npy_header(Element element, std::uint64_t rows, std::uint64_t dimension) {
  constexpr std::size_t kPrefix = kMagicBytes + 4;
  std::string dictionary = std::string("{'descr': '") + (element_size(element) == 1 ? "|" : "<") +
                           element_name(element) + "', 'fortran_order': False, 'shape': (" +
                           std::to_string(rows) + ", " + std::to_string(dimension) + "), }";
  dictionary.append(63 - (kPrefix + dictionary.size()) % 64, ' ');
  dictionary.push_back('\n');
  std::string header(kMagic, kMagicBytes);
  header.push_back('\x01');
  header.push_back('\0');
  header.push_back(static_cast<char>(dictionary.size() & 0xffU));
  header.push_back(static_cast<char>(dictionary.size() >> 8));
  return header + dictionary;
}

}  // namespace turboquant::io
