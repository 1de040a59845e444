#include "packing/streams.h"

#include <cstring>
#include <memory>
#include <stdexcept>

#ifdef TQ_HAVE_ZSTD
#include <zstd.h>
#endif

namespace turboquant::packing {
namespace {

// Coded bytes are appended to `out` if they are worth it.
bool append_coded(const std::uint8_t* bytes, std::size_t n, std::vector<std::uint8_t>& out);

bool decode(const std::uint8_t* from, std::size_t size, std::uint8_t* to, std::size_t n);

#ifdef TQ_HAVE_ZSTD

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

// Codes do not repeat: the cheapest search for matches, long ones alone.
ZSTD_CCtx* compressor() {
  thread_local const std::unique_ptr<ZSTD_CCtx, FreeContext> context = [] {
    std::unique_ptr<ZSTD_CCtx, FreeContext> made(ZSTD_createCCtx());
    if (made == nullptr) throw std::bad_alloc();
    ZSTD_CCtx_setParameter(made.get(), ZSTD_c_compressionLevel, 1);
    ZSTD_CCtx_setParameter(made.get(), ZSTD_c_strategy, ZSTD_fast);
    ZSTD_CCtx_setParameter(made.get(), ZSTD_c_minMatch, 7);
    return made;
  }();
  return context.get();
}

bool append_coded(const std::uint8_t* bytes, std::size_t n, std::vector<std::uint8_t>& out) {
  const std::size_t start = out.size();
  out.resize(start + ZSTD_compressBound(n));
  const std::size_t size =
      ZSTD_compress2(compressor(), out.data() + start, out.size() - start, bytes, n);
  const bool good =
      ZSTD_isError(size) == 0 && size < n && size >= (n + kMostExpansion - 1) / kMostExpansion;
  out.resize(good ? start + size : start);
  return good;
}

bool decode(const std::uint8_t* from, std::size_t size, std::uint8_t* to, std::size_t n) {
  thread_local const std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  return context != nullptr && ZSTD_decompressDCtx(context.get(), to, n, from, size) == n;
}

#else

bool append_coded(const std::uint8_t*, std::size_t, std::vector<std::uint8_t>&) { return false; }
bool decode(const std::uint8_t*, std::size_t, std::uint8_t*, std::size_t) { return false; }

#endif

}  // namespace

bool can_code() {
#ifdef TQ_HAVE_ZSTD
  return true;
#else
  return false;
#endif
}

void append_stream(const std::uint8_t* bytes, std::size_t n, std::vector<std::uint8_t>& out) {
  const std::size_t start = out.size();
  out.resize(start + sizeof(std::uint32_t));
  if (!append_coded(bytes, n, out)) out.insert(out.end(), bytes, bytes + n);
  const auto size = static_cast<std::uint32_t>(out.size() - start - sizeof(std::uint32_t));
  std::memcpy(out.data() + start, &size, sizeof size);
}

bool take_stream(const std::uint8_t** at, std::size_t* left, std::uint8_t* to, std::size_t n) {
  std::uint32_t size = 0;
  if (*left < sizeof size) return false;
  std::memcpy(&size, *at, sizeof size);
  *at += sizeof size;
  *left -= sizeof size;
  if (size > *left || size > n || size < (n + kMostExpansion - 1) / kMostExpansion) return false;
  if (size == n) {
    if (n > 0) std::memcpy(to, *at, n);
  } else if (!decode(*at, size, to, n)) {
    return false;
  }
  *at += size;
  *left -= size;
  return true;
}

}  // namespace turboquant::packing
