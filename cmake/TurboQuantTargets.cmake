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
  if(TURBOQUANT_SANITIZE MATCHES thread)
    # libgomp hides its barriers from the thread sanitizer, so there the team is one thread,
    # whatever a program asks for.
    list(APPEND ARG_ENVIRONMENT OMP_THREAD_LIMIT=1)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}"
                                          ENVIRONMENT "OMP_WAIT_POLICY=PASSIVE;OPENBLAS_NUM_THREADS=1;${ARG_ENVIRONMENT}")
endfunction()
