#include "index/checked_reader.h"

#include <sys/stat.h>

#include <cstdio>
#include <cstring>

namespace turboquant {
namespace {

// Regular files alone: a pipe can neither seek nor tell its size.
std::FILE* regular_file(faiss::IOReader* reader, std::uint64_t* size, std::uint64_t* position) {
  auto* file = dynamic_cast<faiss::FileIOReader*>(reader);
  struct stat status {};
  if (file == nullptr || ::fstat(::fileno(file->f), &status) != 0 || !S_ISREG(status.st_mode)) {
    return nullptr;
  }
  const auto at = ::ftello(file->f);
  if (at < 0 || at > status.st_size) return nullptr;
  *size = static_cast<std::uint64_t>(status.st_size);
  *position = static_cast<std::uint64_t>(at);
  return file->f;
}

std::vector<std::uint8_t> first_bytes(const std::uint8_t* data, std::size_t size, std::size_t n) {
  return std::vector<std::uint8_t>(data, data + std::min(size, n));
}

}  // namespace

MemoryReader::MemoryReader(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {
  name = "the index in memory";
}

std::size_t MemoryReader::operator()(void* ptr, std::size_t size, std::size_t nitems) {
  if (size == 0) return nitems;
  const std::size_t items = std::min(nitems, size_ / size);
  if (items > 0) std::memcpy(ptr, data_, items * size);
  data_ += items * size;
  size_ -= items * size;
  return items;
}

std::vector<std::uint8_t> peek(faiss::IOReader* reader, std::size_t n) {
  if (const auto* memory = dynamic_cast<const MemoryReader*>(reader)) {
    return first_bytes(memory->position(), memory->remaining(), n);
  }
  if (const auto* memory = dynamic_cast<const faiss::VectorIOReader*>(reader)) {
    const std::size_t at = std::min(memory->rp, memory->data.size());
    return first_bytes(memory->data.data() + at, memory->data.size() - at, n);
  }
  std::uint64_t size = 0;
  std::uint64_t position = 0;
  std::FILE* file = regular_file(reader, &size, &position);
  if (file == nullptr) return {};
  std::vector<std::uint8_t> bytes(
      static_cast<std::size_t>(std::min<std::uint64_t>(n, size - position)));
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
  if (::fseeko(file, static_cast<off_t>(position), SEEK_SET) != 0) {
    fail("cannot seek in " + reader->name);
  }
  return bytes;
}

std::optional<std::uint64_t> remaining_bytes(faiss::IOReader* reader) {
  if (const auto* memory = dynamic_cast<const MemoryReader*>(reader)) return memory->remaining();
  if (const auto* memory = dynamic_cast<const faiss::VectorIOReader*>(reader)) {
    return memory->data.size() - std::min(memory->rp, memory->data.size());
  }
  std::uint64_t size = 0;
  std::uint64_t position = 0;
  if (regular_file(reader, &size, &position) == nullptr) return std::nullopt;
  return size - position;
}

void CheckedReader::read(void* to, std::size_t size, const char* what) {
  auto* bytes = static_cast<std::uint8_t*>(to);
  while (size > 0) {
    const std::size_t got = (*reader_)(bytes, 1, size);
    if (got == 0 || got > size) fail_short(what);
    bytes += got;
    size -= got;
  }
}

void CheckedReader::fail_here(const std::string& message) const {
  const std::string& name = reader_->name;
  fail((name.empty() ? std::string("index file") : name) + ": " + message);
}

void CheckedReader::fail_short(const char* what) const {
  fail_here(std::string("the data ends inside the ") + what);
}

}  // namespace turboquant
