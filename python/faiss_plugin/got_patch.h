// Redirecting calls between libraries that are already loaded: the linker's --wrap, after the fact.
#pragma once

#include <cstddef>

namespace turboquant::python {

/// One function: the name that callers were linked against, and where their calls shall go.
struct Redirection {
  const char* symbol;
  void* target;
  std::size_t slots = 0;  ///< out: places that were changed
};

/// Changes, in every loaded library whose file name contains `library` but the one that holds this
/// code, the table entries through which it calls those symbols. Linux, ELF, x86-64 and 64-bit Arm.
/// Returns null, or what went wrong. No other thread may load or unload libraries meanwhile.
const char* redirect_calls(const char* library, Redirection* redirections, std::size_t count);

}  // namespace turboquant::python
