#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(TQ_HAVE_NEON)
#include <sys/auxv.h>
#endif

#include "kernels/backends.h"

namespace turboquant::kernels {
namespace {

#if defined(TQ_HAVE_AVX2)
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
bool has_vbmi() {
  return has_avx512() && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2");
}
#endif

#if defined(TQ_HAVE_NEON)
bool has_dot_product() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#endif

struct Backends {
  static constexpr int kMost = 6;
  const KernelTable* tables[kMost + 1] = {};
  const char* names[kMost + 1] = {};
  int count = 0;

  void add(const KernelTable& table) {
    tables[count] = &table;
    names[count++] = table.name;
  }

  Backends() {
#if defined(TQ_HAVE_AVX2)
    if (has_vbmi() && amx::enable()) add(amx::kTable);
    if (has_vbmi()) add(avx512vbmi::kTable);
    if (has_avx512()) add(avx512::kTable);
    if (has_avx2()) add(avx2::kTable);
#endif
#if defined(TQ_HAVE_NEON)
    if (has_dot_product()) add(neon::kTable);
#endif
    add(scalar::kTable);
  }
};

const Backends& backends() {
  static const Backends instance;
  return instance;
}

const KernelTable& choose() {
  const char* forced = std::getenv("TURBOQUANT_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') return *backends().tables[0];
  if (const KernelTable* table = find(forced)) return *table;
  std::string message = std::string("TURBOQUANT_FORCE_ISA=") + forced + ": available here are";
  for (int i = 0; i < backends().count; ++i) message += std::string(" ") + backends().names[i];
  throw std::runtime_error(message);
}

}  // namespace

const KernelTable& active() {
  static const KernelTable& table = choose();
  return table;
}

const KernelTable* find(const char* name) {
  for (int i = 0; i < backends().count; ++i) {
    if (std::strcmp(backends().names[i], name) == 0) return backends().tables[i];
  }
  return nullptr;
}

const char* const* available() { return backends().names; }

}  // namespace turboquant::kernels
