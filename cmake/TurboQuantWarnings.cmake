# turboquant_flags: what every target of ours compiles with.
add_library(turboquant_flags INTERFACE)
set(cxx "$<COMPILE_LANGUAGE:CXX>")
set(cuda "$<COMPILE_LANGUAGE:CUDA>")
# Scores must not depend on whether the compiler fused a multiply-add.
target_compile_options(turboquant_flags INTERFACE "$<${cxx}:-ffp-contract=off>" "$<${cuda}:--fmad=false>")
target_compile_options(turboquant_flags INTERFACE
  "$<${cxx}:-Wall;-Wextra;-Wshadow;-Wconversion;-Wno-sign-conversion;-Woverloaded-virtual;-Wnon-virtual-dtor>"
  "$<${cuda}:-Xcompiler=-Wall,-Wextra,-Wshadow,-Wnon-virtual-dtor>")
if(TURBOQUANT_WERROR)
  target_compile_options(turboquant_flags INTERFACE
    "$<${cxx}:-Werror>" "$<${cuda}:-Werror=all-warnings;-Xcompiler=-Werror>")
endif()
if(TURBOQUANT_SANITIZE)
  target_compile_options(turboquant_flags INTERFACE
    "$<${cxx}:-fsanitize=${TURBOQUANT_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer;-g>")
  target_link_options(turboquant_flags INTERFACE -fsanitize=${TURBOQUANT_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Among the sanitizer's checks GCC 12 takes members of a std::variant for uninitialized.
    target_compile_options(turboquant_flags INTERFACE "$<${cxx}:-Wno-maybe-uninitialized>")
  endif()
endif()
