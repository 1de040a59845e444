#include "tools/io/text_lines.h"

#include <algorithm>
#include <cstring>

namespace turboquant::io {

TextLines::TextLines(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {
  constexpr std::size_t kChunk = 1U << 20;
  std::vector<char> chunk(kChunk);
  const std::uint64_t size = source_->size();
  if (size > 0) starts_.push_back(0);
  for (std::uint64_t offset = 0; offset < size; offset += kChunk) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(kChunk, size - offset));
    source_->read_at(offset, n, chunk.data(), "text");
    const char* const end = chunk.data() + n;
    for (const char* at = chunk.data();
         (at = static_cast<const char*>(std::memchr(at, '\n', static_cast<std::size_t>(end - at))));
         ++at) {
      starts_.push_back(offset + static_cast<std::uint64_t>(at - chunk.data()) + 1);
    }
  }
  if (starts_.empty() || starts_.back() != size) starts_.push_back(size);
}

std::string TextLines::line(std::size_t i) const {
  std::string text(starts_.at(i + 1) - starts_.at(i), '\0');
  source_->read_at(starts_[i], text.size(), text.data(), "line " + std::to_string(i));
  if (!text.empty() && text.back() == '\n') text.pop_back();
  if (!text.empty() && text.back() == '\r') text.pop_back();
  return text;
}

}  // namespace turboquant::io
