# tq_add_library(<folder> SOURCES ... [DEPENDS ...]): library turboquant_<folder>, alias
# turboquant::<folder>. Dependencies are public; our flags are not.
function(tq_add_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(turboquant_${name} STATIC ${ARG_SOURCES})
  add_library(turboquant::${name} ALIAS turboquant_${name})
  set_target_properties(turboquant_${name} PROPERTIES EXPORT_NAME ${name})
  target_include_directories(turboquant_${name}
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>
    PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_features(turboquant_${name} PUBLIC cxx_std_17)
  target_link_libraries(turboquant_${name} PUBLIC ${ARG_DEPENDS}
                                           PRIVATE $<BUILD_INTERFACE:turboquant_flags>)
  set_property(GLOBAL APPEND PROPERTY TURBOQUANT_LIBRARIES turboquant_${name})
endfunction()

# What tests get beside their own environment. The thread sanitizer learns from Archer what OpenMP
# synchronizes (LLVM's OpenMP; GNU's has no such thing, so there the team is one thread, whatever a
# program asks for), and leaves out what libraries without the sanitizer hand from thread to thread.
set(TURBOQUANT_TEST_ENVIRONMENT "OMP_WAIT_POLICY=PASSIVE")
set(TURBOQUANT_TSAN_OPTIONS "ignore_noninstrumented_modules=1")
if(TURBOQUANT_SANITIZE MATCHES thread)
  find_library(TURBOQUANT_ARCHER archer HINTS /usr/lib/llvm-14/lib)
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang AND TURBOQUANT_ARCHER)
    list(APPEND TURBOQUANT_TEST_ENVIRONMENT "OMP_TOOL_LIBRARIES=${TURBOQUANT_ARCHER}"
         OMP_NUM_THREADS=4)
  else()
    message(STATUS "No Archer: races between threads of OpenMP are not found")
    list(APPEND TURBOQUANT_TEST_ENVIRONMENT OMP_THREAD_LIMIT=1)
  endif()
  list(APPEND TURBOQUANT_TEST_ENVIRONMENT "TSAN_OPTIONS=${TURBOQUANT_TSAN_OPTIONS}")
endif()

# tq_add_test(<name> SOURCES ... DEPENDS ... [LABELS ...]): GoogleTest program, one ctest entry
# per program. Tests may include internal headers. Waiting threads sleep instead of spinning, since
# tests share the machine; BLAS works on one thread, since its results depend on their number.
function(tq_add_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPENDS;LABELS;ENVIRONMENT" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gmock GTest::gtest_main
                                        turboquant_flags)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}"
                                          ENVIRONMENT "${TURBOQUANT_TEST_ENVIRONMENT};OPENBLAS_NUM_THREADS=1;${ARG_ENVIRONMENT}")
endfunction()
