#include "python/faiss_plugin/got_patch.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace turboquant::python {
namespace {

#if defined(__x86_64__)
constexpr std::uint32_t kJumpSlot = R_X86_64_JUMP_SLOT;
constexpr std::uint32_t kGlobalData = R_X86_64_GLOB_DAT;
#elif defined(__aarch64__)
constexpr std::uint32_t kJumpSlot = R_AARCH64_JUMP_SLOT;
constexpr std::uint32_t kGlobalData = R_AARCH64_GLOB_DAT;
#else
#error "the relocation types of this processor are not known here"
#endif

struct Tables {
  const ElfW(Sym) * symbols = nullptr;
  const char* names = nullptr;
  const ElfW(Rela) * calls = nullptr;
  std::size_t call_bytes = 0;
  const ElfW(Rela) * data = nullptr;
  std::size_t data_bytes = 0;
  std::uintptr_t protected_begin = 0;  // read-only once relocated
  std::uintptr_t protected_end = 0;
};

Tables tables_of(const dl_phdr_info& object) {
  Tables t;
  const ElfW(Dyn)* dynamic = nullptr;
  for (int i = 0; i < object.dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object.dlpi_phdr[i];
    if (segment.p_type == PT_DYNAMIC) {
      dynamic = reinterpret_cast<const ElfW(Dyn)*>(object.dlpi_addr + segment.p_vaddr);
    } else if (segment.p_type == PT_GNU_RELRO) {
      t.protected_begin = object.dlpi_addr + segment.p_vaddr;
      t.protected_end = t.protected_begin + segment.p_memsz;
    }
  }
  for (; dynamic != nullptr && dynamic->d_tag != DT_NULL; ++dynamic) {
    // glibc has added the base address already; others have not.
    const std::uintptr_t value = dynamic->d_un.d_ptr;
    const std::uintptr_t at = value < object.dlpi_addr ? value + object.dlpi_addr : value;
    switch (dynamic->d_tag) {
      case DT_SYMTAB:
        t.symbols = reinterpret_cast<const ElfW(Sym)*>(at);
        break;
      case DT_STRTAB:
        t.names = reinterpret_cast<const char*>(at);
        break;
      case DT_JMPREL:
        t.calls = reinterpret_cast<const ElfW(Rela)*>(at);
        break;
      case DT_PLTRELSZ:
        t.call_bytes = value;
        break;
      case DT_RELA:
        t.data = reinterpret_cast<const ElfW(Rela)*>(at);
        break;
      case DT_RELASZ:
        t.data_bytes = value;
        break;
      default:
        break;
    }
  }
  return t;
}

bool store(const Tables& t, std::uintptr_t slot, void* target) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const bool is_protected = slot >= t.protected_begin && slot < t.protected_end;
  void* start = reinterpret_cast<void*>(slot & ~(page - 1));
  if (is_protected && mprotect(start, page, PROT_READ | PROT_WRITE) != 0) return false;
  // Other threads may be calling through it: they see the old or the new value.
  __atomic_store_n(reinterpret_cast<void**>(slot), target, __ATOMIC_RELEASE);
  return !is_protected || mprotect(start, page, PROT_READ) == 0;
}

struct Job {
  const char* library;
  Redirection* redirections;
  std::size_t count;
  std::uintptr_t own_base;
  const char* error = nullptr;
};

void redirect_in(const dl_phdr_info& object, const Tables& t, const ElfW(Rela) * entries,
                 std::size_t bytes, Job& job) {
  for (std::size_t i = 0; i < bytes / sizeof(ElfW(Rela)); ++i) {
    const auto type = static_cast<std::uint32_t>(ELF64_R_TYPE(entries[i].r_info));
    if (type != kJumpSlot && type != kGlobalData) continue;
    const char* name = t.names + t.symbols[ELF64_R_SYM(entries[i].r_info)].st_name;
    for (std::size_t j = 0; j < job.count; ++j) {
      if (std::strcmp(name, job.redirections[j].symbol) != 0) continue;
      if (!store(t, object.dlpi_addr + entries[i].r_offset, job.redirections[j].target)) {
        job.error = "the memory of FAISS's call table cannot be made writable";
        return;
      }
      ++job.redirections[j].slots;
    }
  }
}

int visit(dl_phdr_info* object, std::size_t, void* data) {
  Job& job = *static_cast<Job*>(data);
  const char* path = object->dlpi_name;
  const char* slash = std::strrchr(path, '/');
  const char* file = slash == nullptr ? path : slash + 1;
  if (std::strstr(file, job.library) == nullptr || object->dlpi_addr == job.own_base) return 0;
  const Tables t = tables_of(*object);
  if (t.symbols == nullptr || t.names == nullptr) return 0;
  if (t.calls != nullptr) redirect_in(*object, t, t.calls, t.call_bytes, job);
  if (t.data != nullptr && job.error == nullptr) {
    redirect_in(*object, t, t.data, t.data_bytes, job);
  }
  return job.error == nullptr ? 0 : 1;
}

}  // namespace

const char* redirect_calls(const char* library, Redirection* redirections, std::size_t count) {
  Dl_info own{};
  if (dladdr(reinterpret_cast<void*>(&redirect_calls), &own) == 0) {
    return "the plugin cannot find itself in memory";
  }
  Job job{library, redirections, count, reinterpret_cast<std::uintptr_t>(own.dli_fbase)};
  dl_iterate_phdr(visit, &job);
  return job.error;
}

}  // namespace turboquant::python
